"""What was built, what is usable, and which back-end was asked for.

The choice itself is made per call in :mod:`rankreg_ext.functional`; this module only answers it.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ._version import __version__

BACKENDS = ("auto", "cpu", "cuda", "triton", "reference")
# Whether Triton interprets kernels in Python, which it also does for tensors of the CPU; it decides
# that for good when it is imported.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The types of device whose tensors a back-end takes.
DEVICES = {
    "cpu": ("cpu",),
    "cuda": ("cuda",),
    "triton": ("cpu", "cuda", "xpu") if _INTERPRETED else ("cuda", "xpu"),
}

# RANKREG_BACKEND, or None if its value is none of BACKENDS: then the first call raises, and
# importing the package does not, so that show_config() can still be asked.
_environment = os.environ.get("RANKREG_BACKEND") or "auto"
_default = _environment if _environment in BACKENDS else None

_native: ModuleType | None = None
# Why a back-end is not usable, None if it is; filled as back-ends are asked for.
_reasons: dict[str, str | None] = {"auto": None, "reference": None}


class _Innermost(threading.local):
    name: str | None = None


_innermost = _Innermost()
# The names of all `use_backend` blocks that are open, in any thread. While it is empty, and that is
# nearly always, the hot path needs no thread-local; and torch.compile, which cannot see a
# thread-local change, guards on this tuple.
_open: tuple[str, ...] = ()
_open_lock = threading.Lock()


def requested() -> str:
    """The back-end asked for: by this thread's innermost `use_backend`, else by RANKREG_BACKEND.

    Returns:
        One of :data:`BACKENDS`; ``"auto"`` if nothing was asked for.

    Raises:
        ValueError: if RANKREG_BACKEND has another value.
    """
    if _open:
        # Code compiled while two threads hold blocks open follows the one opened last.
        name = _open[-1] if torch.compiler.is_compiling() else _innermost.name
        if name is not None:
            return name
    return _default or _check_name("RANKREG_BACKEND", _environment)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the back-end of all calls made within the block, in this thread.

    Also a decorator. Blocks nest: the innermost decides; ``"auto"`` undoes an outer choice. All
    back-ends give equal results; the choice matters for speed, and for tests.

    Args:
        name: ``"auto"`` the best for the device of the tensors; ``"cpu"`` the kernels in C++,
            ``"cuda"`` in CUDA C++, ``"triton"`` in Triton; ``"reference"`` plain torch.

    Raises:
        ValueError: on entry, if there is no such back-end.
        RuntimeError: on entry, if the back-end is not usable; the message says why.

    Example:
        >>> import torch
        >>> from rankreg_ext import rank, use_backend
        >>> with use_backend("reference"):
        ...     rank(torch.tensor([0.1, 0.9]))
        tensor([2., 1.])
    """
    global _open
    reason = usable(_check_name("use_backend: name", name))
    if reason is not None:
        raise RuntimeError(f"use_backend: backend {name!r} is not usable: {reason}")
    outer = _innermost.name
    _innermost.name = name
    with _open_lock:
        _open = (*_open, name)
    try:
        yield
    finally:
        _innermost.name = outer
        with _open_lock:
            last = len(_open) - 1 - _open[::-1].index(name)
            _open = _open[:last] + _open[last + 1 :]


def usable(backend: str) -> str | None:
    """Why ``backend`` cannot be used here and now; None if it can."""
    if backend not in _reasons:
        _reasons[backend] = _why_not(backend)
    return _reasons[backend]


def load_native() -> ModuleType | None:
    """The native library ``rankreg_ext._C``, loaded at most once; None if it cannot be had."""
    usable("cpu")
    if torch.version.cuda is not None:
        # Not through usable(), which asks for a device: at import that would keep a process from
        # forking. Loading the library registers its kernels, and touches no device.
        _load_cuda()
    # An explicit request is looked into now: within torch.compile nothing can be imported. Not
    # Triton, which is tried out on the device.
    if _default not in (None, "triton"):
        usable(_default)
    return _native


def devices_without_native_kernels() -> tuple[str, ...]:
    """The types of device that Triton serves, as far as it can."""
    has_cuda = torch.version.cuda is not None and _load_cuda()[0] is not None
    return ("xpu",) if has_cuda else ("cuda", "xpu")


def served_by_triton(device: str) -> bool:
    """Whether tensors on this type of device go to Triton without being asked to."""
    return device in devices_without_native_kernels() and usable("triton") is None


@cache
def build_info() -> dict[str, Any]:
    """What the build of this installation recorded; empty if it recorded nothing."""
    try:
        record = Path(__file__).with_name("_build_info.json").read_text(encoding="utf-8")
    except OSError:
        return {}
    return json.loads(record)


def show_config() -> str:
    """A report of what was built, what is usable, and why a back-end is off.

    Example:
        >>> import rankreg_ext
        >>> print(rankreg_ext.show_config())  # doctest: +ELLIPSIS
        rankreg_ext ...
          torch      ...
    """
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    asked = f"{_environment} (RANKREG_BACKEND)" if _environment != "auto" else "auto"
    if _open:
        asked = f"{requested()} (use_backend)"
    elif _default is None:
        asked = f"invalid: RANKREG_BACKEND={_environment!r}, must be one of {', '.join(BACKENDS)}"
    lines = [
        f"rankreg_ext {__version__}",
        f"  torch      {torch.__version__}, {cuda}, {torch.get_num_threads()} threads",
        f"  python     {platform.python_version()}, {platform.platform()}",
        f"  requested  {asked}",
    ]
    for backend in BACKENDS[1:]:
        reason = usable(backend)
        lines.append(f"  {backend:<10} {'usable' if reason is None else f'off: {reason}'}")
    for kind in ("cuda", "native"):
        record = build_info().get(kind, {})
        if record.get("built"):
            lines.append(f"  {kind:<10} built by {record['compiler']}, torch {record['torch']}")
    cuda_library = _load_cuda()[0] if torch.version.cuda is not None else None
    if cuda_library is not None:
        lines += [f"    {key:<13} {fact}" for key, fact in cuda_library.build_info().items()]
    if _native is not None:
        lines += [f"    {key:<12} {fact}" for key, fact in _native.build_info().items()]
        lines.append(f"    {'isa':<12} {_native.isa()}, of {', '.join(_native.isas())}")
    return "\n".join(lines)


def _check_name(what: str, name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{what} must be one of {', '.join(BACKENDS)}; got {name!r}")
    return name


@torch.compiler.assume_constant_result
def _why_not(backend: str) -> str | None:
    global _native
    if backend == "cpu":
        _native, reason = _import_library("_C", "native")
        return reason
    no_device = None if torch.cuda.is_available() else "torch finds no CUDA device"
    if backend == "cuda":
        if torch.version.cuda is None:
            return _not_built("cuda") or "this torch was built without CUDA"
        return _load_cuda()[1] or no_device
    if find_spec("triton") is None:
        return "triton is not installed"
    try:
        triton_kernels = importlib.import_module(f"{__package__}.triton_kernels")
    except ImportError as error:
        return f"rankreg_ext.triton_kernels cannot be imported: {error}"
    if _INTERPRETED:
        return None
    if not torch.cuda.is_available() and not torch.xpu.is_available():
        return "torch finds no GPU"
    return triton_kernels.try_out("cuda" if torch.cuda.is_available() else "xpu")


@cache
def _load_cuda() -> tuple[ModuleType | None, str | None]:
    return _import_library("_C_cuda", "cuda")


def _not_built(kind: str) -> str | None:
    """Why the build made no library of this kind; None if it made one."""
    record = build_info().get(kind)
    if record is None:
        return (
            "rankreg_ext was not installed, only found on the path; "
            "pip install --no-build-isolation -e . builds it in place"
        )
    return None if record["built"] else f"not built: {record['reason']}"


def _import_library(name: str, kind: str) -> tuple[ModuleType | None, str | None]:
    """The library and None, or None and the reason why it cannot be had."""
    reason = _not_built(kind)
    if reason is not None:
        return None, reason
    try:
        return importlib.import_module(f"{__package__}.{name}"), None
    except ImportError as error:
        return None, f"built, but it cannot be loaded: {error}"
