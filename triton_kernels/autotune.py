"""Looks for better block shapes than those of tuning.py, on the GPU of this machine.

    python -m rankreg_ext.triton_kernels.autotune [--only NAME] [--items N]

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
from collections.abc import Callable, Iterable, Iterator
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
    """What tuning.py decides: a value, or one per next power of two of n, in a dict or a function.

    ``candidates`` are values, or a function of that power of two that gives them.
    """

    name: str
    candidates: tuple | Callable[[int], Iterable]
    work: Work

    def keys(self) -> Iterator[tuple[int | None, tuple[int, ...]]]:
        """What is chosen by itself, with the lengths that it is chosen by."""
        present = getattr(tuning, self.name)
        if not (callable(present) or isinstance(present, dict)):
            yield None, self.work.lengths
            return
        for key in sorted({power_of_two(n) for n in self.work.lengths}):
            if callable(present) or key in present:
                yield key, tuple(n for n in self.work.lengths if power_of_two(n) == key)

    def values(self, key: int | None) -> list:
        """The candidates, and what stands in tuning.py first of all."""
        some = self.candidates(key) if callable(self.candidates) else self.candidates
        present = look_up(getattr(tuning, self.name), key)
        return [present, *(value for value in some if value != present)]


def look_up(attribute, key: int | None):
    """What an attribute of tuning.py says about ``key``."""
    if key is None:
        return attribute
    return attribute(key) if callable(attribute) else attribute[key]


def changed(attribute, key: int | None, value):
    """The attribute with another value for ``key``."""
    if key is None:
        return value
    if callable(attribute):
        return lambda size: value if size == key else attribute(size)
    return {**attribute, key: value}


def power_of_two(n: int) -> int:
    """The next power of two."""
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


def call_of(
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


_FLOATS = (torch.float16, torch.float32)
_DOUBLE = (torch.float64,)
_RANKS = ("rank", "blackbox_rank_backward")
_POSITIVES = ("rankreg_loss", "rankreg_loss_backward")


def _count_tiles(size: int) -> Iterator[dict]:
    """Shapes of `count_kernel`: a power of two of items a thread, and of threads a program."""
    for items, threads in itertools.product((1, 2, 4, 8), (64, 128, 256)):
        if items <= size:
            lanes = min(size // items, threads)
            warps = max(1, threads // tuning.WARP)
            yield dict(ITEMS=items, ROWS=threads // lanes, LANES=lanes, num_warps=warps)


def _sort_warps(size: int) -> Iterator[int]:
    for items in (2, 4, 8, 16, 32):
        if 1 <= size // (items * tuning.WARP) <= 16:
            yield size // (items * tuning.WARP)


# In the order in which they are tried: block shapes, then the bounds between ways.
SETTINGS = (
    Setting("count_tile", _count_tiles, Work(_RANKS, (16, 30, 60, 128, 250))),
    Setting("sort_warps", _sort_warps, Work(_RANKS, (500, 1000, 2000, 4000), _FLOATS)),
    Setting("PLACE_BLOCK", (512, 1024, 2048, 4096), Work(_RANKS, (10_000, 1_000_000))),
    Setting("COUNT_MOST", (128, 256, 512, 1024), Work(_RANKS, (200, 400, 800), _FLOATS)),
    Setting("COUNT_MOST_WIDE", (512, 1024, 2048, 4096), Work(_RANKS, (800, 3000), _DOUBLE)),
    Setting("SORT_MOST", (1024, 2048, 4096), Work(_RANKS, (2000, 4000), _FLOATS)),
    Setting("LIST_THRESHOLDS", (8, 16, 32), Work(_POSITIVES, (64, 250, 1000), positives=20)),
    Setting("LIST_ITEMS_PER_WARP", (64, 128, 256, 512), Work(_POSITIVES, (64, 250, 1000))),
    Setting("SUM_BLOCK", (512, 1024, 2048, 4096), Work(("rankreg_loss",), (16,), lists=10_000)),
    Setting("STREAM_BLOCK", (1024, 2048, 4096), Work(_POSITIVES, (10_000, 1_000_000))),
    Setting("STREAM_WARPS", (2, 4, 8), Work(_POSITIVES, (10_000, 1_000_000))),
    Setting("STREAM_PROGRAMS", (528, 1056, 2112), Work(_POSITIVES, (10_000, 1_000_000))),
    Setting("STREAM_FEW", (8, 16, 32), Work(_POSITIVES[:1], (1_000_000,), positives=24)),
    Setting("STREAM_FEW_BACKWARD", (4, 8, 16), Work(_POSITIVES[1:], (1_000_000,), positives=12)),
    Setting("STREAM_NARROW", (64, 128, 256), Work(_POSITIVES, (1_000_000,), positives=100)),
    Setting("STREAM_CHUNK", (512, 1024, 2048), Work(_POSITIVES, (1_000_000,), positives=5000)),
    Setting("LIST_MOST", (512, 1024, 2048, 4096), Work(_POSITIVES, (800, 1500, 3000))),
)


@contextmanager
def _set(setting: Setting, key: int | None, value) -> Iterator[None]:
    """tuning.py with another value, within the block."""
    before = getattr(tuning, setting.name)
    setattr(tuning, setting.name, changed(before, key, value))
    try:
        yield
    finally:
        setattr(tuning, setting.name, before)


class _NoTime(Exception):
    """Why a candidate has no time."""


def _time(setting: Setting, key: int | None, value, sets: list[list[Call]], timer: Timer) -> float:
    """The geometric mean of the milliseconds of all calls."""
    times = []
    with _set(setting, key, value):
        for rotated in sets:
            call = rotated[0]
            try:
                right = call.is_right()
                turn = itertools.cycle(rotated)
                if right:
                    times.append(timer(lambda turn=turn: next(turn)()))
            except Exception as error:
                # A block that is too large for this GPU is no candidate, and no more than that.
                if not type(error).__module__.startswith("triton"):
                    raise
                raise _NoTime(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
            if not right:
                shape = tuple(call.arguments[0].shape)
                raise _NoTime(f"{_WRONG}: {call.operation} of {shape}")
    return math.exp(math.fsum(map(math.log, times)) / len(times))


_WRONG = "WRONG RESULT"


@dataclass
class Outcome:
    """What was found out about a setting: by key the best value, and how much faster it is."""

    setting: Setting
    best: dict[int | None, object]
    gains: dict[int | None, float]
    wrong: list[str]

    def text(self) -> str:
        """Lines for tuning.py; keys that were not timed keep what they have."""
        name = self.setting.name
        if None in self.best:
            return f"{name} = {self.best[None]!r}  # {_gain(self.gains[None])}"
        head = f"{name} = {{"
        if callable(getattr(tuning, name)):
            head = f"# For {name}() to look up, by size.\n{name.upper()} = {{"
        entries = [f"    {k}: {v!r},  # {_gain(self.gains[k])}" for k, v in self.best.items()]
        return "\n".join([head, *entries, "}"])


def _gain(gain: float) -> str:
    return f"{gain:.2f} x as fast as before" if gain > 1 else "as before"


def tune(
    setting: Setting, timer: Timer, device: str, items: int, say: Callable[[str], None] = print
) -> Outcome:
    """Time all candidates of ``setting``, and leave the best in `tuning`."""
    outcome = Outcome(setting, {}, {}, [])
    for key, lengths in setting.keys():
        sets = list(_sets(setting.work, lengths, device, items))
        where = setting.name if key is None else f"{setting.name}[{key}]"
        times = []
        present, *others = setting.values(key)
        for value in (present, *others):
            mark = " (present)" if value is present else ""
            try:
                times.append((_time(setting, key, value, sets, timer), value))
                say(f"{where} = {value!r}: {times[-1][0] * 1e3:.1f} us{mark}")
            except _NoTime as reason:
                say(f"{where} = {value!r}: {reason}{mark}")
                if str(reason).startswith(_WRONG):
                    outcome.wrong.append(f"{where} = {value!r}: {reason}")
        if not times:
            continue
        least, best = min(times, key=lambda pair: pair[0])
        before = times[0][0] if times[0][1] is present else math.inf
        # Timings differ by a percent or two from run to run: no reason for another table.
        if before <= 1.02 * least:
            least, best = before, present
        outcome.best[key], outcome.gains[key] = best, before / least
        attribute = getattr(tuning, setting.name)
        setattr(tuning, setting.name, changed(attribute, key, best))
    return outcome


def _sets(work: Work, lengths: Iterable[int], device: str, items: int) -> Iterator[list[Call]]:
    for operation, n, dtype in itertools.product(work.operations, lengths, work.dtypes):
        lists = work.lists or max(1, items // n)
        yield [
            call_of(operation, n, lists, work.positives, dtype, device, seed)
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
    lines = ["", f"# Measured on {device}.", *(o.text() for o in outcomes if o.best)]
    wrong = [f"# {complaint}" for outcome in outcomes for complaint in outcome.wrong]
    return "\n".join([*lines, *wrong])


if __name__ == "__main__":
    sys.exit(main())
