"""The loss of many lists from the losses of each, for rankreg_loss."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import host, tuning
from .common import divide

NONE, SUM, MEAN = range(3)  # indices into _ops.REDUCTION


# Program b sums all lists, in the same order as every other, and writes the divisor of lists
# b BLOCK .. b BLOCK + BLOCK - 1: no program waits for another, and nothing is launched twice.
#
#   losses   lists            float64
#   counts   lists            int32, the number of positives
#   loss     1                C
#   state    lists x width    rank dtype; column 0 is written
#
# Bytes moved: 12 a list and program, all but the first time from L2, and 4 a list written.
@triton.jit(do_not_specialize=["lists", "width"])
def finish_kernel(losses, counts, loss, state, lists, width, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    some = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, lists, BLOCK):
        inside = begin + lane < lists
        total += tl.load(losses + begin + lane, mask=inside, other=0.0)
        if MEAN:
            some += (tl.load(counts + begin + lane, mask=inside, other=0) > 0).to(tl.int32)
    value = tl.sum(total, 0)
    divisor = tl.maximum(tl.sum(some, 0), 1).to(tl.float64)
    first = tl.program_id(0) * BLOCK
    at = (first + lane).to(tl.int64)
    tl.store(state + at * width, tl.zeros([BLOCK], tl.float64) + divisor, mask=at < lists)
    tl.store(loss, divide(value, divisor), mask=first == 0)


def finish(losses: Tensor, counts: Tensor, reduction: int, state: Tensor, dtype) -> Tensor:
    """The loss, and what it was divided by, which goes to ``state[..., 0]``.

    ``losses`` (lists, float64) and ``counts`` (lists, int32: positives of each) are contiguous, as
    is ``state`` (``*batch`` x width, rank dtype). One value of ``dtype`` for a sum or a mean over
    the lists that have a positive; ``*batch`` values for none.
    """
    lists = losses.shape[0]
    if reduction == NONE:
        state.select(-1, 0).fill_(1)
        return losses.to(dtype).reshape(state.shape[:-1])
    if lists < 1:
        return losses.new_zeros((), dtype=dtype)
    if lists <= tuning.SUM_MOST:
        loss = losses.new_empty((), dtype=dtype)
        host.launch(
            finish_kernel,
            host.cdiv(lists, tuning.SUM_BLOCK),
            losses,
            counts,
            loss,
            state,
            lists,
            state.shape[-1],
            MEAN=reduction == MEAN,
            BLOCK=tuning.SUM_BLOCK,
            num_warps=8,
        )
        return loss
    divisor = losses.new_ones(())
    if reduction == MEAN:
        divisor = (counts > 0).sum().clamp(min=1).double()
    state.select(-1, 0).copy_(divisor)
    return (losses.sum() / divisor).to(dtype)
