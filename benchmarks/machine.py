"""The machine: what it is, how fast it runs at this moment, and the settings of a run."""

from __future__ import annotations

import ctypes
import importlib.metadata
import mmap
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rankreg_ext
from rankreg_ext import _backend

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "numpy", "scipy", "bottleneck", "torchsort")
INTERESTING = ("sse4_2", "avx", "avx2", "fma", "bmi2", "avx512f", "avx512bw", "avx512vl")
INTERESTING += ("avx512_vbmi2", "asimd", "sve")

# What torch and NumPy are told, so that a forced instruction set binds the competitors as well.
ATEN = {"baseline": "default", "avx2": "avx2", "avx512": "avx512"}
NUMPY_OFF = {
    "baseline": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "avx2": "X86_V4 AVX512_ICL AVX512_SPR",
}


# ------------------------------------------------------------------------------- instruction sets


def _native() -> Any:
    return _backend.load_native()


def isas() -> tuple[str, ...]:
    """The instruction sets that the native library can use here, the plainest first."""
    native = _native()
    return tuple(native.isas()) if hasattr(native, "isas") else ("baseline",)


def isa() -> str:
    """The one in use; ``none`` without a native library."""
    native = _native()
    if native is None:
        return "none"
    return native.isa() if hasattr(native, "isa") else "baseline"


def use_isa(name: str) -> None:
    """Force it.

    Raises:
        ValueError: if this build on this machine does not have it.
    """
    if name not in isas():
        raise ValueError(f"instruction set {name!r} is not usable here; there are {isas()}")
    if hasattr(_native(), "use_isa"):
        _native().use_isa(name)


# ---------------------------------------------------------------------------- threads and affinity


def environment_of(isa: str, threads: int, numpy_off: str | None = None) -> dict[str, str]:
    """Variables that must be set before the libraries are loaded."""
    variables = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    if isa in ATEN and platform.machine() == "x86_64":
        variables["ATEN_CPU_CAPABILITY"] = ATEN[isa]
        off = NUMPY_OFF.get(isa, "") if numpy_off is None else numpy_off
        if off:
            variables["NPY_DISABLE_CPU_FEATURES"] = off
    return variables


def pin(threads: int) -> list[int]:
    """Bind the process to its last ``threads`` cores (interrupts favour the first); their numbers.

    Before torch starts its threads, which inherit this.
    """
    import torch

    torch.set_num_threads(threads)
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise ValueError(f"{threads} threads were asked for, and there are {len(cores)} cores")
    os.sched_setaffinity(0, cores[-threads:])
    return cores[-threads:]


# ------------------------------------------------------------------------------------ clock, copies

# rcx = rdi; do { 16 times rax *= rax } while (--rcx): 48 cycles a turn, since a product takes three
# cycles on every x86-64 core of the last fifteen years.
_CHAIN = bytes.fromhex("4889f9" + "4889f8" + 16 * "480fafc0" + "48ffc9" + "75bb" + "c3")
_TURNS, _CYCLES = 20_000, 48


@contextmanager
def _chain() -> Iterator[Callable[[int], int] | None]:
    if platform.machine() not in ("x86_64", "AMD64") or not hasattr(mmap, "PROT_EXEC"):
        yield None
        return
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a hardened system
        yield None
        return
    page.write(_CHAIN)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    yield ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64)(address)


def clock_ghz() -> float | None:
    """Clock of this core now, from a chain of dependent products; None off x86-64."""
    with _chain() as chain:
        if chain is None:
            return None
        seconds = []
        for _ in range(7):
            start = time.perf_counter()
            chain(_TURNS)
            seconds.append(time.perf_counter() - start)
    return _TURNS * _CYCLES / min(seconds) / 1e9


def copy_bandwidth(mebibytes: int = 256) -> float:
    """GB/s read and written, together, by torch's best copy of an array that no cache holds."""
    import torch

    source = torch.ones(mebibytes * 2**18)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds) / 1e9


_SORT = """
import time, numpy
arrays = [numpy.random.default_rng(i).integers(0, 2**63, 2**18).astype("u8") for i in range(5)]
times = []
for x in arrays:
    start = time.perf_counter()
    numpy.sort(x)
    times.append(time.perf_counter() - start)
print(sorted(times)[1])
"""


def numpy_features_to_disable() -> str:
    """What makes ``np.sort`` of 64-bit keys fastest here: its AVX-512 version, or the AVX2 one.

    On some processors (Zen 4) compressing stores make the former several times slower, and the
    competitor is to be met at its best.
    """
    off = NUMPY_OFF["avx2"]
    times = {}
    for disable in ("", off):
        environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": disable}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _SORT],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        times[disable] = float(done.stdout) if done.returncode == 0 else float("inf")
    return min(times, key=times.__getitem__)


# -------------------------------------------------------------------------------------- the record


def _first(path: str, start: str) -> str | None:
    try:
        with open(path) as file:
            line = next((line for line in file if line.startswith(start)), None)
    except OSError:
        return None
    return line.partition(":")[2].strip() if line and ":" in line else line and line.strip()


def version_of(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*command: str) -> str | None:
    try:
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def cpu_name() -> str | None:
    return _first("/proc/cpuinfo", "model name") or platform.processor()


def commit() -> tuple[str | None, bool]:
    """The commit of the working tree, and whether files of the package or suite differ from it.

    A copy without its history is taken at the word of RANKREG_COMMIT.
    """
    dirty = _git("status", "--porcelain", "--", "csrc", "rankreg_ext", "benchmarks", "setup.py")
    return _git("rev-parse", "HEAD") or os.environ.get("RANKREG_COMMIT"), bool(dirty)


def record(threads: int, cores: list[int]) -> dict[str, Any]:
    """The facts that every row of a run shares; measures clock and copy bandwidth."""
    flags = (_first("/proc/cpuinfo", "flags") or _first("/proc/cpuinfo", "Features") or "").split()
    memory = _first("/proc/meminfo", "MemTotal")
    commit_, dirty = commit()
    build = _backend.build_info().get("native", {})
    native = _native()
    return {
        "cpu": cpu_name(),
        "cpu_family_model": "/".join(
            str(_first("/proc/cpuinfo", k)) for k in ("cpu family", "model\t")
        ),
        "cpu_flags": [flag for flag in INTERESTING if flag in flags],
        "l2_cache": _first("/proc/cpuinfo", "cache size"),
        "logical_cores": os.cpu_count(),
        "memory_gib": round(int(memory.split()[0]) / 2**20, 1) if memory else None,
        "system": f"{platform.system()} {platform.machine()}",
        "governor": _first("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", ""),
        "clock_ghz": clock_ghz(),
        "copy_gb_per_s": copy_bandwidth(),
        "threads": threads,
        "cores": cores,
        "isa": isa(),
        "isas": list(isas()),
        "variables": {
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "NPY_DISABLE_CPU_FEATURES")
            if name in os.environ
        },
        "python": platform.python_version(),
        "libraries": {name: version_of(name) for name in LIBRARIES},
        "rankreg_ext": rankreg_ext.__version__,
        "compiler": build.get("compiler"),
        "flags": build.get("flags"),
        "build": native.build_info() if native else None,
        "commit": commit_,
        "dirty": dirty,
    }
