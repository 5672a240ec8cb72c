"""Rare positives of short lists: one program a list, one launch each way, any number of positives.

    forward    r_i = 1 + #{k : a_k > a_i}
    backward   an item at x that does not move changes rank by
                 D(x) = #{i in P : a+_i > x} - #{i in P : a_i > x};
               a positive that moves has r'_i = 1 + #{k : m_k > a+_i}, m_k = a+_k in P, a_k elsewhere

A program holds its list as a tensor of BLOCK items, NaN where nothing is there: NaN is above and
below nothing. Its positives, in index order, have slots 0, 1, ...; T of them at a time meet all
items in a tile of T x BLOCK comparisons, counted along the items for ranks and along the positives
for D. Items and positives change places through memory: an item stores its place in the list to
scratch[slot], a barrier, and T lanes load T places, hence scores. That is one store of which few
lanes take part, and one trip to L2; lists with few positives go the same way. To collect T
thresholds inside the program instead, by sums over (slot == t) * a, takes as many instructions
again as counting does. The way back needs no barrier: the T lanes know the places and write the
results of the positives there, every item that is no positive writes its own.

Comparisons, n to a positive: 1 forward, 3 backward. P = n is counting n^2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _ops
from ..reference import compute_dtype, rank_dtype
from . import host, loss_sum, tuning
from .common import compute_type, divide, perturb, read_flags, read_lam

NAN = tl.constexpr(float("nan"))


@triton.jit
def _read(
    scores,
    scores_list,
    scores_item,
    positives,
    positives_list,
    positives_item,
    where,
    where_list,
    where_item,
    row,
    n,
    BLOCK: tl.constexpr,
):
    """Scores in C, NaN where masked or beyond the end; which are positives; which are present."""
    item = tl.arange(0, BLOCK)
    inside = item < n
    at = item.to(tl.int64)
    a = tl.load(scores + row * scores_list + at * scores_item, mask=inside, other=NAN)
    a = a.to(compute_type(scores.dtype.element_ty))
    positive = read_flags(positives + row * positives_list + at * positives_item, inside)
    present = inside
    if where is not None:
        present = read_flags(where + row * where_list + at * where_item, inside)
        positive = positive & present
        a = tl.where(present, a, NAN)
    return a, positive, present


@triton.jit
def _keep_places(places, positive, BLOCK: tl.constexpr):
    """The slot of every positive; its place goes to places[slot], for all to read."""
    slot = tl.cumsum(positive.to(tl.int32), 0) - 1
    place = tl.arange(0, BLOCK).to(places.dtype.element_ty)
    tl.store(places + slot, place, mask=positive)
    tl.debug_barrier()
    return slot


@triton.jit
def _rank_of(threshold, values):
    """1 + #{values above}, NaN for NaN: T ranks in C."""
    above = tl.sum((values[None, :] > threshold[:, None]).to(tl.int32), 1)
    return tl.where(threshold == threshold, (above + 1).to(threshold.dtype), threshold)


@triton.jit
def _change(moved, threshold, values):
    """#{moved above} - #{thresholds above}, of every value."""
    joined = (moved[:, None] > values[None, :]).to(tl.int32)
    left = (threshold[:, None] > values[None, :]).to(tl.int32)
    return tl.sum(joined - left, 0)


@triton.jit
def _power(x, exponent):
    """x^exponent in float64, by repeated multiplication."""
    out = x * 0 + 1
    for _ in range(exponent):
        out = out * x
    return out


# One program a list. Item strides are specialised on 1, lengths and list strides on nothing.
#
#   scores, positives, where   lists x n, strided; where may be None
#   out                        lists x n, rank dtype
#   places                     lists x n, int16: scratch, |P| of a list are written
#
# Bytes moved, an item: the score, 1 or 2 of the masks, 4 or 8 written; 4 a positive, in L2.
@triton.jit(do_not_specialize=["scores_list", "positives_list", "where_list", "n"])
def positive_ranks_kernel(
    scores,
    scores_list,
    scores_item,
    positives,
    positives_list,
    positives_item,
    where,
    where_list,
    where_item,
    out,
    places,
    n,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    a, positive, present = _read(
        scores,
        scores_list,
        scores_item,
        positives,
        positives_list,
        positives_item,
        where,
        where_list,
        where_item,
        row,
        n,
        BLOCK,
    )
    C: tl.constexpr = a.dtype
    scores += row * scores_list
    out += row * n
    places += row * n
    _keep_places(places, positive, BLOCK)
    item = tl.arange(0, BLOCK)
    tl.store(out + item, tl.zeros([BLOCK], C), mask=(item < n) & (positive == 0))

    count = tl.sum(positive.to(tl.int32), 0)
    for begin in range(0, count, T):
        slot = begin + tl.arange(0, T)
        place = tl.load(places + slot, mask=slot < count, other=0).to(tl.int64)
        threshold = tl.load(scores + place * scores_item, mask=slot < count, other=NAN).to(C)
        tl.store(out + place, _rank_of(threshold, a), mask=slot < count)


# As positive_ranks_kernel.
#
#   grad             lists x n, strided; read at positives
#   ranks            lists x n, rank dtype
#   lam              see common.read_lam
#   out              lists x n, the dtype of the scores
#
# Bytes moved, an item: the score, 1 or 2 of the masks, the gradient written; a positive: sectors of
# the gradient and of ranks.
@triton.jit(do_not_specialize=["scores_list", "positives_list", "where_list", "grad_list", "lam", "n"])
def positive_ranks_backward_kernel(
    grad,
    grad_list,
    grad_item,
    scores,
    scores_list,
    scores_item,
    positives,
    positives_list,
    positives_item,
    where,
    where_list,
    where_item,
    ranks,
    lam,
    out,
    places,
    n,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    a, positive, present = _read(
        scores,
        scores_list,
        scores_item,
        positives,
        positives_list,
        positives_item,
        where,
        where_list,
        where_item,
        row,
        n,
        BLOCK,
    )
    C: tl.constexpr = a.dtype
    lam = read_lam(lam, C)
    scores += row * scores_list
    grad += row * grad_list
    ranks += row * n
    out += row * n
    places += row * n
    _keep_places(places, positive, BLOCK)
    item = tl.arange(0, BLOCK)
    g = tl.load(grad + item.to(tl.int64) * grad_item, mask=positive, other=0).to(C)
    moved = tl.where(positive, perturb(a, lam, g, True), a)

    count = tl.sum(positive.to(tl.int32), 0)
    change = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, count, T):
        slot = begin + tl.arange(0, T)
        place = tl.load(places + slot, mask=slot < count, other=0).to(tl.int64)
        threshold = tl.load(scores + place * scores_item, mask=slot < count, other=NAN).to(C)
        rank = tl.load(ranks + place, mask=slot < count, other=0)
        g = tl.load(grad + place * grad_item, mask=slot < count, other=0).to(C)
        to = perturb(threshold, lam, g, True)
        gradient = divide((_rank_of(to, moved) - rank).to(C), lam)
        tl.store(out + place, gradient, mask=slot < count)
        change += _change(to, threshold, moved)

    gradient = tl.where(a == a, divide(change.to(C), tl.zeros([BLOCK], C) + lam), a)
    tl.store(out + item, tl.where(present, gradient, 0), mask=(item < n) & (positive == 0))


# As positive_ranks_kernel.
#
#   losses   lists, float64 or C: of every list
#   counts   lists, int32: its positives. May be None
#   state    lists x (1 + kept), rank dtype: 1, the ranks of the positives, or zeros
#
# Bytes moved, an item: the score, 1 or 2 of the masks; 4 (1 + kept) a list; 4 a positive, in L2.
@triton.jit(do_not_specialize=["scores_list", "positives_list", "where_list", "power", "kept", "n"])
def rankreg_loss_kernel(
    scores,
    scores_list,
    scores_item,
    positives,
    positives_list,
    positives_item,
    where,
    where_list,
    where_item,
    losses,
    counts,
    state,
    places,
    power,
    kept,
    n,
    BY_LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    a, positive, present = _read(
        scores,
        scores_list,
        scores_item,
        positives,
        positives_list,
        positives_item,
        where,
        where_list,
        where_item,
        row,
        n,
        BLOCK,
    )
    C: tl.constexpr = a.dtype
    scores += row * scores_list
    state += row * (1 + kept)
    places += row * n
    _keep_places(places, positive, BLOCK)
    count, length = _sizes(positive, present, where, n, BY_LENGTH)

    # Ranks take the first places of the state, if all of them fit.
    used = tl.where(count <= kept, count, 0)
    item = tl.arange(0, BLOCK)
    tl.store(state + 1 + item, tl.zeros([BLOCK], C), mask=(item >= used) & (item < kept))
    tl.store(state, 1.0)

    total = tl.zeros([T], tl.float64)
    for begin in range(0, count, T):
        slot = begin + tl.arange(0, T)
        place = tl.load(places + slot, mask=slot < count, other=0).to(tl.int64)
        threshold = tl.load(scores + place * scores_item, mask=slot < count, other=NAN).to(C)
        rank = _rank_of(threshold, a)
        tl.store(state + 1 + slot, rank, mask=slot < used)
        total += tl.where(slot < count, _power(rank.to(tl.float64), power), 0)

    scale = _power(length, power) * count.to(tl.float64)
    loss = tl.where(count > 0, divide(tl.sum(total, 0), scale), 0)
    tl.store(losses + row, loss.to(losses.dtype.element_ty))
    if counts is not None:
        tl.store(counts + row, count)


@triton.jit
def _sizes(positive, present, where, n, BY_LENGTH: tl.constexpr):
    """|P|, and Z in float64. Both in one sum: a list has at most 2^15 items."""
    if BY_LENGTH and where is not None:
        both = tl.sum(positive.to(tl.int32) + (present.to(tl.int32) << 16), 0)
        count = both & 0xFFFF
        length = (both >> 16).to(tl.float64)
    else:
        count = tl.sum(positive.to(tl.int32), 0)
        if BY_LENGTH:
            length = n.to(tl.float64)
        else:
            length = (count * 0 + 1).to(tl.float64)
    return count, length


# As positive_ranks_backward_kernel, but that positives move by the gradient of the loss.
#
#   grad      lists, of stride grad_list
#   state     lists x (1 + kept), rank dtype, as rankreg_loss_kernel wrote it
#   scratch   lists x 3 x n, C: places, moved positives, their ranks; |P| of each are written
#
# Bytes moved, an item: the score, 1 or 2 of the masks, the gradient written; 4 (1 + |P|) a list;
# 24 a positive, in L2.
@triton.jit(
    do_not_specialize=[
        "grad_list",
        "scores_list",
        "positives_list",
        "where_list",
        "lam",
        "power",
        "kept",
        "n",
    ]
)
def rankreg_loss_backward_kernel(
    grad,
    grad_list,
    scores,
    scores_list,
    scores_item,
    positives,
    positives_list,
    positives_item,
    where,
    where_list,
    where_item,
    state,
    lam,
    out,
    scratch,
    power,
    kept,
    n,
    BY_LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    a, positive, present = _read(
        scores,
        scores_list,
        scores_item,
        positives,
        positives_list,
        positives_item,
        where,
        where_list,
        where_item,
        row,
        n,
        BLOCK,
    )
    C: tl.constexpr = a.dtype
    lam = read_lam(lam, C)
    scores += row * scores_list
    state += row * (1 + kept)
    out += row * n
    places = scratch + row * n * 3
    targets = places + n
    ranks = targets + n
    own = _keep_places(places, positive, BLOCK)
    count, length = _sizes(positive, present, where, n, BY_LENGTH)

    # Positives move, T at a time: the formula in float64 is for few lanes.
    scale = _power(length, power - 1) * count.to(tl.float64)
    for begin in range(0, count, T):
        slot = begin + tl.arange(0, T)
        place = tl.load(places + slot, mask=slot < count, other=0).to(tl.int64)
        threshold = tl.load(scores + place * scores_item, mask=slot < count, other=NAN).to(C)
        if count <= kept:
            rank = tl.load(state + 1 + slot, mask=slot < count, other=0).to(C)
        else:
            rank = _rank_of(threshold, a)
        h = divide(power.to(tl.float64) * _power(rank.to(tl.float64), power - 1), scale)
        tl.store(targets + slot, perturb(threshold, lam, h.to(C), True), mask=slot < count)
        tl.store(ranks + slot, rank, mask=slot < count)
    tl.debug_barrier()
    moved = tl.where(positive, tl.load(targets + own, mask=positive, other=0), a)

    upstream = divide(tl.load(grad + row * grad_list).to(C), tl.load(state).to(C))
    divisor = (length * lam.to(tl.float64)).to(C)
    change = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, count, T):
        slot = begin + tl.arange(0, T)
        place = tl.load(places + slot, mask=slot < count, other=0).to(tl.int64)
        to = tl.load(targets + slot, mask=slot < count, other=NAN)
        rank = tl.load(ranks + slot, mask=slot < count, other=0)
        threshold = tl.load(scores + place * scores_item, mask=slot < count, other=NAN).to(C)
        gradient = upstream * divide(_rank_of(to, moved) - rank, divisor)
        tl.store(out + place, gradient, mask=slot < count)
        change += _change(to, threshold, moved)

    item = tl.arange(0, BLOCK)
    gradient = tl.where(a == a, upstream * divide(change.to(C), divisor), a)
    tl.store(out + item, tl.where(present, gradient, 0), mask=(item < n) & (positive == 0))


def _shapes(n) -> dict:
    """Block shapes for lists of `n` items; they depend on its power of two alone."""
    block = host.power_of_two(n, 16)
    warps = 1
    while warps * tuning.LIST_ITEMS_PER_WARP < block:
        warps *= 2
    return {"BLOCK": block, "T": tuning.LIST_THRESHOLDS, "num_warps": warps}


def positive_ranks(scores, positives, lam, lam_tensor, where):
    """``rankreg_ext::positive_ranks`` for n up to tuning.LIST_MOST."""
    n = scores.shape[-1]
    out = scores.new_empty(scores.shape, dtype=rank_dtype(scores.dtype, n))
    if scores.numel() < 1:
        return out
    lists = host.as_lists(scores)
    host.launch(
        positive_ranks_kernel,
        lists.shape[0],
        *host.strided(lists),
        *host.strided(host.as_lists(positives)),
        *host.strided(host.as_lists(where)),
        out,
        scores.new_empty(lists.shape, dtype=torch.int16),
        n,
        **_shapes(n),
    )
    return out


def positive_ranks_backward(grad, scores, positives, ranks, lam, lam_tensor, where):
    """``rankreg_ext::positive_ranks_backward`` for n up to tuning.LIST_MOST."""
    n = scores.shape[-1]
    out = scores.new_empty(scores.shape)
    if scores.numel() < 1:
        return out
    lists = host.as_lists(scores)
    host.launch(
        positive_ranks_backward_kernel,
        lists.shape[0],
        *host.strided(host.as_lists(grad)),
        *host.strided(lists),
        *host.strided(host.as_lists(positives)),
        *host.strided(host.as_lists(where)),
        ranks.contiguous(),
        host.lam_argument(lam, lam_tensor, scores),
        out,
        scores.new_empty(lists.shape, dtype=torch.int16),
        n,
        **_shapes(n),
    )
    return out


def rankreg_loss(scores, positives, lam, lam_tensor, power, normalize, where, reduction):
    """``rankreg_ext::rankreg_loss`` for n up to tuning.LIST_MOST."""
    *batch, n = scores.shape
    dtype = compute_dtype(scores.dtype)
    kept = torch.sym_min(n, _ops.STATE_CAPACITY)
    state = scores.new_empty((*batch, 1 + kept), dtype=rank_dtype(scores.dtype, n))
    each = reduction == loss_sum.NONE
    if scores.numel() < 1:  # zero, whatever it is divided by
        state.fill_(1)
        return scores.new_zeros(batch if each else (), dtype=dtype), state
    lists = host.as_lists(scores)
    count = lists.shape[0]
    # The losses of the lists are the result, unless there are several to be summed up.
    summed = not each and count > 1
    losses = scores.new_empty(count, dtype=torch.float64 if summed else dtype)
    counts = scores.new_empty(count, dtype=torch.int32) if summed else None
    host.launch(
        rankreg_loss_kernel,
        count,
        *host.strided(lists),
        *host.strided(host.as_lists(positives)),
        *host.strided(host.as_lists(where)),
        losses,
        counts,
        state,
        scores.new_empty(lists.shape, dtype=torch.int16),
        power,
        kept,
        n,
        BY_LENGTH=normalize == 1,
        **_shapes(n),
    )
    if summed:
        return loss_sum.finish(losses, counts, reduction, state, dtype), state
    return losses.reshape(batch if each else ()), state


def rankreg_loss_backward(
    grad, scores, positives, state, lam, lam_tensor, power, normalize, where
) -> Tensor:
    """``rankreg_ext::rankreg_loss_backward`` for n up to tuning.LIST_MOST."""
    *batch, n = scores.shape
    out = scores.new_empty(scores.shape)
    if scores.numel() < 1:
        return out
    lists = host.as_lists(scores)
    grad = grad.expand(batch).reshape(-1)
    scratch = lists.new_empty((lists.shape[0], 3, n), dtype=compute_dtype(scores.dtype))
    host.launch(
        rankreg_loss_backward_kernel,
        lists.shape[0],
        grad,
        grad.stride(0),
        *host.strided(lists),
        *host.strided(host.as_lists(positives)),
        *host.strided(host.as_lists(where)),
        state.contiguous(),
        host.lam_argument(lam, lam_tensor, scores),
        out,
        scratch,
        power,
        state.shape[-1] - 1,
        n,
        BY_LENGTH=normalize == 1,
        **_shapes(n),
    )
    return out
