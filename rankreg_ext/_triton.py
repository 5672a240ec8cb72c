"""Between the dispatcher and the kernels in Triton: which are called, how, and what compilers see.

An op is traced as what it consists of: torch's ops and launches, which inductor schedules, fuses
around and captures in graphs. That is what ``torch.library.triton_op`` does; its ``custom_op``
would cost as much again as a launch in eager mode.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

from . import _backend

# Kernels count in 32 bits.
LONGEST = 2**31 - 1


def kernel(name: str, fallback: Callable) -> Callable:
    """Op ``name`` in Triton; ``fallback`` for lists that are too long for it."""

    def run(*args):
        x = _scores(args)
        if x.shape[-1] > LONGEST:
            return fallback(*args)
        function = _host_function(name)
        if x.device.type == "cpu":
            return function(*args)
        module = getattr(torch, x.device.type)
        if x.device.index == module.current_device():
            return function(*args)
        with module.device(x.device):
            return function(*args)

    return run


def kernel_or(name: str, fallback: Callable) -> Callable:
    """Op ``name`` in Triton where Triton is usable, else ``fallback``."""
    in_triton = kernel(name, fallback)

    def run(*args):
        # Asked at the first call: that tries the device out, which importing must not.
        return (in_triton if _backend.usable("triton") is None else fallback)(*args)

    return run


def make_visible(op_set, name: str, served: Callable[[str], bool]) -> None:
    """Lets compilers trace op ``name`` as launches, on types of device that are ``served``."""

    def rule(mode, op, types, args, kwargs):
        from torch.export._trace import custom_triton_ops_decomposition_disabled

        known = (Tensor, torch.nn.Parameter, FunctionalTensor)
        if not all(issubclass(t, FakeTensor) or t in known for t in types):
            return NotImplemented
        x = _scores(args)
        if (
            custom_triton_ops_decomposition_disabled()
            or not served(x.device.type)
            or x.shape[-1] > LONGEST
        ):
            return mode.__torch_dispatch__(op, types, args, kwargs)
        from .triton_kernels import host

        with mode, host.traced():
            return _host_function(name)(*args, **kwargs)

    torch.library.register_torch_dispatch(
        f"{op_set.namespace}::{name}", FunctionalTensorMode, rule, lib=op_set.library
    )


def _scores(args: tuple) -> Tensor:
    """The lists: the first tensor but for a gradient that arrives, which may have one value."""
    second = args[1]
    return second if isinstance(second, Tensor) and second.dtype != torch.bool else args[0]


@cache
def _host_function(name: str) -> Callable:
    module, function = importlib.import_module(f"{__package__}.triton_kernels").KERNELS[name]
    module = importlib.import_module(f"{__package__}.triton_kernels.{module}")
    return getattr(module, function)
