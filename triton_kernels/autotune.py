"""Looks for better block shapes than those of tuning.py, on the GPU of this machine.

    python -m rankreg_ext.triton_kernels.autotune [--only NAME] [--items 2**26]

Every setting in ``SETTINGS`` is tried with every candidate, each checked against the reference
before it is timed, and the best is kept while the next setting is tried. What is printed at the end
is meant for tuning.py, as it is. Nothing is written, and nothing happens by itself: a library whose
first call takes a minute, and whose launches differ from run to run, is worse than a fixed table.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _ops
from . import tuning

Timer = Callable[[Callable[[], object]], float]  # milliseconds of a call

# Operations, and the modules their host functions are in.
_HOMES = {
    "rank": "rank",
    "blackbox_rank_backward": "rank",
    "positive_ranks": "positive_ranks",
    "positive_ranks_backward": "positive_ranks",
    "rankreg_loss": "rankreg_loss",
    "rankreg_loss_backward": "rankreg_loss",
}
_LAM = 0.3
_ROTATED = 3  # sets of inputs that calls take in turn: none finds its own in a cache


@dataclass(frozen=True)
class Work:
    """Calls that a setting matters to."""

    operations: tuple[str, ...]
    lengths: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    positives: int = 8  # of a list
    lists: int | None = None  # None: as many as give a GPU enough to do


@dataclass(frozen=True)
class Setting:
    """An attribute of tuning.py, a value or a dict of values by the next power of two of n."""

    name: str
    candidates: tuple[Hashable, ...]
    work: Work

    def keys(self) -> Iterator[tuple[int | None, tuple[int, ...]]]:
        """What is chosen by itself, with the lengths that it is chosen by."""
        table = getattr(tuning, self.name)
        if not isinstance(table, dict):
            yield None, self.work.lengths
            return
        for key in table:
            lengths = tuple(n for n in self.work.lengths if _power_of_two(n) == key)
            if lengths:
                yield key, lengths


SETTINGS: tuple[Setting, ...] = ()


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


@dataclass(frozen=True)
class Call:
    """One host function on inputs of its own."""

    operation: str
    arguments: tuple

    def __call__(self):
        module = importlib.import_module(f"{__package__}.{_HOMES[self.operation]}")
        return getattr(module, self.operation)(*self.arguments)

    def expected(self):
        """What the reference gives."""
        return getattr(_ops, f"_{self.operation}")(*self.arguments)

    def is_right(self) -> bool:
        """Whether the result is that of the reference; a sum over lists may round differently."""
        found, expected = self(), self.expected()
        if isinstance(found, Tensor):
            return _equal(found, expected)
        (loss, state), (expected_loss, expected_state) = found, expected
        bound = 4 * torch.finfo(loss.dtype).eps * expected_loss.abs()
        return _equal(state, expected_state) and bool(((loss - expected_loss).abs() <= bound).all())


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0))


def calls(
    operation: str, n: int, lists: int, positives: int, dtype: torch.dtype, device: str, seed: int
) -> Call:
    """A call on random scores, with its inputs."""
    generator = torch.Generator(device).manual_seed(seed)
    shape = (lists, n)
    x = torch.randn(shape, generator=generator, device=device).to(dtype)
    if operation == "rank":
        return Call(operation, (x, True, 0, None))
    if operation == "blackbox_rank_backward":
        ranks = _ops._rank(x, True, 0, None)
        grad = torch.randn(shape, generator=generator, device=device).to(ranks.dtype)
        return Call(operation, (grad, x, ranks, _LAM, None, True, 0, None))
    # At random places, a set number in every list.
    order = torch.rand(shape, generator=generator, device=device)
    chosen = order.topk(min(positives, n), dim=-1).indices
    mask = torch.zeros(shape, dtype=torch.bool, device=device).scatter_(-1, chosen, True)
    if operation == "positive_ranks":
        return Call(operation, (x, mask, _LAM, None, None))
    if operation == "positive_ranks_backward":
        ranks = _ops._positive_ranks(x, mask, _LAM, None, None)
        grad = torch.randn(shape, generator=generator, device=device).to(ranks.dtype)
        return Call(operation, (grad, x, mask, ranks, _LAM, None, None))
    loss = (_LAM, None, 2, _ops.NORMALIZE.index("length"), None)
    mean = _ops.REDUCTION.index("mean")
    if operation == "rankreg_loss":
        return Call(operation, (x, mask, *loss, mean))
    value, state = _ops._rankreg_loss(x, mask, *loss, mean)
    return Call(operation, (value.new_ones(()).expand(lists), x, mask, state, *loss))


@contextmanager
def _set(name: str, key: int | None, value: Hashable) -> Iterator[None]:
    """tuning.py with another value, within the block."""
    before = getattr(tuning, name)
    setattr(tuning, name, value if key is None else {**before, key: value})
    try:
        yield
    finally:
        setattr(tuning, name, before)


def _time(
    setting: Setting, key: int | None, value: Hashable, sets: list[list[Call]], timer: Timer
) -> float | str:
    """The geometric mean of the milliseconds of all calls, or why there is none."""
    times = []
    with _set(setting.name, key, value):
        for rotated in sets:
            call = rotated[0]
            try:
                if not call.is_right():
                    return f"WRONG RESULT: {call.operation}, {tuple(call.arguments[0].shape)}"
                turn = itertools.cycle(rotated)
                times.append(timer(lambda turn=turn: next(turn)()))
            except Exception as error:  # a block too large for this GPU is no candidate, no more
                if not type(error).__module__.startswith("triton"):
                    raise
                return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return math.exp(math.fsum(map(math.log, times)) / len(times))


@dataclass
class Outcome:
    """What was found out about a setting."""

    setting: Setting
    value: object  # the whole attribute
    gains: dict[int | None, float]  # by key: how much faster than what stands in tuning.py
    wrong: list[str]

    def text(self) -> str:
        """Lines for tuning.py."""
        if None in self.gains:
            return f"{self.setting.name} = {self.value!r}  # {_gain(self.gains[None])}"
        lines = [f"{self.setting.name} = {{"]
        for key, value in self.value.items():
            gain = f"  # {_gain(self.gains[key])}" if key in self.gains else "  # not timed"
            lines.append(f"    {key}: {value!r},{gain}")
        return "\n".join([*lines, "}"])


def _gain(gain: float) -> str:
    return f"{gain:.2f} x as fast as before" if gain > 1 else "as before"


def tune(
    setting: Setting, timer: Timer, device: str, items: int, say: Callable[[str], None] = print
) -> Outcome:
    """Time all candidates of ``setting``, and leave the best in `tuning`."""
    gains: dict[int | None, float] = {}
    wrong = []
    for key, lengths in setting.keys():
        sets = list(_sets(setting.work, lengths, device, items))
        attribute = getattr(tuning, setting.name)
        present = attribute if key is None else attribute[key]
        where = setting.name if key is None else f"{setting.name}[{key}]"
        times: dict[Hashable, float] = {}
        for value in dict.fromkeys((present, *setting.candidates)):
            outcome = _time(setting, key, value, sets, timer)
            if isinstance(outcome, str):
                say(f"{where} = {value!r}: {outcome}")
                if outcome.startswith("WRONG"):
                    wrong.append(f"{where} = {value!r}: {outcome}")
                continue
            times[value] = outcome
            mark = " (present)" if value == present else ""
            say(f"{where} = {value!r}: {outcome * 1e3:.1f} us{mark}")
        if not times:
            continue
        # Timings differ by a percent from run to run: no reason for another table.
        best = min(times, key=times.__getitem__)
        if present in times and times[present] <= 1.02 * times[best]:
            best = present
        gains[key] = times[present] / times[best] if present in times else math.inf
        setattr(tuning, setting.name, best if key is None else {**attribute, key: best})
    return Outcome(setting, getattr(tuning, setting.name), gains, wrong)


def _sets(work: Work, lengths: Iterable[int], device: str, items: int) -> Iterator[list[Call]]:
    for operation, n, dtype in itertools.product(work.operations, lengths, work.dtypes):
        lists = work.lists or max(1, items // n)
        yield [
            calls(operation, n, lists, work.positives, dtype, device, seed)
            for seed in range(_ROTATED)
        ]


def _do_bench(call: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return do_bench(call, warmup=25, rep=100, return_mode="median")


def _obstacle() -> str | None:
    """Why nothing can be timed here."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    return None


def main(arguments: list[str] | None = None) -> int:
    """Tune, and print the tables. The exit status is 1 if a result was wrong, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.autotune")
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--items", type=int, default=1 << 24, help="scores of a call")
    options = parser.parse_args(arguments)
    if obstacle := _obstacle():
        print(f"autotune: nothing can be timed here: {obstacle}", file=sys.stderr)
        return 2
    chosen = [setting for setting in SETTINGS if options.only in setting.name]
    outcomes = [tune(setting, _do_bench, "cuda", options.items) for setting in chosen]
    print(report(outcomes, torch.cuda.get_device_name()))
    return 1 if any(outcome.wrong for outcome in outcomes) else 0


def report(outcomes: list[Outcome], device: str) -> str:
    """What to paste into tuning.py, and what was wrong."""
    lines = ["", f"# Measured on {device}.", *(o.text() for o in outcomes if o.gains)]
    wrong = [f"# {complaint}" for outcome in outcomes for complaint in outcome.wrong]
    return "\n".join([*lines, *wrong])


if __name__ == "__main__":
    sys.exit(main())
