"""The measurement: gate, rotation, rounds. The timing loop is :func:`time_rounds`.

1. Every provider's output is compared with the op's answer before anything is timed.
2. Inputs rotate: each call gets the next of many, because branch predictors memorise a small array.
3. Providers take turns within a round, so that what disturbs the machine disturbs all alike.
4. Reported are quantiles over samples; a sample is the mean of as many calls as fill 0.2 ms.

What differs from device to device stands in one class for each: :class:`Cpu` here, and
:class:`.cuda.Cuda`.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from .cases import Case
from .ops import OPS, Answer, floor_bytes, make_inputs
from .providers import Provider, is_ours, providers_of

ROTATED_ELEMENTS = 2**16  # in all copies of an input together, at least,
MOST_COPIES = 256  # unless that takes more copies than these,
ROTATED_BYTES = 2**30  # or more memory than this
GATED_ELEMENTS = 2**16  # in the inputs that the gate looks at together, at least
MEMORY_ELEMENTS = 2**16  # below them pages are too coarse a measure

SAMPLE_SECONDS = 2e-4
ROUNDS = 40
FEWEST_SAMPLES = 3
CASE_SECONDS = 0.7  # for all providers of a case; a slow one exceeds it by FEWEST_SAMPLES calls


class GateError(AssertionError):
    """A provider's answer is wrong; it is not timed."""


# --------------------------------------------------------------------------------------- rotation


def copies_of(case: Case) -> int:
    """How many different inputs rotate."""
    item = 4 * floor_bytes(case) + 64  # scores, gradients, saved ranks, graphs: an upper estimate
    wanted = min(MOST_COPIES, -(-ROTATED_ELEMENTS // case.elements))
    return max(2, min(max(3, wanted), ROTATED_BYTES // item))


# ------------------------------------------------------------------------------------------- gate


def check(provider: Provider, case: Case, answer: Answer, output: Any, inputs: tuple) -> str:
    """What was verified of one output, in words; raises GateError where it is wrong.

    Ours must be equal, dtype included. Others must be equal in value, where ties cannot matter if
    they break them arbitrarily. A scalar need only be close, and so need sums of hinges, whose
    order is each method's own, and the gradient of a network, as a vector, which differs from that
    without a rank loss by five per cent or more.
    """
    if provider.finish is None:
        return "not compared"
    label = f"{provider.name} on {case.name}"
    got, expected = provider.finish(output, *inputs), answer.value
    if got.numel() != expected.numel():
        raise GateError(f"{label}: {tuple(got.shape)}, not {tuple(expected.shape)}")
    got = got.reshape(expected.shape)
    allowed, where = 0.0, "equal"
    if case.op == "training_step":
        distance = (got - expected).norm() / expected.norm()
        if not distance < (1e-6 if is_ours(provider.name) else 1e-3):
            raise GateError(f"{label}: the gradient is {distance:.2%} off")
        return "close"
    if is_ours(provider.name):
        if got.dtype != expected.dtype:
            raise GateError(f"{label}: {got.dtype}, not {expected.dtype}")
        wrong = got != expected
        if case.op == "hinge_violations":
            wrong, where = ~torch.isclose(got, expected, rtol=1e-6, atol=0), "close"
    elif case.op.startswith("hinge_violations"):
        # In the type of the scores, by whose rounding a pair at the corner counts or not.
        wrong = ~torch.isclose(got.double(), expected.double(), rtol=1e-4, atol=1e-4)
        where, allowed = "close", 1e-3
    elif expected.dim() == 0:
        wrong, where = ~torch.isclose(got.double(), expected.double(), rtol=1e-5), "close"
    else:
        wrong = got.double() != expected.double()
        if not provider.exact_ties:
            untied = answer.untied()
            wrong &= untied
            if not untied.all():
                where, allowed = "equal without ties", answer.spill
    if answer.known is not None:
        wrong &= answer.known
        where += ", sampled"
    if (share := float(wrong.double().mean())) > allowed:
        first = wrong.flatten().nonzero()[0].item()
        raise GateError(
            f"{label}: {share:.2%} of the elements are wrong, first number "
            f"{first}: {got.flatten()[first].item()} instead of {expected.flatten()[first].item()}"
        )
    return where


# ----------------------------------------------------------------------------------------- timing


@dataclass
class Runner:
    """A provider with its prepared, rotating arguments and the samples taken so far."""

    provider: Provider
    arguments: list[tuple]
    gate: str = "not compared"
    peak_bytes: int | None = None
    output_bytes: int | None = None
    calls: int = 1
    stride: int = 1
    samples: list[float] = field(default_factory=list)
    wall: float = 0.0  # seconds spent in all samples
    cpu: float = 0.0  # of which the process had a core

    def __post_init__(self):
        self._rotation: Iterator[tuple] = itertools.cycle(self.arguments)

    def output(self, i: int) -> Any:
        """What is returned for the arguments number ``i``; the gate asks."""
        return self.provider.call(*self.arguments[i])

    def next_arguments(self) -> list[tuple]:
        return list(itertools.islice(self._rotation, self.calls))

    def sample(self) -> float:
        """Seconds per call, over the next ``calls`` inputs."""
        call, chunk = self.provider.call, self.next_arguments()
        cpu, start = time.process_time(), time.perf_counter()
        for arguments in chunk:
            call(*arguments)
        seconds = time.perf_counter() - start
        self.wall += seconds
        self.cpu += time.process_time() - cpu
        return seconds / self.calls

    def calibrate(self, seconds: float, sample_seconds: float = SAMPLE_SECONDS) -> None:
        """Choose calls per sample, and rounds to take part in, to last about ``seconds``."""
        once = self.sample()
        if once < 0.01:
            once = min(once, self.sample(), self.sample())
        self.calls = max(1, min(100_000, round(sample_seconds / max(once, 1e-9))))
        self.take_part(seconds / (self.calls * once))

    def take_part(self, wanted: float) -> None:
        """Choose the rounds for about as many samples as are wanted."""
        self.stride = max(1, min(ROUNDS // FEWEST_SAMPLES, int(ROUNDS / max(wanted, 1e-9))))

    def facts(self) -> dict[str, Any]:
        """What a row tells of this device's runners alone."""
        return {"cpu_share": round(self.cpu / self.wall, 3)}


@contextmanager
def no_garbage_collection():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def time_rounds(runners: Sequence[Runner], seconds: float = CASE_SECONDS) -> None:
    """Fill ``samples`` of every runner; they take turns, and the first of a round changes."""
    with no_garbage_collection():
        for runner in runners:
            runner.calibrate(seconds / len(runners))
        for i in range(ROUNDS):
            first = i % len(runners)
            for runner in (*runners[first:], *runners[:first]):
                if i % runner.stride == 0:
                    runner.samples.append(runner.sample())


def quantiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """The 10th, 50th and 90th percentile, interpolated."""
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    low, median, high = torch.tensor(samples, dtype=torch.float64).quantile(levels).tolist()
    return low, median, high


# ----------------------------------------------------------------------------------------- memory


def peak_memory(call: Callable[[], Any]) -> int | None:
    """Bytes by which the resident set of a process grows at most while it makes one call.

    A forked child makes it, after a first one: its allocator is told to hand freed memory back at
    once, and its high-water mark is reset in between. So native scratch counts as well, by pages.
    None where /proc does not offer this.
    """
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # no return from here: neither handlers nor buffers of the parent run twice
        try:
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 64 * 1024)  # M_MMAP_THRESHOLD: larger blocks are mapped, and unmapped
            call()  # maps the pages of code and constants, which a fork leaves out
            libc.malloc_trim(0)
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the mark is the present size
            before = _status("VmRSS")
            call()
            os.write(write, str(_status("VmHWM") - before).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return int(answer) if answer else None


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith(name + ":"))
    return 1024 * int(line.split()[1])


def output_size(output: Any) -> int:
    items = output if isinstance(output, tuple) else (output,)
    return sum(item.nbytes for item in items if hasattr(item, "nbytes"))


# ------------------------------------------------------------------------------------------ a case


class Cpu:
    """Calls in this process, timed by the wall clock."""

    name = "cpu"

    def scope(self) -> AbstractContextManager:
        """In which everything of a case happens."""
        return nullcontext()

    def inputs(self, case: Case) -> list[tuple]:
        """As many different ones as rotate."""
        return [make_inputs(case, seed) for seed in range(copies_of(case))]

    def runners(self, provider: Provider, arguments: list[tuple]) -> Iterator[Runner]:
        """The ways in which a provider is timed; each is gated before the next is asked for."""
        yield Runner(provider, arguments)

    def peak_memory(self, case: Case, runner: Runner) -> int | None:
        """Bytes by which memory grows at most during a call; None where that is not measured."""
        if case.elements < MEMORY_ELEMENTS or torch.get_num_threads() > 1:
            return None
        return peak_memory(partial(runner.output, 0))


CPU = Cpu()


def prepare(
    case: Case,
    wanted: tuple[str, ...] = (),
    *,
    gate: bool = True,
    memory: bool = False,
    device: Any = CPU,
) -> list[Runner]:
    """Inputs made, providers gated; raises GateError at the first that is wrong."""
    inputs = device.inputs(case)
    gated = inputs[: -(-GATED_ELEMENTS // case.elements)] if gate else []
    answers = [OPS[case.op].answer(case, *item) for item in gated]
    runners: list[Runner] = []
    for provider in providers_of(case, wanted, device.name):
        found = []
        try:
            for runner in device.runners(provider, [provider.prepare(*item) for item in inputs]):
                for i, (answer, item) in enumerate(zip(answers, gated, strict=True)):
                    output = runner.output(i)
                    runner.gate = check(provider, case, answer, output, item)
                if memory:
                    runner.peak_bytes = device.peak_memory(case, runner)
                    known = runner.peak_bytes is not None
                    runner.output_bytes = output_size(output) if known else None
                found.append(runner)
        except GateError:
            raise
        except Exception as error:  # a competitor's, or its compiler's
            if is_ours(provider.name):
                raise
            what = (str(error).splitlines() or [""])[0]
            print(f"\n{provider.name} on {case.name} fails: {type(error).__name__}: {what}")
        runners += found
    return runners


def measure(
    case: Case,
    wanted: tuple[str, ...] = (),
    seconds: float = CASE_SECONDS,
    device: Any = CPU,
) -> list[dict[str, Any]]:
    """The rows of one case, one per runner, without the facts of the run."""
    with device.scope():
        return _measure(case, wanted, seconds, device)


def _measure(
    case: Case, wanted: tuple[str, ...], seconds: float, device: Any
) -> list[dict[str, Any]]:
    runners = prepare(case, wanted, memory=True, device=device)
    time_rounds(runners, seconds)
    rows = []
    for runner in runners:
        low, median, high = quantiles(runner.samples)
        rows.append(
            {
                "case": case.name,
                "op": case.op,
                "batch": case.batch,
                "n": case.n,
                "dtype": case.dtype,
                "values": case.values,
                "positives": case.positives,
                "provider": runner.provider.name,
                "ns_p10": low * 1e9,
                "ns_p50": median * 1e9,
                "ns_p90": high * 1e9,
                "samples": len(runner.samples),
                "calls_per_sample": runner.calls,
                **runner.facts(),
                "inputs_rotated": len(runner.arguments),
                "floor_bytes": floor_bytes(case),
                "peak_bytes": runner.peak_bytes,
                "output_bytes": runner.output_bytes,
                "gate": runner.gate,
                "note": runner.provider.note,
            }
        )
    return rows
