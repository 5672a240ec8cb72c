"""The harness on a CUDA device: what is timed there, and by which clock.

A provider is timed in two ways, and a row says in which.

``call``: eager calls, one after another, from an idle device until it is idle again, by CUDA
events; beside that the host's share, until the last call has returned. Per call that is the
host's time or the device's, whichever is longer.

``graph``: the same calls captured in one CUDA graph and replayed, which leaves the time of the
device alone. A provider that makes the host wait for the device cannot be captured.

Every call of a sample has an input of its own, and the second-level cache is emptied before each
sample: no input is in the cache. All copies of an input together are twice the size of that cache
at least, unless that would take more than MOST_COPIES.

Nothing but :class:`CudaClock`, :func:`properties` and :func:`profile` touches ``torch.cuda``.
"""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

import rankreg_ext
from rankreg_ext import _backend

from . import machine
from .cases import Case
from .harness import Runner, quantiles
from .ops import make_inputs
from .providers import Provider, providers_of

# Calls in a sample, too. The launches of so many must fit the device's queue, some 1000 long, or
# the host would wait for a place in it.
MOST_COPIES = 32
LIBRARIES = ("torch", "triton", "numpy")
COPIED_BYTES = 2**30
BUSY_CYCLES = 1_000_000  # half a millisecond: longer than it takes to launch a graph


class Clock(Protocol):
    """What the runners need of a device; CudaClock is the real one."""

    def scope(self) -> AbstractContextManager:
        """In which everything must happen."""

    def flush(self) -> None:
        """Enqueue what empties the second-level cache."""

    def busy(self) -> None:
        """Enqueue what occupies the device, but not its memory, while a graph is launched."""

    def wait(self) -> None:
        """Until the device is idle."""

    def start(self) -> None:
        """Enqueue the beginning of a time."""

    def stop(self) -> float:
        """Enqueue its end, wait for it, and return the seconds between them."""

    def waits(self, call: Callable[[], Any]) -> str:
        """Where a call makes the host wait for the device; empty if nowhere."""

    def capture(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """A replay of everything that ``work`` enqueues, and what it returned."""

    def peak_memory(self, call: Callable[[], Any]) -> int:
        """Bytes by which the device memory in use grows at most during a call."""


class CudaClock:
    """One stream, on which everything happens, two events, and twice the cache to read."""

    def __init__(self, l2_bytes: int):
        self.stream = torch.cuda.Stream()
        self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.unrelated = torch.zeros(2 * l2_bytes // 4, device="cuda")
        self.sink = torch.zeros((), device="cuda")
        torch.cuda.synchronize()

    def scope(self) -> AbstractContextManager:
        # Forward passes, too: a gradient is computed, and captured, on the stream of its forward.
        return torch.cuda.stream(self.stream)

    def flush(self) -> None:
        # Read, not written: dirty lines would be written back while the next call is timed.
        torch.sum(self.unrelated, 0, out=self.sink)

    def busy(self) -> None:
        torch.cuda._sleep(BUSY_CYCLES)

    def wait(self) -> None:
        self.stream.synchronize()

    def start(self) -> None:
        self.begin.record(self.stream)

    def stop(self) -> float:
        self.end.record(self.stream)
        self.end.synchronize()
        return self.begin.elapsed_time(self.end) / 1e3

    def waits(self, call: Callable[[], Any]) -> str:
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError as error:
            return str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return ""

    def capture(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            result = work()
        return graph.replay, result

    def peak_memory(self, call: Callable[[], Any]) -> int:
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.wait()
        return torch.cuda.max_memory_allocated() - before


# ---------------------------------------------------------------------------------------- runners


@dataclass
class CudaRunner(Runner):
    """A sample takes every input once."""

    clock: Clock | None = None
    mode: str = ""
    host: list[float] = field(default_factory=list)  # seconds of the host per call
    why_no_graph: str = ""

    def __post_init__(self):
        super().__post_init__()
        self.calls = len(self.arguments)

    def calibrate(self, seconds: float, sample_seconds: float = 0.0) -> None:
        self.sample()  # warms up
        self.take_part(seconds / (self.calls * self.sample()))
        self.host.clear()

    def facts(self) -> dict[str, Any]:
        host = quantiles(self.host)[1] * 1e9
        return {"mode": self.mode, "host_ns_p50": host, "why_no_graph": self.why_no_graph}


class CallRunner(CudaRunner):
    """Eager calls."""

    def sample(self) -> float:
        call, chunk = self.provider.call, self.next_arguments()
        self.clock.flush()
        self.clock.wait()
        self.clock.start()
        start = time.perf_counter()
        for arguments in chunk:
            call(*arguments)
        self.host.append((time.perf_counter() - start) / self.calls)
        return self.clock.stop() / self.calls


class GraphRunner(CudaRunner):
    """The same calls in one graph, their outputs kept apart."""

    def __post_init__(self):
        super().__post_init__()
        self.replay, self.outputs = self.clock.capture(
            lambda: [self.provider.call(*arguments) for arguments in self.arguments]
        )

    def output(self, i: int) -> Any:
        self.replay()
        return self.outputs[i]

    def sample(self) -> float:
        self.clock.flush()
        self.clock.busy()
        self.clock.start()
        start = time.perf_counter()
        self.replay()
        self.host.append((time.perf_counter() - start) / self.calls)
        return self.clock.stop() / self.calls


# ----------------------------------------------------------------------------------------- device


def properties() -> dict[str, Any]:
    """Of the current device.

    Raises:
        ValueError: if there is none.
    """
    if not torch.cuda.is_available():
        raise ValueError(f"torch {torch.__version__} finds no CUDA device")
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "device": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "l2_bytes": found.L2_cache_size,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "uuid": f"GPU-{found.uuid}",
    }


SMI = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu")
SMI += ("power.draw", "utilization.gpu")


def smi(uuid: str) -> dict[str, str]:
    """What nvidia-smi reads; empty where it cannot be asked. It sets nothing."""
    command = ["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader", "-i", uuid]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode or len(values) != len(SMI):
        return {}
    return dict(zip(SMI, values, strict=True))


def copy_bandwidth(clock: Clock, place: str, size: int = COPIED_BYTES) -> float:
    """GB/s read and written, together, by a copy within device memory: the median of twenty."""
    source = torch.ones(size, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)
    seconds = []
    for i in range(23):
        clock.wait()
        clock.start()
        target.copy_(source)
        last = clock.stop()
        if i >= 3:
            seconds.append(last)
    return 2 * size / quantiles(seconds)[1] / 1e9


class Cuda:
    """The device of a run; see :class:`.harness.Cpu` for what each method answers.

    Tests give a ``clock`` of their own, and the CPU as ``place``.
    """

    name = "cuda"

    def __init__(self, clock: Clock | None = None, place: str = "cuda", l2_bytes: int = 0):
        self.l2_bytes = l2_bytes or properties()["l2_bytes"]
        self.clock = clock or CudaClock(self.l2_bytes)
        self.place = place

    def scope(self) -> AbstractContextManager:
        torch.compiler.reset()  # code compiled for other shapes counts towards a limit
        return self.clock.scope()

    def copies_of(self, size: int) -> int:
        """How many inputs of ``size`` bytes rotate."""
        return max(2, min(MOST_COPIES, -(-2 * self.l2_bytes // size)))

    def inputs(self, case: Case) -> list[tuple]:
        first = make_inputs(case, 0, self.place)
        copies = self.copies_of(sum(item.nbytes for item in first))
        return [first, *(make_inputs(case, seed, self.place) for seed in range(1, copies))]

    def runners(self, provider: Provider, arguments: list[tuple]) -> Iterator[CudaRunner]:
        calls = CallRunner(provider, arguments, clock=self.clock, mode="call")
        yield calls
        calls.why_no_graph = self.clock.waits(lambda: provider.call(*arguments[0]))
        if calls.why_no_graph:
            return
        try:
            graph = GraphRunner(provider, arguments, clock=self.clock, mode="graph")
        except RuntimeError as error:
            calls.why_no_graph = str(error).splitlines()[0]
        else:
            yield graph

    def peak_memory(self, case: Case, runner: CudaRunner) -> int | None:
        if runner.mode == "graph":  # has its memory already
            return None
        return self.clock.peak_memory(partial(runner.output, 0))

    def record(self) -> dict[str, Any]:
        """The facts that every row of a run shares; measures the copy bandwidth."""
        facts = properties()
        reading = smi(facts.pop("uuid"))
        build = _backend.build_info().get("cuda", {})
        commit, dirty = machine.commit()
        with self.clock.scope():
            copy = copy_bandwidth(self.clock, self.place)
        return {
            **facts,
            "driver": reading.pop("driver_version", None),
            "reading": reading,
            "copy_gb_per_s": copy,
            "cuda": torch.version.cuda,
            "cpu": machine.cpu_name(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "libraries": {name: machine.version_of(name) for name in LIBRARIES},
            "rankreg_ext": rankreg_ext.__version__,
            "backend": _backend.requested(),
            "compiler": build.get("compiler"),
            "flags": build.get("flags"),
            "commit": commit,
            "dirty": dirty,
        }


def usable() -> None:
    """Raises ValueError if the kernels that are to be measured are not there."""
    properties()
    requested = _backend.requested()
    reason = _backend.usable("cuda" if requested == "auto" else requested)
    if reason is not None:
        raise ValueError(f"the kernels to measure are not usable: {reason}")


def profile(case: Case) -> None:
    """One warm call of ours, alone between the profiler's start and stop."""
    device = Cuda()
    with device.scope():
        provider = next(p for p in providers_of(case, (), "cuda"))
        first, second = (provider.prepare(*make_inputs(case, i, "cuda")) for i in range(2))
        provider.call(*first)
        device.clock.wait()
        torch.cuda.profiler.start()
        provider.call(*second)
        device.clock.wait()
        torch.cuda.profiler.stop()
