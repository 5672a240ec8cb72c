"""How kernels are called: tensors as lists, lam as an argument, and launches that can be traced."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.library import wrap_triton


class _Tracing(threading.local):
    on: bool = False


_tracing = _Tracing()


@contextmanager
def traced() -> Iterator[None]:
    """Within the block, launches become part of the graph that is being traced."""
    outer, _tracing.on = _tracing.on, True
    try:
        yield
    finally:
        _tracing.on = outer


def is_traced() -> bool:
    """Whether launches are part of a graph rather than made."""
    return _tracing.on


def launch(kernel, programs, *args, **options) -> None:
    """``kernel[(programs,)]`` on the current stream, or a node of the graph that is traced."""
    if _tracing.on:
        kernel = wrap_triton(kernel)
    kernel[(programs,)](*args, **options)


def as_lists(x: Tensor | None) -> Tensor | None:
    """``(*batch, n)`` as ``(lists, n)``; a copy only where batch dimensions share no stride."""
    if x is None or x.dim() == 2:
        return x
    return x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty((0, x.shape[-1]))


def strided(x: Tensor | None) -> tuple:
    """The arguments ``x, x_list, x_item`` of a kernel: pointer, and strides in items."""
    return (None, 0, 0) if x is None else (x, x.stride(0), x.stride(1))


def lam_argument(lam: float, lam_tensor: Tensor | None, x: Tensor) -> Tensor | int:
    """What `common.read_lam` takes: the bits of a double, or a tensor."""
    if lam_tensor is not None:
        return lam_tensor
    # A traced lam may be symbolic; bits of the smallest doubles would pass for a 32-bit integer.
    if is_traced() or lam < 1e-300:
        return torch.full((), lam, dtype=torch.float64, device=x.device)
    return struct.unpack("<q", struct.pack("<d", lam))[0]


def cdiv(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return (a + b - 1) // b


def power_of_two(least: int, lowest: int = 1) -> int:
    """The first power of two that is neither below ``least`` nor below ``lowest``.

    By comparisons: a symbolic ``least`` is bounded by that, not fixed to its value.
    """
    power = lowest
    while power < least:
        power *= 2
    return power
