"""Rare positives of short lists: a program holds a list; one launch each way, any |P|.

    forward    r_i = 1 + #{k : a_k > a_i}
    backward   an item at x that does not move changes rank by
                 D(x) = #{i in P : a+_i > x} - #{i in P : a_i > x};
               a positive that moves has r'_i = 1 + #{k : m_k > a+_i}, with m = a+ in P, else a

A list is a tensor of BLOCK items, NaN where nothing is there: NaN is above and below nothing. Its
positives, in index order, have slots 0, 1, ... T of them at a time meet all items in a tile of
comparisons, which is counted along the items for ranks and along the positives for D: n comparisons
a positive forward, 3 n backward, so that P = n is counting n^2.

How items become thresholds: every positive stores its score to scratch[slot], and after a barrier
all threads read T of them. That is a store of which few lanes take part, and a trip to L2, for
lists with one positive as for those of positives alone. The other way, sums over (slot == t) * a
in registers, needs no memory and no barrier, but a second tile, which takes longer than that trip:
its product sums are of floats, which no single instruction reduces over a warp. The way back is
shorter: the positives' places are in the scratch as well, so that results are written there, and
every other item writes its own.

Programs take lists in turn, and use their scratch again for each: it stays in L2.

A tile is T x K x LANES: a thread has all of T and K, so that it counts in floats, which is an
instruction less a comparison (the comparison's result is the summand), and integers are summed over
the lanes (one instruction a warp).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _ops
from ..reference import compute_dtype, rank_dtype
from . import host, loss_sum, tuning
from .common import compute_type, divide, integer_power, perturb, read_lam

LENGTH = 1  # in _ops.NORMALIZE


# Flags are loaded in the kernels themselves: torch, looking for what a kernel writes, takes the
# result of a function for dependent on all of its arguments, and flags decide where is written.


@triton.jit
def _scores(pointers, present):
    """Scores in C, NaN where none is present."""
    a = tl.load(pointers, mask=present, other=float("nan"))
    return a.to(compute_type(a.dtype))


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
            length = tl.cast(n, tl.float64)  # inductor makes a constant of n = 1
        else:
            length = (count * 0 + 1).to(tl.float64)
    return count, length


@triton.jit
def _thresholds(data, slot, count):
    """T values of positives, NaN beyond the last.

    The load has no mask, to be of 16 bytes at a time: rows of the scratch have room for BLOCK.
    """
    return tl.where(slot < count, tl.load(data + slot), float("nan"))


@triton.jit
def _ranks(thresholds, values):
    """1 + #{values above} of T thresholds, NaN for NaN. values: K x LANES.

    A comparison's result is the summand where it is a float; compilers turn a sum of bools that are
    converted into one of integers.
    """
    above = tl.where(values[None, :, :] > thresholds[:, None, None], 1.0, 0.0)
    ranks = tl.sum(tl.sum(above, 1).to(tl.int32), 1) + 1
    return tl.where(thresholds == thresholds, ranks.to(thresholds.dtype), thresholds)


@triton.jit
def _change(targets, thresholds, values):
    """#{targets above} - #{thresholds above} of every value, float32. values: K x LANES."""
    joined = tl.where(targets[:, None, None] > values[None, :, :], 1.0, 0.0)
    left = tl.where(thresholds[:, None, None] > values[None, :, :], 1.0, 0.0)
    return tl.sum(joined - left, 0)


# Programs take lists in turn. Item strides are specialised on 1, lengths and list strides on
# nothing.
#
#   scores, positives, where   lists x n, strided; where may be None
#   out                        lists x n, rank dtype
#   scratch                    programs x 2 x BLOCK, C: thresholds, places
#
# Bytes moved, an item: the score, 1 or 2 of the masks, 4 or 8 written.
@triton.jit(do_not_specialize=["scores_list", "positives_list", "where_list", "lists", "n"])
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
    scratch,
    lists,
    n,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    T: tl.constexpr,
):
    """Ranks at the positives, 0 elsewhere."""
    item = tl.arange(0, BLOCK)
    thresholds = scratch + tl.program_id(0).to(tl.int64) * (2 * BLOCK)
    places = thresholds + BLOCK
    C: tl.constexpr = scratch.dtype.element_ty
    for index in range(tl.program_id(0), lists, tl.num_programs(0)):
        row = tl.cast(index, tl.int64)
        at = item.to(tl.int64)
        present = item < n
        if where is not None:
            flags = where + row * where_list + at * where_item
            present = tl.load(flags, mask=present, other=0) != 0
        flags = positives + row * positives_list + at * positives_item
        positive = tl.load(flags, mask=present, other=0) != 0
        a = _scores(scores + row * scores_list + at * scores_item, present)
        own = tl.cumsum(positive.to(tl.int32), 0) - 1
        tl.debug_barrier()  # the last list's scratch has been read
        tl.store(thresholds + own, a, mask=positive)
        tl.store(places + own, item.to(C), mask=positive)
        tl.debug_barrier()
        tl.store(out + row * n + item, tl.zeros([BLOCK], C), mask=(item < n) & (positive == 0))

        values = tl.reshape(a, [BLOCK // LANES, LANES])
        count = tl.sum(positive.to(tl.int32), 0)
        for begin in range(0, count, T):
            slot = begin + tl.arange(0, T)
            rank = _ranks(_thresholds(thresholds, slot, count), values)
            place = tl.load(places + slot, mask=slot < count, other=0).to(tl.int64)
            tl.store(out + row * n + place, rank, mask=slot < count)


# As positive_ranks_kernel.
#
#   grad      lists x n, strided; read at positives
#   ranks     lists x n, rank dtype; read at positives
#   lam       see common.read_lam
#   out       lists x n, the dtype of the scores
#   scratch   programs x 4 x BLOCK, C: thresholds, targets, ranks, places
#
# Bytes moved, an item: the score, 1 or 2 of the masks, the gradient written; a positive: a sector
# of the gradient, and one of the ranks.
@triton.jit(
    do_not_specialize=[
        "grad_list",
        "scores_list",
        "positives_list",
        "where_list",
        "lam",
        "lists",
        "n",
    ]
)
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
    scratch,
    lists,
    n,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    T: tl.constexpr,
):
    """The blackbox gradient of the ranks at the positives."""
    item = tl.arange(0, BLOCK)
    thresholds = scratch + tl.program_id(0).to(tl.int64) * (4 * BLOCK)
    targets = thresholds + BLOCK
    before = targets + BLOCK
    places = before + BLOCK
    C: tl.constexpr = scratch.dtype.element_ty
    lam = read_lam(lam, C)
    for index in range(tl.program_id(0), lists, tl.num_programs(0)):
        row = tl.cast(index, tl.int64)
        at = item.to(tl.int64)
        present = item < n
        if where is not None:
            flags = where + row * where_list + at * where_item
            present = tl.load(flags, mask=present, other=0) != 0
        flags = positives + row * positives_list + at * positives_item
        positive = tl.load(flags, mask=present, other=0) != 0
        a = _scores(scores + row * scores_list + at * scores_item, present)
        g = tl.load(grad + row * grad_list + at * grad_item, mask=positive, other=0).to(C)
        rank = tl.load(ranks + row * n + item, mask=positive, other=0)
        moved = tl.where(positive, perturb(a, lam, g, True), a)
        own = tl.cumsum(positive.to(tl.int32), 0) - 1
        tl.debug_barrier()  # the last list's scratch has been read
        tl.store(thresholds + own, a, mask=positive)
        tl.store(targets + own, moved, mask=positive)
        tl.store(before + own, rank, mask=positive)
        tl.store(places + own, item.to(C), mask=positive)
        tl.debug_barrier()

        values = tl.reshape(moved, [BLOCK // LANES, LANES])
        count = tl.sum(positive.to(tl.int32), 0)
        change = tl.zeros([BLOCK // LANES, LANES], tl.float32)
        for begin in range(0, count, T):
            slot = begin + tl.arange(0, T)
            target = _thresholds(targets, slot, count)
            change += _change(target, _thresholds(thresholds, slot, count), values)
            delta = _ranks(target, values) - tl.load(before + slot, mask=slot < count, other=0)
            place = tl.load(places + slot, mask=slot < count, other=0).to(tl.int64)
            gradient = divide(delta, tl.zeros([T], C) + lam)
            tl.store(out + row * n + place, gradient, mask=slot < count)

        delta = tl.reshape(change, [BLOCK]).to(C)
        gradient = tl.where(a == a, divide(delta, tl.zeros([BLOCK], C) + lam), a)
        gradient = tl.where(present, gradient, 0)
        tl.store(out + row * n + item, gradient, mask=(item < n) & (positive == 0))


# As positive_ranks_kernel.
#
#   losses    lists, float64 or C: of every list
#   counts    lists, int32: its positives. May be None
#   state     lists x (1 + kept), rank dtype: 1, then the ranks of the positives, or zeros
#   scratch   programs x BLOCK, C: thresholds
#
# Bytes moved, an item: the score, 1 or 2 of the masks; a list: 4 (1 + kept).
@triton.jit(
    do_not_specialize=[
        "scores_list",
        "positives_list",
        "where_list",
        "power",
        "kept",
        "lists",
        "n",
    ]
)
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
    power,
    kept,
    scratch,
    lists,
    n,
    BY_LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    T: tl.constexpr,
):
    """The loss of every list, and the state."""
    item = tl.arange(0, BLOCK)
    thresholds = scratch + tl.program_id(0).to(tl.int64) * BLOCK
    C: tl.constexpr = scratch.dtype.element_ty
    for index in range(tl.program_id(0), lists, tl.num_programs(0)):
        row = tl.cast(index, tl.int64)
        at = item.to(tl.int64)
        present = item < n
        if where is not None:
            flags = where + row * where_list + at * where_item
            present = tl.load(flags, mask=present, other=0) != 0
        flags = positives + row * positives_list + at * positives_item
        positive = tl.load(flags, mask=present, other=0) != 0
        a = _scores(scores + row * scores_list + at * scores_item, present)
        own = tl.cumsum(positive.to(tl.int32), 0) - 1
        tl.debug_barrier()  # the last list's scratch has been read
        tl.store(thresholds + own, a, mask=positive)
        tl.debug_barrier()

        # Ranks take the first places of the state, if all of them fit.
        count, length = _sizes(positive, present, where, n, BY_LENGTH)
        used = tl.where(count <= kept, count, 0)
        to = state + row * (1 + kept)
        tl.store(to, 1.0)
        tl.store(to + 1 + item, tl.zeros([BLOCK], C), mask=(item >= used) & (item < kept))

        values = tl.reshape(a, [BLOCK // LANES, LANES])
        total = tl.zeros([T], tl.float64)
        for begin in range(0, count, T):
            slot = begin + tl.arange(0, T)
            rank = _ranks(_thresholds(thresholds, slot, count), values)
            tl.store(to + 1 + slot, rank, mask=slot < used)
            total += tl.where(slot < count, integer_power(rank.to(tl.float64), power), 0)

        scale = integer_power(length, power) * count.to(tl.float64)
        loss = tl.where(count > 0, divide(tl.sum(total, 0), scale), 0)
        tl.store(losses + row, loss.to(losses.dtype.element_ty))
        if counts is not None:
            tl.store(counts + row, count)


# As positive_ranks_backward_kernel, but that positives move by the gradient of the loss.
#
#   grad      lists, of stride grad_list
#   state     lists x (1 + kept), rank dtype, as rankreg_loss_kernel wrote it
#
# Bytes moved, an item: the score, 1 or 2 of the masks, the gradient written; a list: 4 (1 + |P|).
@triton.jit(
    do_not_specialize=[
        "grad_list",
        "scores_list",
        "positives_list",
        "where_list",
        "lam",
        "power",
        "kept",
        "lists",
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
    power,
    kept,
    scratch,
    lists,
    n,
    BY_LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    T: tl.constexpr,
):
    """The gradient of the loss, by the scores."""
    item = tl.arange(0, BLOCK)
    thresholds = scratch + tl.program_id(0).to(tl.int64) * (4 * BLOCK)
    targets = thresholds + BLOCK
    before = targets + BLOCK
    places = before + BLOCK
    C: tl.constexpr = scratch.dtype.element_ty
    lam = read_lam(lam, C)
    for index in range(tl.program_id(0), lists, tl.num_programs(0)):
        row = tl.cast(index, tl.int64)
        at = item.to(tl.int64)
        present = item < n
        if where is not None:
            flags = where + row * where_list + at * where_item
            present = tl.load(flags, mask=present, other=0) != 0
        flags = positives + row * positives_list + at * positives_item
        positive = tl.load(flags, mask=present, other=0) != 0
        a = _scores(scores + row * scores_list + at * scores_item, present)
        own = tl.cumsum(positive.to(tl.int32), 0) - 1
        tl.debug_barrier()  # the last list's scratch has been read
        tl.store(thresholds + own, a, mask=positive)
        tl.store(places + own, item.to(C), mask=positive)
        tl.debug_barrier()

        # Positives move, T at a time: the formula in float64 is for few lanes.
        count, length = _sizes(positive, present, where, n, BY_LENGTH)
        scale = integer_power(length, power - 1) * count.to(tl.float64)
        kept_state = state + row * (1 + kept)
        for begin in range(0, count, T):
            slot = begin + tl.arange(0, T)
            threshold = _thresholds(thresholds, slot, count)
            if count <= kept:
                rank = tl.load(kept_state + 1 + slot, mask=slot < count, other=0)
            else:
                rank = _ranks(threshold, tl.reshape(a, [BLOCK // LANES, LANES]))
            h = tl.cast(power, tl.float64) * integer_power(rank.to(tl.float64), power - 1)
            h = divide(h, tl.zeros([T], tl.float64) + scale).to(C)
            tl.store(targets + slot, perturb(threshold, lam, h, True), mask=slot < count)
            tl.store(before + slot, rank, mask=slot < count)
        tl.debug_barrier()
        moved = tl.where(positive, tl.load(targets + own, mask=positive, other=0), a)

        upstream = divide(tl.load(grad + row * grad_list).to(C), tl.load(kept_state).to(C))
        divisor = (length * lam.to(tl.float64)).to(C)
        values = tl.reshape(moved, [BLOCK // LANES, LANES])
        change = tl.zeros([BLOCK // LANES, LANES], tl.float32)
        for begin in range(0, count, T):
            slot = begin + tl.arange(0, T)
            target = _thresholds(targets, slot, count)
            change += _change(target, _thresholds(thresholds, slot, count), values)
            delta = _ranks(target, values) - tl.load(before + slot, mask=slot < count, other=0)
            place = tl.load(places + slot, mask=slot < count, other=0).to(tl.int64)
            gradient = upstream * divide(delta, tl.zeros([T], C) + divisor)
            tl.store(out + row * n + place, gradient, mask=slot < count)

        delta = tl.reshape(change, [BLOCK]).to(C)
        gradient = upstream * divide(delta, tl.zeros([BLOCK], C) + divisor)
        gradient = tl.where(present, tl.where(a == a, gradient, a), 0)
        tl.store(out + row * n + item, gradient, mask=(item < n) & (positive == 0))


def _launch(kernel, scores: Tensor, rows: int, *args, **options) -> None:
    """`args`, scratch of `rows` x BLOCK for each program, and what follows from the sizes."""
    lists, n = scores.shape
    block = host.power_of_two(n, 16)
    warps = 1
    while warps * tuning.LIST_ITEMS_PER_WARP < block:
        warps *= 2
    most = tuning.LIST_WARPS // warps
    programs = lists if lists < most else most
    dtype = compute_dtype(scores.dtype)
    host.launch(
        kernel,
        programs,
        *args,
        scores.new_empty((programs, rows, block), dtype=dtype),
        lists,
        n,
        BLOCK=block,
        LANES=min(block, 32 * warps),
        T=min(block, tuning.LIST_THRESHOLDS * 4 // dtype.itemsize),
        num_warps=warps,
        **options,
    )


def positive_ranks(scores, positives, lam, lam_tensor, where):
    """``rankreg_ext::positive_ranks`` for n up to tuning.LIST_MOST."""
    out = scores.new_empty(scores.shape, dtype=rank_dtype(scores.dtype, scores.shape[-1]))
    if scores.numel() < 1:
        return out
    scores = host.as_lists(scores)
    _launch(
        positive_ranks_kernel,
        scores,
        2,
        *host.strided(scores),
        *host.strided(host.as_lists(positives)),
        *host.strided(host.as_lists(where)),
        out,
    )
    return out


def positive_ranks_backward(grad, scores, positives, ranks, lam, lam_tensor, where):
    """``rankreg_ext::positive_ranks_backward`` for n up to tuning.LIST_MOST."""
    out = scores.new_empty(scores.shape)
    if scores.numel() < 1:
        return out
    scores = host.as_lists(scores)
    _launch(
        positive_ranks_backward_kernel,
        scores,
        4,
        *host.strided(host.as_lists(grad)),
        *host.strided(scores),
        *host.strided(host.as_lists(positives)),
        *host.strided(host.as_lists(where)),
        ranks.contiguous(),
        host.lam_argument(lam, lam_tensor, scores),
        out,
    )
    return out


def rankreg_loss(scores, positives, lam, lam_tensor, power, normalize, where, reduction):
    """``rankreg_ext::rankreg_loss`` for n up to tuning.LIST_MOST."""
    *batch, n = scores.shape
    dtype = compute_dtype(scores.dtype)
    kept = torch.sym_min(n, _ops.STATE_CAPACITY)
    state = scores.new_empty((*batch, 1 + kept), dtype=rank_dtype(scores.dtype, n))
    shape = batch if reduction == loss_sum.NONE else ()
    if scores.numel() < 1:  # zero, whatever it is divided by
        state.fill_(1)
        return scores.new_zeros(shape, dtype=dtype), state
    scores = host.as_lists(scores)
    lists = scores.shape[0]
    # The losses of the lists are the result, unless there are several to be summed up.
    summed = reduction != loss_sum.NONE and lists > 1
    losses = scores.new_empty(lists, dtype=torch.float64 if summed else dtype)
    counts = scores.new_empty(lists, dtype=torch.int32) if summed else None
    _launch(
        rankreg_loss_kernel,
        scores,
        1,
        *host.strided(scores),
        *host.strided(host.as_lists(positives)),
        *host.strided(host.as_lists(where)),
        losses,
        counts,
        state,
        power,
        kept,
        BY_LENGTH=normalize == LENGTH,
    )
    if summed:
        return loss_sum.finish(losses, counts, reduction, state, dtype), state
    return losses.reshape(shape), state


def rankreg_loss_backward(
    grad, scores, positives, state, lam, lam_tensor, power, normalize, where
) -> Tensor:
    """``rankreg_ext::rankreg_loss_backward`` for n up to tuning.LIST_MOST."""
    out = scores.new_empty(scores.shape)
    if scores.numel() < 1:
        return out
    grad = grad.expand(scores.shape[:-1]).reshape(-1)
    scores = host.as_lists(scores)
    _launch(
        rankreg_loss_backward_kernel,
        scores,
        4,
        grad,
        grad.stride(0),
        *host.strided(scores),
        *host.strided(host.as_lists(positives)),
        *host.strided(host.as_lists(where)),
        state.contiguous(),
        host.lam_argument(lam, lam_tensor, scores),
        out,
        power,
        state.shape[-1] - 1,
        BY_LENGTH=normalize == LENGTH,
    )
    return out
