"""Hinge violations: pairs of a positive and all negatives, or sums along the sorted list.

A pair violates the margin if the negative is above the positive's threshold ``t = a - delta``, in
float64, and then by ``a_k - t``. See :mod:`rankreg_ext._hinge` for the sums along a sorted list.

Nothing is added up by atomics: the order of every sum depends on the lengths alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import _hinge
from ..reference import compute_dtype
from . import host, tuning
from .common import compute_type, read_lam

# --- short lists: a program each, one launch each way ---------------------------------------------
#
# The program holds the list in float64, NaN where no negative is: NaN is above nothing. Its
# positives go to scratch in index order; then HINGE_THRESHOLDS of them at a time meet all items.
# Pairs cost 3 instructions of float64 each, and those with positives are made, too: n |P| in all.
#
#   scores, positives, where   lists x n, strided; where may be None
#   delta                      see common.read_lam
#   out                        lists x n, C; backward the dtype of the scores
#   scratch                    programs x 2 x BLOCK, float64: scores, places (3 x with u, backward)
#   grad                       lists x n, C, strided; read at positives
#
# Bytes moved, an item: the score, 1 or 2 of the masks, 4 or 8 written.

_FREE = ["scores_list", "positives_list", "where_list", "delta", "lists", "n"]


@triton.jit
def _scores(pointers, present):
    """Scores in float64, NaN where none is present."""
    a = tl.load(pointers, mask=present, other=float("nan"))
    return a.to(compute_type(a.dtype)).to(tl.float64)


@triton.jit(do_not_specialize=_FREE)
def hinge_kernel(
    scores,
    scores_list,
    scores_item,
    positives,
    positives_list,
    positives_item,
    where,
    where_list,
    where_item,
    delta,
    out,
    scratch,
    lists,
    n,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    """The sums at the positives, 0 elsewhere."""
    item = tl.arange(0, BLOCK)
    found = scratch + tl.program_id(0).to(tl.int64) * (2 * BLOCK)
    places = found + BLOCK
    margin = read_lam(delta, tl.float64)
    C: tl.constexpr = out.dtype.element_ty
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
        tl.store(found + own, a, mask=positive)
        tl.store(places + own, item.to(tl.float64), mask=positive)
        tl.debug_barrier()
        tl.store(out + row * n + item, tl.zeros([BLOCK], C), mask=(item < n) & (positive == 0))

        negatives = tl.where(positive, float("nan"), a)[None, :]
        count = tl.sum(positive.to(tl.int32), 0)
        for begin in range(0, count, T):
            slot = begin + tl.arange(0, T)
            score = tl.load(found + slot, mask=slot < count, other=float("nan"))
            threshold = (score - margin)[:, None]
            q = tl.sum(tl.where(negatives > threshold, negatives - threshold, 0.0), 1)
            q = tl.where(score == score, q, score)
            place = tl.load(places + slot, mask=slot < count, other=0).to(tl.int64)
            tl.store(out + row * n + place, q.to(C), mask=slot < count)


@triton.jit(do_not_specialize=["grad_list", *_FREE])
def hinge_backward_kernel(
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
    delta,
    out,
    scratch,
    lists,
    n,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
):
    """The gradient at the scores."""
    item = tl.arange(0, BLOCK)
    found = scratch + tl.program_id(0).to(tl.int64) * (3 * BLOCK)
    places = found + BLOCK
    upstream = places + BLOCK
    margin = read_lam(delta, tl.float64)
    D: tl.constexpr = out.dtype.element_ty
    C: tl.constexpr = compute_type(D)
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
        u = tl.load(grad + row * grad_list + at * grad_item, mask=positive, other=0)
        own = tl.cumsum(positive.to(tl.int32), 0) - 1
        tl.debug_barrier()  # the last list's scratch has been read
        tl.store(found + own, a, mask=positive)
        tl.store(places + own, item.to(tl.float64), mask=positive)
        tl.store(upstream + own, u.to(tl.float64), mask=positive)
        tl.debug_barrier()

        negatives = tl.where(positive, float("nan"), a)[None, :]
        gradient = tl.zeros([BLOCK], tl.float64)
        count = tl.sum(positive.to(tl.int32), 0)
        for begin in range(0, count, T):
            slot = begin + tl.arange(0, T)
            score = tl.load(found + slot, mask=slot < count, other=float("nan"))
            u_of = tl.load(upstream + slot, mask=slot < count, other=0)
            violated = negatives > (score - margin)[:, None]
            gradient += tl.sum(tl.where(violated, u_of[:, None], 0.0), 0)
            pairs = tl.sum(violated.to(tl.int32), 1).to(tl.float64)
            back = tl.where(score == score, -u_of * pairs, score)
            place = tl.load(places + slot, mask=slot < count, other=0).to(tl.int64)
            tl.store(out + row * n + place, back.to(C).to(D), mask=slot < count)
        gradient = tl.where(present & (a != a), a, gradient)
        tl.store(out + row * n + item, gradient.to(C).to(D), mask=(item < n) & (positive == 0))


# --- long lists: sorted by threshold, in several launches -----------------------------------------
#
# A list of sorted places is split into chunks of whole blocks, a program each, of which there are
# CHUNKS at most: what the other chunks have found is added up by every program for itself.
#
#   threshold                  lists x n, float64, ascending
#   positives, negatives, nan  lists x n, bool, in that order; nan: of the scores
#   order                      lists x n, int64: where in the list the item is
#   counts, sums               lists x chunks, int32 and float64: of each chunk
#   out                        lists x n, as above; grad strided as above
#   above                      lists x n, int32: negatives at this place and later ones
#   upto                       lists x n, float64: sum of u at this place and earlier ones
#
# Bytes moved, a place: 9 and 9 and 23 with the result forward, 1, 10 with a sector of the gradient,
# and as much again to write above and upto, which 2 log2(n) loads a place then search, from L2.

_SIZES = ["n", "chunks", "blocks"]


@triton.jit
def _others(found, row, chunks, first, last, CHUNKS: tl.constexpr):
    """Sum of what chunks `first` to `last` - 1 of the list have found."""
    chunk = tl.arange(0, CHUNKS)
    inside = (chunk >= first) & (chunk < last)
    return tl.sum(tl.load(found + row * chunks + chunk, mask=inside, other=0), 0)


@triton.jit
def _steps(threshold, negatives, at, n, above):
    """By how much q grows from the place after to these; and the negatives from here on."""
    negative = tl.load(negatives + at, mask=at < n, other=0).to(tl.int32)
    here = tl.load(threshold + at, mask=at + 1 < n, other=0.0)
    gap = tl.load(threshold + at + 1, mask=at + 1 < n, other=0.0) - here
    count = above + tl.cumsum(negative, 0, reverse=True) - negative
    # Elsewhere the gap may be inf - inf, or there is nobody for an infinite one to concern.
    step = tl.fma(gap, count.to(tl.float64), tl.zeros_like(gap))
    step = tl.where((gap > 0) & (count > 0), step, 0.0)
    return step, above + tl.sum(negative, 0)


@triton.jit(do_not_specialize=_SIZES)
def count_kernel(negatives, counts, n, chunks, blocks, BLOCK: tl.constexpr):
    """The negatives of each chunk."""
    row = (tl.program_id(0) // chunks).to(tl.int64)
    begin = (tl.program_id(0) % chunks).to(tl.int64) * (blocks * BLOCK)
    count = tl.zeros([BLOCK], tl.int32)
    for block in range(0, blocks):
        at = begin + block * BLOCK + tl.arange(0, BLOCK)
        count += tl.load(negatives + row * n + at, mask=at < n, other=0).to(tl.int32)
    tl.store(counts + tl.program_id(0), tl.sum(count, 0))


@triton.jit(do_not_specialize=_SIZES)
def step_kernel(
    threshold,
    negatives,
    counts,
    sums,
    n,
    chunks,
    blocks,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """By how much q grows within each chunk."""
    row = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    begin = chunk.to(tl.int64) * (blocks * BLOCK)
    above = _others(counts, row, chunks, chunk + 1, chunks, CHUNKS)
    total = tl.full([], 0.0, tl.float64)
    for block in range(0, blocks):
        at = begin + (blocks - 1 - block) * BLOCK + tl.arange(0, BLOCK)
        step, above = _steps(threshold + row * n, negatives + row * n, at, n, above)
        total += tl.sum(step, 0)
    tl.store(sums + tl.program_id(0), total)


@triton.jit(do_not_specialize=_SIZES)
def q_kernel(
    threshold,
    positives,
    negatives,
    nan,
    order,
    counts,
    sums,
    out,
    n,
    chunks,
    blocks,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """The sums at the positives, 0 elsewhere."""
    row = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    begin = chunk.to(tl.int64) * (blocks * BLOCK)
    above = _others(counts, row, chunks, chunk + 1, chunks, CHUNKS)
    later = _others(sums, row, chunks, chunk + 1, chunks, CHUNKS)
    for block in range(0, blocks):
        at = begin + (blocks - 1 - block) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        step, above = _steps(threshold + row * n, negatives + row * n, at, n, above)
        q = later + tl.cumsum(step, 0, reverse=True)
        later += tl.sum(step, 0)
        absent = tl.load(nan + row * n + at, mask=inside, other=0) != 0
        positive = tl.load(positives + row * n + at, mask=inside, other=0) != 0
        q = tl.where(positive, tl.where(absent, float("nan"), q), 0.0)
        place = tl.load(order + row * n + at, mask=inside, other=0)
        tl.store(out + row * n + place, q.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _upstream(grad, grad_item, positives, nan, order, at, n):
    """The gradient that arrives at the positives among these places, else 0."""
    inside = at < n
    positive = tl.load(positives + at, mask=inside, other=0) != 0
    absent = tl.load(nan + at, mask=inside, other=0) != 0
    place = tl.load(order + at, mask=inside, other=0)
    u = tl.load(grad + place * grad_item, mask=positive & (absent == 0), other=0)
    return u.to(tl.float64)


@triton.jit(do_not_specialize=["grad_list", *_SIZES])
def total_kernel(
    grad,
    grad_list,
    grad_item,
    positives,
    negatives,
    nan,
    order,
    counts,
    sums,
    n,
    chunks,
    blocks,
    BLOCK: tl.constexpr,
):
    """The negatives of each chunk, and its sum of u."""
    row = (tl.program_id(0) // chunks).to(tl.int64)
    begin = (tl.program_id(0) % chunks).to(tl.int64) * (blocks * BLOCK)
    count = tl.zeros([BLOCK], tl.int32)
    total = tl.full([], 0.0, tl.float64)
    for block in range(0, blocks):
        at = begin + block * BLOCK + tl.arange(0, BLOCK)
        count += tl.load(negatives + row * n + at, mask=at < n, other=0).to(tl.int32)
        u = _upstream(
            grad + row * grad_list, grad_item, positives + row * n, nan + row * n, order + row * n,
            at, n,
        )  # fmt: skip
        total += tl.sum(u, 0)
    tl.store(counts + tl.program_id(0), tl.sum(count, 0))
    tl.store(sums + tl.program_id(0), total)


@triton.jit(do_not_specialize=["grad_list", *_SIZES])
def prefix_kernel(
    grad,
    grad_list,
    grad_item,
    positives,
    negatives,
    nan,
    order,
    counts,
    sums,
    above,
    upto,
    n,
    chunks,
    blocks,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """The number of negatives from each place on, and the sum of u up to it."""
    row = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    begin = chunk.to(tl.int64) * (blocks * BLOCK)
    earlier = _others(sums, row, chunks, 0, chunk, CHUNKS)
    # Of the chunk's places, all negatives are at the first one and later.
    rest = _others(counts, row, chunks, chunk, chunks, CHUNKS)
    for block in range(0, blocks):
        at = begin + block * BLOCK + tl.arange(0, BLOCK)
        negative = tl.load(negatives + row * n + at, mask=at < n, other=0).to(tl.int32)
        before = tl.cumsum(negative, 0) - negative
        tl.store(above + row * n + at, rest - before, mask=at < n)
        rest -= tl.sum(negative, 0)
        u = _upstream(
            grad + row * grad_list, grad_item, positives + row * n, nan + row * n, order + row * n,
            at, n,
        )  # fmt: skip
        tl.store(upto + row * n + at, earlier + tl.cumsum(u, 0), mask=at < n)
        earlier += tl.sum(u, 0)


@triton.jit(do_not_specialize=["grad_list", *_SIZES])
def gradient_kernel(
    grad,
    grad_list,
    grad_item,
    threshold,
    positives,
    negatives,
    nan,
    order,
    above,
    upto,
    out,
    n,
    chunks,
    blocks,
    BLOCK: tl.constexpr,
):
    """The gradient at the scores.

    A search for the first place, or for that past the last one, of those with an equal threshold.
    """
    row = (tl.program_id(0) // chunks).to(tl.int64)
    begin = (tl.program_id(0) % chunks).to(tl.int64) * (blocks * BLOCK)
    D: tl.constexpr = out.dtype.element_ty
    threshold += row * n
    for block in range(0, blocks):
        at = begin + block * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        positive = tl.load(positives + row * n + at, mask=inside, other=0) != 0
        negative = tl.load(negatives + row * n + at, mask=inside, other=0) != 0
        absent = tl.load(nan + row * n + at, mask=inside, other=0) != 0
        place = tl.load(order + row * n + at, mask=inside, other=0)
        value = tl.load(threshold + at, mask=inside, other=0.0)
        low = tl.zeros([BLOCK], tl.int32)
        high = low + n
        size = tl.cast(n, tl.int32)
        while size > 0:
            middle = low + (high - low) // 2
            other = tl.load(threshold + middle, mask=low < high, other=0.0)
            lower = (other < value) | (positive & (other == value))
            low, high = (
                tl.where(lower & (low < high), middle + 1, low),
                tl.where(lower, high, middle),
            )
            size = size // 2
        # A threshold that is NaN has found nothing.
        known = value == value
        count = tl.load(above + row * n + low, mask=positive & known & (low < n), other=0)
        below = tl.load(upto + row * n + low - 1, mask=negative & known & (low > 0), other=0.0)
        u = tl.load(grad + row * grad_list + place * grad_item, mask=positive, other=0)
        gradient = tl.where(positive, -u.to(tl.float64) * count.to(tl.float64), below)
        gradient = tl.where(absent, float("nan"), gradient)
        tl.store(out + row * n + place, gradient.to(compute_type(D)).to(D), mask=inside)


# --- host -----------------------------------------------------------------------------------------


def hinge_violations(
    scores: Tensor,
    positives: Tensor,
    delta: float,
    delta_tensor: Tensor | None,
    where: Tensor | None,
) -> Tensor:
    """``rankreg_ext::hinge_violations``."""
    out = scores.new_empty(scores.shape, dtype=compute_dtype(scores.dtype))
    if scores.numel() < 1:
        return out
    scores, positives, where = (host.as_lists(t) for t in (scores, positives, where))
    lists, n = scores.shape
    if n <= tuning.HINGE_MOST:
        _short(hinge_kernel, (), scores, positives, delta, delta_tensor, where, out, rows=2)
        return out
    order, threshold, *flags = _sorted(scores, positives, delta, delta_tensor, where)
    positives, negatives, nan = flags
    shape, chunks, programs = _chunks(lists, n)
    counts = scores.new_empty(programs, dtype=torch.int32)
    sums = scores.new_empty(programs, dtype=torch.float64)
    host.launch(count_kernel, programs, negatives, counts, *shape)
    host.launch(step_kernel, programs, threshold, negatives, counts, sums, *shape, **chunks)
    host.launch(
        q_kernel, programs, threshold, positives, negatives, nan, order, counts, sums, out, *shape,
        **chunks,
    )  # fmt: skip
    return out


def hinge_violations_backward(
    grad: Tensor,
    scores: Tensor,
    positives: Tensor,
    delta: float,
    delta_tensor: Tensor | None,
    where: Tensor | None,
) -> Tensor:
    """``rankreg_ext::hinge_violations_backward``."""
    out = scores.new_empty(scores.shape)
    if scores.numel() < 1:
        return out
    grad, scores, positives, where = (host.as_lists(t) for t in (grad, scores, positives, where))
    lists, n = scores.shape
    if n <= tuning.HINGE_MOST:
        first = host.strided(grad)
        kernel = hinge_backward_kernel
        _short(kernel, first, scores, positives, delta, delta_tensor, where, out, rows=3)
        return out
    order, threshold, *flags = _sorted(scores, positives, delta, delta_tensor, where)
    shape, chunks, programs = _chunks(lists, n)
    counts = scores.new_empty(programs, dtype=torch.int32)
    sums = scores.new_empty(programs, dtype=torch.float64)
    above = scores.new_empty((lists, n), dtype=torch.int32)
    upto = scores.new_empty((lists, n), dtype=torch.float64)
    u = host.strided(grad)
    host.launch(total_kernel, programs, *u, *flags, order, counts, sums, *shape)
    host.launch(
        prefix_kernel, programs, *u, *flags, order, counts, sums, above, upto, *shape, **chunks
    )
    host.launch(gradient_kernel, programs, *u, threshold, *flags, order, above, upto, out, *shape)
    return out


def _short(kernel, first, scores, positives, delta, delta_tensor, where, out, rows) -> None:
    lists, n = scores.shape
    block = host.power_of_two(n, tuning.HINGE_LEAST)
    programs = lists if lists < tuning.HINGE_PROGRAMS else tuning.HINGE_PROGRAMS
    host.launch(
        kernel,
        programs,
        *first,
        *host.strided(scores),
        *host.strided(positives),
        *host.strided(where),
        host.lam_argument(delta, delta_tensor, scores),
        out,
        scores.new_empty(programs * rows * block, dtype=torch.float64),
        lists,
        n,
        BLOCK=block,
        T=tuning.HINGE_THRESHOLDS,
        num_warps=tuning.hinge_warps(block),
    )


def _sorted(scores, positives, delta, delta_tensor, where) -> list[Tensor]:
    """Of :func:`rankreg_ext._hinge.by_threshold`, which keeps the strides of the scores."""
    delta = delta if delta_tensor is None else delta_tensor
    return [x.contiguous() for x in _hinge.by_threshold(scores, positives, where, delta)]


def _chunks(lists, n):
    """The sizes that the kernels of long lists end with, what some take besides, and programs."""
    blocks = host.cdiv(host.cdiv(n, tuning.HINGE_BLOCK), tuning.HINGE_CHUNKS)
    chunks = host.cdiv(n, tuning.HINGE_BLOCK * blocks)
    sizes = (n, chunks, blocks, tuning.HINGE_BLOCK)
    return sizes, {"CHUNKS": tuning.HINGE_CHUNKS}, lists * chunks
