"""Lets the emulated CUDA kernels serve CPU tensors within a block.

The public functions, autograd and all, then run on them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from emulator.build import load

import rankreg_ext
from rankreg_ext import _ops


@contextmanager
def emulated(
    seed: int = 0,
    multiprocessors: int = 4,
    shared_most: int = 227 * 1024,
    ops: str = "rankreg_ext_emulated",
) -> Iterator[ModuleType]:
    """Within the block, ops on CPU tensors are those of csrc/cuda; threads run in an order by seed.

    The size of the GPU decides which way kernels take; "rankreg_ext_stream" for ``ops`` treats
    every list of rare positives as a long one.
    """
    module = load()
    module.set_seed(seed)
    module.set_gpu(multiprocessors, shared_most)
    override = torch.library.Library("rankreg_ext", "IMPL")
    with warnings.catch_warnings():  # that a kernel is overridden
        warnings.simplefilter("ignore")
        for schema in _ops._SCHEMAS:
            name = schema.split("(")[0]
            op = getattr(getattr(torch.ops, ops), name).default
            override.impl(name, op, "CPU", allow_override=True)
    try:
        with rankreg_ext.use_backend("auto"):
            yield module
    finally:
        override._destroy()
