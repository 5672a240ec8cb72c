"""The competitors in plain torch and NumPy, written from published formulas.

Sorting methods break ties arbitrarily; searches count, and are exact. All work on lists along the
last dimension; those with positives expect equally many in every list.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rankreg_ext import reference

LAM = 0.5  # of the blackbox; scores and lam * gradient then have about the same spread
LOSS_LAM = 5.0
DELTA = 0.25  # the margin of hinge violations

# ------------------------------------------------------------------------------------ whole ranks


def double_argsort(x: Tensor) -> Tensor:
    """What everybody writes."""
    ranks = x.argsort(-1, descending=True).argsort(-1) + 1
    return ranks.to(reference.rank_dtype(x.dtype, x.shape[-1]))


def argsort_scatter(x: Tensor) -> Tensor:
    """One sort instead of two: the inverse permutation by a scatter."""
    return scatter_places(x.argsort(-1, descending=True), x)


def scatter_places(order: Tensor, x: Tensor) -> Tensor:
    """Ranks from the order of the items, best first."""
    dtype = reference.rank_dtype(x.dtype, x.shape[-1])
    places = torch.arange(1, x.shape[-1] + 1, dtype=dtype, device=x.device).expand_as(x)
    return x.new_empty(x.shape, dtype=dtype).scatter_(-1, order, places)


def numpy_argsort(x: np.ndarray, *, ascending: bool = False) -> np.ndarray:
    return numpy_scatter(x.argsort(-1), x, ascending)


def numpy_scatter(order: np.ndarray, x: np.ndarray, ascending: bool = False) -> np.ndarray:
    """Ranks from the order of the items, lowest first."""
    n = x.shape[-1]
    places = np.arange(1, n + 1) if ascending else np.arange(n, 0, -1)
    out = np.empty(x.shape, x.dtype)
    np.put_along_axis(out, order, np.broadcast_to(places.astype(x.dtype), x.shape), -1)
    return out


def pack(x: np.ndarray) -> np.ndarray:
    """uint64: the float32's order-preserving 32-bit key above the item's index."""
    bits = x.view(np.uint32)
    sign = (bits.view(np.int32) >> 31).view(np.uint32)  # all ones for a negative number
    keys = bits ^ (sign | np.uint32(0x80000000))
    return (keys.astype(np.uint64) << np.uint64(32)) | np.arange(x.shape[-1], dtype=np.uint64)


def unpack(ordered: np.ndarray) -> np.ndarray:
    """The indices of sorted packed keys."""
    return (ordered & np.uint64(0xFFFFFFFF)).astype(np.int64)


def packed_sort(x: np.ndarray) -> np.ndarray:
    """Ranks by NumPy's vectorised quicksort (x86-simd-sort) of packed keys, and a scatter."""
    packed = pack(x)
    packed.sort(-1)
    return numpy_scatter(unpack(packed), x)


# -------------------------------------------------------------------------------- blackbox ranker


def moved(x: Tensor, g: Tensor) -> Tensor:
    compute = reference.compute_dtype(x.dtype)
    return x.to(compute) + LAM * g.to(compute)


def blackbox_backward(rank: Callable, x: Tensor, g: Tensor, ranks: Tensor) -> Tensor:
    """``(rk(x + lam g) - rk(x)) / lam``, as published (Vlastelica et al. 2020, algorithm 1)."""
    return ((rank(moved(x, g)) - ranks) / LAM).to(x.dtype)


class BlackboxRanker(torch.autograd.Function):
    """The same as an autograd function, with any ranking function."""

    @staticmethod
    def forward(ctx, x, rank):
        ranks = rank(x)
        ctx.save_for_backward(x, ranks)
        ctx.rank = rank
        return ranks

    @staticmethod
    def backward(ctx, g):
        x, ranks = ctx.saved_tensors
        return blackbox_backward(ctx.rank, x, g, ranks), None


# ----------------------------------------------------------------------------- positives, searched


def at(positives: Tensor, x: Tensor) -> Tensor:
    """``(batch, P)``: the values at the positives."""
    return x[positives].view(len(x), -1)


def counted_ranks(x: Tensor, thresholds: Tensor) -> Tensor:
    """``1 + #{k : x_k > t}`` for ``(batch, P)`` thresholds: searchsorted and bincount."""
    ordered, order = thresholds.sort(-1)
    batch, cells = len(x), ordered.shape[-1] + 1
    cell = torch.searchsorted(ordered, x)  # thresholds strictly below each score
    if batch > 1:  # all lists in one histogram
        cell += cells * torch.arange(batch, device=x.device).unsqueeze(-1)
    counts = torch.bincount(cell.flatten(), minlength=batch * cells).view(batch, cells)
    ranks = 1 + counts.flip(-1).cumsum(-1).flip(-1)[:, 1:]
    return torch.empty_like(ranks).scatter_(-1, order, ranks)


def positive_ranks_by_search(x: Tensor, positives: Tensor) -> Tensor:
    ranks = counted_ranks(x, at(positives, x))
    out = x.new_zeros(x.shape, dtype=reference.rank_dtype(x.dtype, x.shape[-1]))
    return out.masked_scatter_(positives, ranks.to(out.dtype))


def positive_ranks_by_rank(rank: Callable, x: Tensor, positives: Tensor) -> Tensor:
    return torch.where(positives, rank(x), 0)


def rank_changes(x: Tensor, positives: Tensor, step: Tensor, ranks: Tensor) -> Tensor:
    """How far every rank changes if only the positives move, by ``(batch, P)`` steps: searches.

    A negative loses a place to every positive that passes it.
    """
    x = x.to(step.dtype)
    old = at(positives, x)
    new = old + step
    before, after = old.sort(-1).values, new.sort(-1).values
    # searchsorted(right=True) counts the thresholds that are not above a score.
    change = torch.searchsorted(before, x, right=True)
    change -= torch.searchsorted(after, x, right=True)
    above = torch.searchsorted(before, new, right=True) - torch.searchsorted(after, new, right=True)
    moved_ranks = counted_ranks(x, new) + above  # the old positives out, the new ones in
    return change.masked_scatter_(positives, moved_ranks - ranks)


def positive_ranks_backward_by_search(
    x: Tensor, positives: Tensor, g: Tensor, ranks: Tensor
) -> Tensor:
    compute = reference.compute_dtype(x.dtype)
    change = rank_changes(x, positives, LAM * at(positives, g).to(compute), ranks)
    return (change.to(compute) / LAM).to(x.dtype)


# --------------------------------------------------------------------------------- hinge violations


def hinge_by_broadcast(x: Tensor, positives: Tensor) -> Tensor:
    """``(batch, P)``, by all pairs at once, as published code has it."""
    p, k = at(positives, x), at(~positives, x)
    return (DELTA - (p.unsqueeze(-1) - k.unsqueeze(-2))).clamp(min=0).sum(-1)


# ------------------------------------------------------------------------------------- rankreg_loss


def loss(ranks: Tensor, n: int) -> Tensor:
    """Mean over lists of the mean of ``(r / n)^2`` over ``(batch, P)`` ranks of positives."""
    return (ranks.double() / n).square().mean()


def loss_step(ranks: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """``lam h``, ``h = 2 (r / n) / P``, of ``(batch, P)`` ranks."""
    return LOSS_LAM * (2 * ranks.double() / (n * ranks.shape[-1])).to(dtype)


def loss_backward_by_search(x: Tensor, positives: Tensor, ranks: Tensor) -> Tensor:
    step = loss_step(ranks, x.shape[-1], reference.compute_dtype(x.dtype))
    return _loss_gradient(x, rank_changes(x, positives, step, ranks))


def loss_backward_by_rank(
    rank: Callable, x: Tensor, positives: Tensor, ranks: Tensor, all_ranks: Tensor
) -> Tensor:
    compute = reference.compute_dtype(x.dtype)
    step = x.new_zeros(x.shape, dtype=compute)
    step.masked_scatter_(positives, loss_step(ranks, x.shape[-1], compute))
    return _loss_gradient(x, rank(x.to(compute) + step) - all_ranks)


def _loss_gradient(x: Tensor, change: Tensor) -> Tensor:
    compute = reference.compute_dtype(x.dtype)
    return (change.to(compute) / (x.shape[-1] * LOSS_LAM) * (1 / len(x))).to(x.dtype)


class PlainRankReg(torch.autograd.Function):
    """RankReg by whole ranks; by searches if ``rank`` is None."""

    @staticmethod
    def forward(ctx, x, positives, rank):
        if rank is None:
            ranks, all_ranks = counted_ranks(x, at(positives, x)), None
        else:
            all_ranks = rank(x)
            ranks = at(positives, all_ranks)
        ctx.save_for_backward(x, positives, ranks, all_ranks)
        ctx.rank = rank
        return loss(ranks, x.shape[-1]).to(reference.compute_dtype(x.dtype))

    @staticmethod
    def backward(ctx, upstream):
        x, positives, ranks, all_ranks = ctx.saved_tensors
        if ctx.rank is None:
            gradient = loss_backward_by_search(x, positives, ranks)
        else:
            gradient = loss_backward_by_rank(ctx.rank, x, positives, ranks, all_ranks)
        return upstream * gradient, None, None


class MaskedRankReg(torch.autograd.Function):
    """The same by whole ranks without boolean indexing, for which the host must wait for a GPU."""

    @staticmethod
    def forward(ctx, x, positives, rank):
        ranks = rank(x)
        ctx.save_for_backward(x, positives, ranks)
        ctx.rank = rank
        terms = torch.where(positives, (ranks.double() / x.shape[-1]).square(), 0)
        loss = (terms.sum(-1) / positives.sum(-1)).mean()
        return loss.to(reference.compute_dtype(x.dtype))

    @staticmethod
    def backward(ctx, upstream):
        x, positives, ranks = ctx.saved_tensors
        n, compute = x.shape[-1], reference.compute_dtype(x.dtype)
        count = positives.sum(-1, keepdim=True)
        step = torch.where(positives, LOSS_LAM * (2 * ranks.double() / (n * count)).to(compute), 0)
        change = ctx.rank(x.to(compute) + step) - ranks
        return upstream * _loss_gradient(x, change), None, None
