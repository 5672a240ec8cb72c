"""Rare positives of long lists: a list is spread over many programs, and its scores are read once.

    collect   finds the positives: the masks are read, and the output zeroed
    plant     sorts their scores, or the breakpoints of the gradient, in chunks
    count     places every score among those of a chunk, and counts scores by place; backward, the
              gradient by place is written
    finish    adds up the counts, and writes what the positives get

One launch each, and one more for a loss summed over lists. The loss's backward has two more
launches, which end at once unless a list has more positives than the state keeps: there `plant` and
`count` find the ranks again.

The host does not know P, the number of a list's positives. Scratch has room for n of them, of which
P and a chunk are touched, and programs learn P from what collect counted. Counters are integers and
positives stand in index order, so nothing depends on the order of programs.

A list's chunks of CHUNK - 1 positives (CHUNK / 2 - 1 backward, where a positive has two
breakpoints) are taken one after another. Every further chunk costs a score another search and
another count, and forward another read, mostly from L2: correct for every P, and slow for many.

Few positives are not sorted: every score meets each.
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

_SIZES = ("n", "tiles", "blocks", "chunks", "shares", "kept", "least", "power", "lam")


# -------------------------------------------------------------------------------- parts of kernels


@triton.jit
def _read(row, item, start, n, other: tl.constexpr, BLOCK: tl.constexpr):
    """Items start .. start + BLOCK - 1 of a list, ``other`` where it has ended.

    A mask would keep the loads of whole blocks from being vectors.
    """
    i = tl.arange(0, BLOCK)
    at = row + start * item + i.to(tl.int64) * item
    if n - start >= BLOCK:
        block = tl.load(at)
    else:
        block = tl.load(at, mask=i < n - start, other=other)
    return block


@triton.jit
def _write(row, start, n, block, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    if n - start >= BLOCK:
        tl.store(row + start + i, block)
    else:
        tl.store(row + start + i, block, mask=i < n - start)


@triton.jit
def _read_scores(scores, scores_item, where, where_item, start, n, BLOCK: tl.constexpr):
    """Scores in C, and whether they are present; absent ones are -inf, which is above nothing."""
    C: tl.constexpr = compute_type(scores.dtype.element_ty)
    x = _read(scores, scores_item, start, n, float("-inf"), BLOCK).to(C)
    if where is not None:
        present = _read(where, where_item, start, n, 0, BLOCK) != 0
        x = tl.where(present, x, float("-inf"))
    else:
        present = tl.full([BLOCK], 1, tl.int1)
    return x, present


@triton.jit
def _first_step(size):
    """The first step of a search among ``size`` > 0: a power of two, and twice it is above size."""
    step = size * 0 + 1
    while step * 2 <= size:
        step = step * 2
    return step


@triton.jit
def _place(table, x, step, EQUAL: tl.constexpr):
    """How many of an ascending table are below x, or not above it: #{t < x}, or #{t <= x}.

    Without branches, of a table that has 2 step - 1 entries or more. 0 for NaN.
    """
    place = tl.zeros(x.shape, tl.int32)
    while step > 0:
        t = tl.load(table + (place + (step - 1)))
        if EQUAL:
            place += tl.where(t <= x, step, 0)
        else:
            place += tl.where(t < x, step, 0)
        step = step // 2
    return place


@triton.jit
def _add_bins(bins, counts, BINS: tl.constexpr):
    tl.atomic_add(bins + tl.arange(0, BINS), counts, mask=counts > 0, sem="relaxed")


@triton.jit
def _after(bins, BINS: tl.constexpr):
    """What was counted in the bins after each."""
    counts = tl.load(bins + tl.arange(0, BINS))
    return tl.sum(counts, 0) - tl.cumsum(counts, 0)


@triton.jit
def _tile_range(tile, n, blocks, BLOCK: tl.constexpr):
    first = tile * blocks
    # Not n + BLOCK - 1, which may be above 2^31.
    return first, tl.minimum(first + blocks, (n - 1) // BLOCK + 1)


@triton.jit
def _tile_counts(counts, list, tiles, TILES: tl.constexpr):
    """How many positives each tile of a list has, and how many it and all before it have."""
    tile = tl.arange(0, TILES)
    count = tl.load(counts + list * tiles + tile, mask=tile < tiles, other=0)
    return count, tl.cumsum(count, 0)


@triton.jit
def _items(index, count, upto, base, blocks, valid, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """The items that are a list's positives base .. base + CHUNK - 1, where valid.

    A positive's tile is the number of tiles that have ended before it.
    """
    ends = tl.minimum(tl.maximum(upto - base, 0), CHUNK).to(tl.int32)
    tile = tl.cumsum(tl.histogram(ends, CHUNK, mask=ends < CHUNK), 0)
    before = tl.gather(upto - count, tl.minimum(tile, upto.shape[0] - 1), 0)
    at = tile.to(tl.int64) * blocks * BLOCK + (base + tl.arange(0, CHUNK) - before)
    return tl.load(index + at, mask=valid, other=0)


# ----------------------------------------------------------------------------------------- collect


# Program (list, tile). Finds a tile's positives, in a segment of `index` that begins where the tile
# does.
#
#   positives, where   lists x n        bool, any strides
#   index              lists x n        int32, item of each positive
#   counts             lists x tiles    int32, positives
#   present            lists x tiles    int32, unmasked items, or None
#   zeros              lists x n        any type, zeroed, or None
#
# Bytes moved, per item: 1, 1 more with a mask, and the zeros.
@triton.jit(do_not_specialize=_SIZES)
def collect_kernel(
    positives,
    positives_list,
    positives_item,
    where,
    where_list,
    where_item,
    index,
    counts,
    present,
    zeros,
    zeros_list,
    n,
    tiles,
    blocks,
    BLOCK: tl.constexpr,
):
    """Find the positives of every tile."""
    list = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    positives += list * positives_list
    if where is not None:
        where += list * where_list
    if zeros is not None:
        zeros += list * zeros_list
    i = tl.arange(0, BLOCK)
    found = tile * 0
    seen = tile * 0
    first, last = _tile_range(tile, n, blocks, BLOCK)
    segment = index + list * n + first.to(tl.int64) * BLOCK
    for b in range(first, last):
        start = tl.cast(b, tl.int64) * BLOCK
        # Loads of this kernel's own, as torch, which looks for tensors that are written to, takes
        # those of functions for part of the addresses below.
        at = start + i
        whole = n - start >= BLOCK
        if whole:
            flag = tl.load(positives + at * positives_item)
        else:
            flag = tl.load(positives + at * positives_item, mask=at < n, other=0)
        flag = (flag != 0).to(tl.int32)
        if where is not None:
            if whole:
                unmasked = tl.load(where + at * where_item)
            else:
                unmasked = tl.load(where + at * where_item, mask=at < n, other=0)
            unmasked = (unmasked != 0).to(tl.int32)
            flag = flag & unmasked
            if present is not None:
                seen += tl.sum(unmasked, 0)
        if zeros is not None:
            _write(zeros, start, n, tl.zeros([BLOCK], zeros.dtype.element_ty), BLOCK)
        here = tl.sum(flag, 0)
        if here > 0:
            slot = found + tl.cumsum(flag, 0) - flag
            tl.store(segment + slot, at.to(tl.int32), mask=flag > 0)
        found += here
    tl.store(counts + list * tiles + tile, found)
    if present is not None:
        tl.store(present + list * tiles + tile, seen)


# ----------------------------------------------------------------------------------------- forward


@triton.jit
def _plant(
    scores,
    scores_item,
    index,
    count,
    upto,
    chosen,
    table,
    bins,
    base,
    size,
    blocks,
    FEW: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A chunk from positive ``base`` on, of less than WIDTH positives. All pointers are its own."""
    C: tl.constexpr = compute_type(scores.dtype.element_ty)
    j = tl.arange(0, WIDTH)
    valid = (j < CHUNK - 1) & (j < size - base)
    item = _items(index, count, upto, base, blocks, valid, WIDTH, BLOCK)
    if chosen is not None:
        tl.store(chosen + j, item, mask=valid)
    a = tl.load(scores + item.to(tl.int64) * scores_item, mask=valid, other=0).to(C)
    a = tl.where(valid & (a == a), a, float("inf"))
    if size > FEW:
        a = tl.sort(a)
    tl.store(table + j, a)
    tl.store(bins + j, tl.zeros([WIDTH], tl.int32))
    if WIDTH < CHUNK:
        k = tl.arange(0, CHUNK)
        tl.store(table + k, tl.full([CHUNK], float("inf"), C), mask=k >= WIDTH)
        tl.store(bins + k, tl.zeros([CHUNK], tl.int32), mask=k >= WIDTH)


# Program (list, share): chunks share, share + shares, ... of the list's.
#
#   scores           lists x n
#   index, counts    of collect
#   chosen           lists x n                 int32, items of the positives in index order, or None
#   total            lists                     int32, P
#   table            lists x chunks x CHUNK    C, CHUNK - 1 thresholds, ascending, and inf behind
#                                              them; in index order if there are few; NaN as inf
#   bins             lists x chunks x CHUNK    int32, zeroed
#
# Nothing but `total` is written for a list of no more than `least` positives; NARROW and FEW are 0
# where that is never few.
# Bytes moved, per positive: 16, and a score, which costs a sector of 32.
@triton.jit(do_not_specialize=_SIZES)
def plant_kernel(
    scores,
    scores_list,
    scores_item,
    index,
    counts,
    chosen,
    total,
    table,
    bins,
    n,
    tiles,
    blocks,
    chunks,
    shares,
    least,
    FEW: tl.constexpr,
    NARROW: tl.constexpr,
    CHUNK: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sort the scores of a list's positives, chunk by chunk."""
    list = (tl.program_id(0) // shares).to(tl.int64)
    share = tl.program_id(0) % shares
    count, upto = _tile_counts(counts, list, tiles, TILES)
    size = tl.sum(count, 0)
    if share == 0:
        tl.store(total + list, size)
    if size > least:
        scores += list * scores_list
        index += list * n
        table += list * chunks * CHUNK
        bins += list * chunks * CHUNK
        if chosen is not None:
            chosen += list * n
        if NARROW > 0:
            if (size < NARROW) & (share == 0):
                _plant(
                    scores,
                    scores_item,
                    index,
                    count,
                    upto,
                    chosen,
                    table,
                    bins,
                    tl.full((), 0, tl.int64),
                    size,
                    blocks,
                    FEW,
                    NARROW,
                    CHUNK,
                    BLOCK,
                )
        if size >= NARROW:
            for chunk in range(share, (size + CHUNK - 2) // (CHUNK - 1), shares):
                base = tl.cast(chunk, tl.int64) * (CHUNK - 1)
                at = tl.cast(chunk, tl.int64) * CHUNK
                _plant(
                    scores,
                    scores_item,
                    index,
                    count,
                    upto,
                    chosen if chosen is None else chosen + base,
                    table + at,
                    bins + at,
                    base,
                    size,
                    blocks,
                    0,
                    CHUNK,
                    CHUNK,
                    BLOCK,
                )


@triton.jit
def _count_few(
    scores,
    scores_item,
    where,
    where_item,
    table,
    bins,
    first,
    last,
    n,
    FEW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add to bins the scores of a tile above each of the first FEW thresholds of a table."""
    threshold = tl.load(table + tl.arange(0, FEW))
    above = tl.zeros([FEW], tl.int32)
    for b in range(first, last):
        start = tl.cast(b, tl.int64) * BLOCK
        x, _ = _read_scores(scores, scores_item, where, where_item, start, n, BLOCK)
        above += tl.sum((x[None, :] > threshold[:, None]).to(tl.int32), 1)
    _add_bins(bins, above, FEW)


@triton.jit
def _count_places(
    scores,
    scores_item,
    where,
    where_item,
    table,
    bins,
    size,
    first,
    last,
    n,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add to bins the scores of a tile by place in a table of ``size`` < BINS thresholds.

    Place 0, of most scores, is nobody's to ask for.
    """
    lowest = tl.load(table)
    step = _first_step(size)
    counts = tl.zeros([BINS], tl.int32)
    for b in range(first, last):
        start = tl.cast(b, tl.int64) * BLOCK
        x, _ = _read_scores(scores, scores_item, where, where_item, start, n, BLOCK)
        above = x > lowest
        if tl.max(above.to(tl.int32), 0) > 0:
            counts += tl.histogram(_place(table, x, step, False), BINS, mask=above)
    _add_bins(bins, counts, BINS)


# Program (list, tile). Counts the scores of a tile above the positives.
#
#   scores, where         lists x n, any strides
#   total, table, bins    of plant. bins[k] += scores above threshold k if there are few; else
#                         scores by place, the number of the chunk's thresholds below them
#
# Nothing is done for a list of no more than `least` positives.
# Bytes moved, per item: the score, 1 with a mask, per chunk; nothing without a positive.
@triton.jit(do_not_specialize=_SIZES)
def count_kernel(
    scores,
    scores_list,
    scores_item,
    where,
    where_list,
    where_item,
    total,
    table,
    bins,
    n,
    tiles,
    blocks,
    chunks,
    least,
    FEW: tl.constexpr,
    NARROW: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count the scores of every tile above the positives."""
    list = (tl.program_id(0) // tiles).to(tl.int64)
    size = tl.load(total + list)
    if size > least:
        scores += list * scores_list
        if where is not None:
            where += list * where_list
        table += list * chunks * CHUNK
        bins += list * chunks * CHUNK
        first, last = _tile_range(tl.program_id(0) % tiles, n, blocks, BLOCK)
        if NARROW > 0:
            if size <= FEW:
                _count_few(
                    scores,
                    scores_item,
                    where,
                    where_item,
                    table,
                    bins,
                    first,
                    last,
                    n,
                    FEW,
                    BLOCK,
                )
            elif size < NARROW:
                _count_places(
                    scores,
                    scores_item,
                    where,
                    where_item,
                    table,
                    bins,
                    size,
                    first,
                    last,
                    n,
                    NARROW,
                    BLOCK,
                )
        if size >= NARROW:
            for chunk in range(0, (size + CHUNK - 2) // (CHUNK - 1)):
                at = tl.cast(chunk, tl.int64) * CHUNK
                rest = size - tl.cast(chunk, tl.int64) * (CHUNK - 1)
                _count_places(
                    scores,
                    scores_item,
                    where,
                    where_item,
                    table + at,
                    bins + at,
                    tl.minimum(rest, CHUNK - 1).to(tl.int32),
                    first,
                    last,
                    n,
                    CHUNK,
                    BLOCK,
                )


@triton.jit
def _count_above(a, table, bins, size, FEW: tl.constexpr, CHUNK: tl.constexpr):
    """How many scores are above each positive of a chunk, ``a`` in index order."""
    if size <= FEW:
        above = tl.load(bins + tl.arange(0, a.shape[0]))
    else:
        place = _place(table, a, tl.full((), CHUNK // 2, tl.int32), False)
        above = tl.gather(_after(bins, CHUNK), place, 0)
    return above


# Program (list, share): chunks share, share + shares, ... of the list's.
#
#   scores           lists x n
#   chosen, total, table, bins    of plant and count
#   ranks            lists x n, contiguous, zeroed; written at the positives
#
# Bytes moved, per positive: 12, a score and a rank, which cost a sector each.
@triton.jit(do_not_specialize=_SIZES)
def finish_ranks_kernel(
    scores,
    scores_list,
    scores_item,
    chosen,
    total,
    table,
    bins,
    ranks,
    n,
    chunks,
    shares,
    FEW: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the ranks of a list's positives."""
    C: tl.constexpr = compute_type(scores.dtype.element_ty)
    R: tl.constexpr = ranks.dtype.element_ty
    list = (tl.program_id(0) // shares).to(tl.int64)
    share = tl.program_id(0) % shares
    size = tl.load(total + list)
    if size > share * (CHUNK - 1):
        scores += list * scores_list
        j = tl.arange(0, CHUNK)
        for chunk in range(share, (size + CHUNK - 2) // (CHUNK - 1), shares):
            base = tl.cast(chunk, tl.int64) * (CHUNK - 1)
            valid = (j < CHUNK - 1) & (j < size - base)
            item = tl.load(chosen + list * n + base + j, mask=valid, other=0)
            a = tl.load(scores + item.to(tl.int64) * scores_item, mask=valid, other=0).to(C)
            at = (list * chunks + chunk) * CHUNK
            above = _count_above(a, table + at, bins + at, size, FEW, CHUNK)
            rank = tl.where(a == a, (1 + above).to(R), float("nan"))
            tl.store(ranks + list * n + item, rank, mask=valid)


@triton.jit
def _length(present, list, n, tiles, BY_LENGTH: tl.constexpr, TILES: tl.constexpr):
    """Z, the number of a list's unmasked items, or 1: float64."""
    if BY_LENGTH:
        if present is not None:
            tile = tl.arange(0, TILES)
            unmasked = tl.load(present + list * tiles + tile, mask=tile < tiles, other=0)
            length = tl.sum(unmasked, 0).to(tl.float64)
        else:
            length = tl.cast(n, tl.float64)
    else:
        length = tl.full((), 1, tl.float64)
    return length


# Program: a list. R = sum of r^p / (Z^p P), in float64.
#
#   present    of collect, or None
#   losses     lists                float64 or C
#   state      lists x (1 + kept)   rank dtype: 1, the ranks in index order if they have room, zeros
#
# Bytes moved: those of finish_ranks_kernel, and the state.
@triton.jit(do_not_specialize=_SIZES)
def finish_loss_kernel(
    scores,
    scores_list,
    scores_item,
    chosen,
    present,
    total,
    table,
    bins,
    losses,
    state,
    n,
    tiles,
    chunks,
    kept,
    power,
    BY_LENGTH: tl.constexpr,
    FEW: tl.constexpr,
    CHUNK: tl.constexpr,
    TILES: tl.constexpr,
):
    """Write a list's loss and state."""
    C: tl.constexpr = compute_type(scores.dtype.element_ty)
    R: tl.constexpr = state.dtype.element_ty
    list = tl.program_id(0).to(tl.int64)
    size = tl.load(total + list)
    j = tl.arange(0, CHUNK)
    state += list * (kept + 1) + 1
    tl.store(state - 1, tl.full((), 1, R))
    saved = tl.where(size <= kept, size, 0)  # all of them, or none
    for begin in range(0, kept, CHUNK):
        unused = (begin + j >= saved) & (begin + j < kept)
        tl.store(state + begin + j, tl.zeros([CHUNK], R), mask=unused)
    sums = tl.zeros([CHUNK], tl.float64)
    if size > 0:
        scores += list * scores_list
        for chunk in range(0, (size + CHUNK - 2) // (CHUNK - 1)):
            base = tl.cast(chunk, tl.int64) * (CHUNK - 1)
            valid = (j < CHUNK - 1) & (j < size - base)
            item = tl.load(chosen + list * n + base + j, mask=valid, other=0)
            a = tl.load(scores + item.to(tl.int64) * scores_item, mask=valid, other=0).to(C)
            at = (list * chunks + chunk) * CHUNK
            above = _count_above(a, table + at, bins + at, size, FEW, CHUNK)
            rank = tl.where(a == a, (1 + above).to(tl.float64), float("nan"))
            tl.store(state + base + j, rank.to(R), mask=valid & (j < saved - base))
            sums += tl.where(valid, integer_power(rank, power), 0)
    length = _length(present, list, n, tiles, BY_LENGTH, TILES)
    scale = integer_power(length, power) * tl.maximum(size, 1).to(tl.float64)
    loss = tl.where(size > 0, divide(tl.sum(sums, 0), scale), 0)
    tl.store(losses + list, loss.to(losses.dtype.element_ty))


# ---------------------------------------------------------------------------------------- backward
#
# With A the positives' scores, and A+ what they move to, D(x) = #{A+ > x} - #{A > x} is how far an
# item of score x moves. A chunk has up to HALF - 1 positives, and CHUNK = 2 HALF breakpoints, those
# of A and of A+, ascending, inf behind them. D is known for every interval between two breakpoints
# and for every breakpoint: an item that has found its place, the number of breakpoints below it,
# looks whether it equals the next one, and then reads D, packed in one word with #{A+ < x}, the bin
# it is counted in for the sake of #{scores > a+}.


@triton.jit
def _moves(
    grad,
    grad_item,
    scores,
    scores_item,
    ranks,
    ranks_item,
    table,
    bins,
    item,
    valid,
    chunk,
    size,
    length,
    lam,
    kept,
    power,
    LOSS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
):
    """The scores, ranks and moved scores of a chunk's positives, which are ``item`` where valid.

    All pointers are those of a list. ``ranks`` are of its items, or, of a loss, those kept from the
    forward pass; ``table`` and ``bins`` are where they have been counted again.
    """
    C: tl.constexpr = compute_type(scores.dtype.element_ty)
    j = tl.arange(0, WIDTH)
    a = tl.load(scores + item.to(tl.int64) * scores_item, mask=valid, other=0).to(C)
    if LOSS:
        if size <= kept:
            base = tl.cast(chunk, tl.int64) * (HALF - 1)
            known = tl.load(ranks + base + j, mask=valid, other=1).to(tl.float64)
            # That of a NaN score is NaN, which is no integer.
            rank = tl.where(known == known, known, 1).to(tl.int32)
        else:
            at = tl.cast(chunk, tl.int64) * HALF
            rank = 1 + _count_above(a, table + at, bins + at, size, 0, HALF)
        raised = integer_power(rank.to(tl.float64), power - 1) * tl.cast(power, tl.float64)
        scale = integer_power(length, power - 1) * size.to(tl.float64)
        g = divide(raised, scale).to(C)
    else:
        at = item.to(tl.int64)
        known = tl.load(ranks + at * ranks_item, mask=valid, other=1).to(tl.float64)
        rank = tl.where(known == known, known, 1).to(tl.int32)
        g = tl.load(grad + at * grad_item, mask=valid, other=0).to(C)
    return a, rank, perturb(a, lam, g, True)


@triton.jit
def _plant_steps(
    grad,
    grad_item,
    scores,
    scores_item,
    ranks,
    ranks_item,
    known_table,
    known_bins,
    index,
    count,
    upto,
    chosen,
    table,
    packed,
    bins,
    chunk,
    size,
    length,
    lam,
    kept,
    power,
    blocks,
    LOSS: tl.constexpr,
    FEW: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A chunk of less than WIDTH positives; all pointers are those of its list."""
    C: tl.constexpr = compute_type(scores.dtype.element_ty)
    CHUNK: tl.constexpr = 2 * HALF
    j = tl.arange(0, WIDTH)
    base = tl.cast(chunk, tl.int64) * (HALF - 1)
    valid = (j < HALF - 1) & (j < size - base)
    item = _items(index, count, upto, base, blocks, valid, WIDTH, BLOCK)
    tl.store(chosen + base + j, item, mask=valid)
    a, _rank, moved = _moves(
        grad,
        grad_item,
        scores,
        scores_item,
        ranks,
        ranks_item,
        known_table,
        known_bins,
        item,
        valid,
        chunk,
        size,
        length,
        lam,
        kept,
        power,
        LOSS,
        WIDTH,
        HALF,
    )
    # NaN is above nothing.
    a = tl.where(valid, tl.where(a == a, a, float("-inf")), float("inf"))
    moved = tl.where(valid, tl.where(moved == moved, moved, float("-inf")), float("inf"))
    both = tl.trans(tl.join(a, moved))
    table += tl.cast(chunk, tl.int64) * CHUNK
    packed += tl.cast(chunk, tl.int64) * CHUNK
    bins += tl.cast(chunk, tl.int64) * HALF
    k = tl.arange(0, 2 * WIDTH)
    if size > FEW:
        tl.store(table + k, tl.reshape(tl.sort(both), [2 * WIDTH]))
        tl.debug_barrier()
        # Read again: where v goes depends on it, and torch would take all that v was made of for
        # written to.
        v = tl.load(table + k)
        step = tl.full((), WIDTH // 2, tl.int32)
        below = _place(table, v, step, False)
        upto_v = _place(table, v, step, True)
        below_moved = _place(table + WIDTH, v, step, False)
        upto_moved = _place(table + WIDTH, v, step, True)
        # The search of WIDTH - 1 stops short of the last inf.
        last = v == float("inf")
        upto_v = tl.where(last, WIDTH, upto_v)
        upto_moved = tl.where(last, WIDTH, upto_moved)
        tl.debug_barrier()
        # Of equal breakpoints those of A come first.
        tl.store(table + tl.where(k < WIDTH, k + below_moved, k - WIDTH + upto_v), v)
        # Equal breakpoints write the same word, where a search among them ends.
        word = below - below_moved + HALF
        word = word | (upto_v - upto_moved + HALF) * CHUNK
        word = word | below_moved * CHUNK * CHUNK
        tl.store(packed + below + below_moved, word)
        if WIDTH < HALF:
            rest = tl.arange(0, CHUNK)
            tl.store(table + rest, tl.full([CHUNK], float("inf"), C), mask=rest >= 2 * WIDTH)
    else:
        tl.store(table + k, tl.reshape(both, [2 * WIDTH]))
    tl.store(bins + tl.arange(0, HALF), tl.zeros([HALF], tl.int32))


# Program (list, share): chunks share, share + shares, ... of the list's.
#
#   grad, scores, ranks    lists x n, any strides; for a loss grad is None, and ranks the state,
#                          lists x (1 + kept)
#   known_table, known_bins   of the recount, lists x chunks x HALF, or None
#   index, counts, present    of collect
#   chosen                 lists x n                 int32, items of the positives in index order
#   total                  lists                     int32, P
#   table                  lists x chunks x CHUNK    C, breakpoints, ascending; of few positives A
#                                                    and, from NARROW on, A+
#   packed                 lists x chunks x CHUNK    int32, by place: D above the breakpoint before,
#                                                    D at this one, and #{A+ < x}
#   bins                   lists x chunks x HALF     int32, zeroed
#
# Bytes moved, per positive: about 80, most of them between registers and L1.
@triton.jit(do_not_specialize=_SIZES)
def plant_steps_kernel(
    grad,
    grad_list,
    grad_item,
    scores,
    scores_list,
    scores_item,
    ranks,
    ranks_list,
    ranks_item,
    known_table,
    known_bins,
    index,
    counts,
    present,
    chosen,
    total,
    table,
    packed,
    bins,
    lam,
    n,
    tiles,
    blocks,
    chunks,
    shares,
    kept,
    power,
    LOSS: tl.constexpr,
    BY_LENGTH: tl.constexpr,
    FEW: tl.constexpr,
    NARROW: tl.constexpr,
    HALF: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sort the breakpoints of a list's gradient, chunk by chunk."""
    C: tl.constexpr = compute_type(scores.dtype.element_ty)
    list = (tl.program_id(0) // shares).to(tl.int64)
    share = tl.program_id(0) % shares
    count, upto = _tile_counts(counts, list, tiles, TILES)
    size = tl.sum(count, 0)
    if share == 0:
        tl.store(total + list, size)
    if size > share * (HALF - 1):
        if grad is not None:
            grad += list * grad_list
        scores += list * scores_list
        ranks += list * ranks_list
        index += list * n
        chosen += list * n
        table += list * chunks * 2 * HALF
        packed += list * chunks * 2 * HALF
        bins += list * chunks * HALF
        if known_table is not None:
            known_table += list * chunks * HALF
            known_bins += list * chunks * HALF
        length = _length(present, list, n, tiles, BY_LENGTH, TILES)
        move = read_lam(lam, C)
        if (size < NARROW) & (share == 0):
            _plant_steps(
                grad,
                grad_item,
                scores,
                scores_item,
                ranks,
                ranks_item,
                known_table,
                known_bins,
                index,
                count,
                upto,
                chosen,
                table,
                packed,
                bins,
                share,
                size,
                length,
                move,
                kept,
                power,
                blocks,
                LOSS,
                FEW,
                NARROW,
                HALF,
                BLOCK,
            )
        if size >= NARROW:
            for chunk in range(share, (size + HALF - 2) // (HALF - 1), shares):
                _plant_steps(
                    grad,
                    grad_item,
                    scores,
                    scores_item,
                    ranks,
                    ranks_item,
                    known_table,
                    known_bins,
                    index,
                    count,
                    upto,
                    chosen,
                    table,
                    packed,
                    bins,
                    chunk,
                    size,
                    length,
                    move,
                    kept,
                    power,
                    blocks,
                    LOSS,
                    0,
                    HALF,
                    HALF,
                    BLOCK,
                )


@triton.jit
def _step_of(table, packed, x, step, CHUNK: tl.constexpr):
    """D(x), and #{A+ < x}, of one chunk."""
    place = _place(table, x, step, False)
    word = tl.load(packed + place).to(tl.uint32, bitcast=True)
    at = tl.load(table + place) == x
    steps = (tl.where(at, word // CHUNK, word) % CHUNK).to(tl.int32) - CHUNK // 2
    return steps, (word // (CHUNK * CHUNK)).to(tl.int32)


@triton.jit
def _write_gradient(out, start, n, x, present, steps, divisor, upstream, BLOCK: tl.constexpr):
    """Write upstream * (D / divisor), NaN for NaN, and 0 for what is absent."""
    g = upstream * divide(steps.to(x.dtype), divisor)
    g = tl.where(present, tl.where(x == x, g, float("nan")), 0)
    _write(out, start, n, g.to(out.dtype.element_ty), BLOCK)


@triton.jit
def _step_few(
    scores,
    scores_item,
    where,
    where_item,
    table,
    bins,
    out,
    divisor,
    upstream,
    size,
    first,
    last,
    n,
    FEW: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    k = tl.arange(0, FEW)
    a = tl.load(table + k, mask=k < size, other=float("inf"))
    moved = tl.load(table + NARROW + k, mask=k < size, other=float("inf"))
    counts = tl.zeros([FEW], tl.int32)
    for b in range(first, last):
        start = tl.cast(b, tl.int64) * BLOCK
        x, present = _read_scores(scores, scores_item, where, where_item, start, n, BLOCK)
        counts += tl.sum((x[None, :] > moved[:, None]).to(tl.int32), 1)
        more = (moved[:, None] > x[None, :]).to(tl.int32)
        steps = tl.sum(more - (a[:, None] > x[None, :]).to(tl.int32), 0)
        _write_gradient(out, start, n, x, present, steps, divisor, upstream, BLOCK)
    _add_bins(bins, counts, FEW)


@triton.jit
def _step_places(
    scores,
    scores_item,
    where,
    where_item,
    table,
    packed,
    bins,
    out,
    divisor,
    upstream,
    size,
    first,
    last,
    n,
    BINS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """For ``size`` positives: any number if BINS = HALF, else less than BINS."""
    CHUNK: tl.constexpr = 2 * HALF
    chunks = (size + HALF - 2) // (HALF - 1)
    counts = tl.zeros([BINS], tl.int32)
    for b in range(first, last):
        start = tl.cast(b, tl.int64) * BLOCK
        x, present = _read_scores(scores, scores_item, where, where_item, start, n, BLOCK)
        steps = tl.zeros([BLOCK], tl.int32)
        for chunk in range(0, chunks):
            at = tl.cast(chunk, tl.int64) * CHUNK
            # Nothing below the lowest breakpoint moves, nor counts.
            some = x >= tl.load(table + at)
            if tl.max(some.to(tl.int32), 0) > 0:
                rest = size - tl.cast(chunk, tl.int64) * (HALF - 1)
                step = _first_step(2 * tl.minimum(rest, HALF - 1).to(tl.int32))
                more, bin = _step_of(table + at, packed + at, x, step, CHUNK)
                steps += tl.where(some, more, 0)
                counts += tl.histogram(bin, BINS, mask=some & (bin > 0))
                if chunks > 1:
                    _add_bins(bins + tl.cast(chunk, tl.int64) * HALF, counts, BINS)
                    counts = tl.zeros([BINS], tl.int32)
        _write_gradient(out, start, n, x, present, steps, divisor, upstream, BLOCK)
    if chunks == 1:
        _add_bins(bins, counts, BINS)


@triton.jit
def _scales(
    upstream,
    upstream_list,
    state,
    state_list,
    present,
    lam,
    list,
    n,
    tiles,
    C: tl.constexpr,
    BY_LENGTH: tl.constexpr,
    TILES: tl.constexpr,
):
    """What D is divided by, and then multiplied by."""
    divisor = read_lam(lam, C)
    scale = tl.full((), 1, C)
    if upstream is not None:
        length = _length(present, list, n, tiles, BY_LENGTH, TILES)
        divisor = (length * divisor.to(tl.float64)).to(C)
        scale = tl.load(upstream + list * upstream_list).to(C)
        scale = divide(scale, tl.load(state + list * state_list).to(C))
    return divisor, scale


# Program (list, tile). Writes the gradient as of a list of negatives, and counts scores above A+.
#
#   scores, where           lists x n, any strides
#   upstream                lists, any stride, or None where there is no loss
#   state                   lists x (1 + kept): what the reduction divided by, in column 0
#   total, table, packed, bins    of plant_steps
#   out                     lists x n, contiguous, of the scores' type
#
# Bytes moved, per item: the score and its gradient, 1 with a mask.
@triton.jit(do_not_specialize=_SIZES)
def step_kernel(
    scores,
    scores_list,
    scores_item,
    where,
    where_list,
    where_item,
    upstream,
    upstream_list,
    state,
    state_list,
    present,
    total,
    table,
    packed,
    bins,
    out,
    out_list,
    lam,
    n,
    tiles,
    blocks,
    chunks,
    BY_LENGTH: tl.constexpr,
    FEW: tl.constexpr,
    NARROW: tl.constexpr,
    HALF: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradient of negatives, and count scores above A+."""
    C: tl.constexpr = compute_type(scores.dtype.element_ty)
    list = (tl.program_id(0) // tiles).to(tl.int64)
    size = tl.load(total + list)
    divisor, scale = _scales(
        upstream,
        upstream_list,
        state,
        state_list,
        present,
        lam,
        list,
        n,
        tiles,
        C,
        BY_LENGTH,
        TILES,
    )
    scores += list * scores_list
    if where is not None:
        where += list * where_list
    out += list * out_list
    table += list * chunks * 2 * HALF
    packed += list * chunks * 2 * HALF
    bins += list * chunks * HALF
    first, last = _tile_range(tl.program_id(0) % tiles, n, blocks, BLOCK)
    if size <= FEW:
        _step_few(
            scores,
            scores_item,
            where,
            where_item,
            table,
            bins,
            out,
            divisor,
            scale,
            size,
            first,
            last,
            n,
            FEW,
            NARROW,
            BLOCK,
        )
    elif size < NARROW:
        _step_places(
            scores,
            scores_item,
            where,
            where_item,
            table,
            packed,
            bins,
            out,
            divisor,
            scale,
            size,
            first,
            last,
            n,
            NARROW,
            HALF,
            BLOCK,
        )
    else:
        _step_places(
            scores,
            scores_item,
            where,
            where_item,
            table,
            packed,
            bins,
            out,
            divisor,
            scale,
            size,
            first,
            last,
            n,
            HALF,
            HALF,
            BLOCK,
        )


# Program (list, share): chunks share, share + shares, ... of the list's. The gradient of positives:
# r' = 1 + #{scores > a+} + D(a+), of which step has counted the first.
#
#   as plant_steps and step; out is written at the positives
#
# Bytes moved, per positive: about 40, and D of every chunk is looked up.
@triton.jit(do_not_specialize=_SIZES)
def finish_steps_kernel(
    grad,
    grad_list,
    grad_item,
    scores,
    scores_list,
    scores_item,
    ranks,
    ranks_list,
    ranks_item,
    known_table,
    known_bins,
    upstream,
    upstream_list,
    state,
    state_list,
    present,
    chosen,
    total,
    table,
    packed,
    bins,
    out,
    lam,
    n,
    tiles,
    chunks,
    shares,
    kept,
    power,
    LOSS: tl.constexpr,
    BY_LENGTH: tl.constexpr,
    FEW: tl.constexpr,
    NARROW: tl.constexpr,
    HALF: tl.constexpr,
    TILES: tl.constexpr,
):
    """Write the gradient of a list's positives."""
    C: tl.constexpr = compute_type(scores.dtype.element_ty)
    CHUNK: tl.constexpr = 2 * HALF
    list = (tl.program_id(0) // shares).to(tl.int64)
    share = tl.program_id(0) % shares
    size = tl.load(total + list)
    if size > share * (HALF - 1):
        j = tl.arange(0, HALF)
        if grad is not None:
            grad += list * grad_list
        if known_table is not None:
            known_table += list * chunks * HALF
            known_bins += list * chunks * HALF
        length = _length(present, list, n, tiles, BY_LENGTH, TILES)
        move = read_lam(lam, C)
        divisor, scale = _scales(
            upstream,
            upstream_list,
            state,
            state_list,
            present,
            lam,
            list,
            n,
            tiles,
            C,
            BY_LENGTH,
            TILES,
        )
        table += list * chunks * CHUNK
        packed += list * chunks * CHUNK
        bins += list * chunks * HALF
        number = (size + HALF - 2) // (HALF - 1)
        for chunk in range(share, number, shares):
            base = tl.cast(chunk, tl.int64) * (HALF - 1)
            valid = (j < HALF - 1) & (j < size - base)
            item = tl.load(chosen + list * n + base + j, mask=valid, other=0)
            _a, rank, moved = _moves(
                grad,
                grad_item,
                scores + list * scores_list,
                scores_item,
                ranks + list * ranks_list,
                ranks_item,
                known_table,
                known_bins,
                item,
                valid,
                chunk,
                size,
                length,
                move,
                kept,
                power,
                LOSS,
                HALF,
                HALF,
            )
            step = tl.full((), HALF, tl.int32)
            if size <= FEW:
                above = tl.load(bins + j)
                steps = tl.zeros([HALF], tl.int32)
                for k in range(0, size):
                    steps += (tl.load(table + NARROW + k) > moved).to(tl.int32)
                    steps -= (tl.load(table + k) > moved).to(tl.int32)
            else:
                at = tl.cast(chunk, tl.int64)
                more, bin = _step_of(table + at * CHUNK, packed + at * CHUNK, moved, step, CHUNK)
                above = tl.gather(_after(bins + at * HALF, HALF), bin, 0)
                steps = tl.zeros([HALF], tl.int32)
                for other in range(0, number):
                    at = tl.cast(other, tl.int64) * CHUNK
                    more, bin = _step_of(table + at, packed + at, moved, step, CHUNK)
                    steps += more
            steps += 1 + above - rank
            g = scale * divide(steps.to(C), divisor)
            g = tl.where(moved == moved, g, float("nan")).to(out.dtype.element_ty)
            tl.store(out + list * n + item, g, mask=valid)


# -------------------------------------------------------------------------------------------- host


class _Stream:
    """What the launches of one call share: how lists are split, and what collect has found."""

    def __init__(self, scores: Tensor, positives: Tensor, where: Tensor | None):
        self.scores = host.as_lists(scores)
        self.positives = host.as_lists(positives)
        self.where = host.as_lists(where)
        self.lists, self.n = self.scores.shape
        self.block = tuning.STREAM_BLOCK
        blocks = host.cdiv(self.n, self.block)  # of a list
        self.blocks = torch.sym_max(
            host.cdiv(blocks, tuning.STREAM_TILES),
            torch.sym_min(blocks, self.lists * blocks // (8 * tuning.STREAM_PROGRAMS)),
        )
        self.blocks = torch.sym_max(self.blocks, 1)  # of a tile
        self.tiles = host.cdiv(self.n, self.block * self.blocks)
        # Two sizes, of which the lower one suits lists that are not that long.
        few = tuning.STREAM_TILES // 32
        self.most_tiles = tuning.STREAM_TILES if self.n > few * self.block else few

        self.index = self.empty(self.n)
        self.counts = self.empty(self.tiles)
        self.chosen = self.empty(self.n)
        self.total = torch.empty(self.lists, dtype=torch.int32, device=scores.device)
        self.present = None

    def empty(self, *shape, dtype=torch.int32) -> Tensor:
        return torch.empty((self.lists, *shape), dtype=dtype, device=self.scores.device)

    def strided(self, x: Tensor | None) -> tuple:
        """As host.strided, but that a list alone has a stride that is known to be aligned."""
        x, x_list, x_item = host.strided(x)
        return x, x_list if self.lists > 1 else 0, x_item

    def collect(self, zeros: Tensor | None = None, by_length: bool = False) -> None:
        if by_length and self.where is not None:
            self.present = torch.empty_like(self.counts)
        self.launch(
            collect_kernel,
            self.tiles,
            *self.strided(self.positives),
            *self.strided(self.where),
            self.index,
            self.counts,
            self.present,
            *self.strided(zeros)[:2],
            self.n,
            self.tiles,
            self.blocks,
            BLOCK=self.block,
        )

    def launch(self, kernel, programs, *args, **options) -> None:
        """``programs`` for each list."""
        options = {"num_warps": tuning.STREAM_WARPS, **options}
        host.launch(kernel, self.lists * programs, *args, **options)

    def chunks(self, size: int):
        """How many of ``size`` positives a list may have, and programs that share them."""
        chunks = host.cdiv(self.n, size)
        shares = torch.sym_min(chunks, tuning.STREAM_CHUNK_PROGRAMS // self.lists)
        return chunks, torch.sym_max(shares, 1)

    def count(self, chunk: int, few: int, least: int = 0):
        """Thresholds, and the scores above them, of lists with more than ``least`` positives."""
        chunks, shares = self.chunks(chunk - 1)
        table = self.empty(chunks, chunk, dtype=compute_dtype(self.scores.dtype))
        bins = self.empty(chunks, chunk)
        self.launch(
            plant_kernel,
            shares,
            *self.strided(self.scores),
            self.index,
            self.counts,
            None if least else self.chosen,
            self.total,
            table,
            bins,
            self.n,
            self.tiles,
            self.blocks,
            chunks,
            shares,
            least,
            FEW=few,
            NARROW=tuning.STREAM_NARROW if few else 0,
            CHUNK=chunk,
            TILES=self.most_tiles,
            BLOCK=self.block,
        )
        self.launch(
            count_kernel,
            self.tiles,
            *self.strided(self.scores),
            *self.strided(self.where),
            self.total,
            table,
            bins,
            self.n,
            self.tiles,
            self.blocks,
            chunks,
            least,
            FEW=few,
            NARROW=tuning.STREAM_NARROW if few else 0,
            CHUNK=chunk,
            BLOCK=self.block,
        )
        return table, bins

    def step(self, grad, ranks, known, upstream, lam, power: int, by_length: bool) -> Tensor:
        """The gradient: of ranks, or of a loss if there is an ``upstream``, and ranks its state."""
        half, few = tuning.STREAM_CHUNK // 2, tuning.STREAM_FEW_BACKWARD
        loss = upstream is not None
        chunks, shares = self.chunks(half - 1)
        table = self.empty(chunks, 2 * half, dtype=compute_dtype(self.scores.dtype))
        packed = self.empty(chunks, 2 * half)
        bins = self.empty(chunks, half)
        out = self.empty(self.n, dtype=self.scores.dtype)
        kept = ranks.shape[1] - 1
        moved = (
            *self.strided(grad),
            *self.strided(self.scores),
            # The state's first column is what the reduction divided by.
            *self.strided(ranks[:, 1:] if loss else ranks),
            *known,
        )
        scales = (
            (upstream, upstream.stride(0), ranks, ranks.stride(0)) if loss else (None, 0, None, 0)
        )
        shapes = {
            "BY_LENGTH": by_length,
            "FEW": few,
            "NARROW": tuning.STREAM_NARROW,
            "HALF": half,
            "TILES": self.most_tiles,
        }
        self.launch(
            plant_steps_kernel,
            shares,
            *moved,
            self.index,
            self.counts,
            self.present,
            self.chosen,
            self.total,
            table,
            packed,
            bins,
            lam,
            self.n,
            self.tiles,
            self.blocks,
            chunks,
            shares,
            kept,
            power,
            LOSS=loss,
            BLOCK=self.block,
            **shapes,
        )
        self.launch(
            step_kernel,
            self.tiles,
            *self.strided(self.scores),
            *self.strided(self.where),
            *scales,
            self.present,
            self.total,
            table,
            packed,
            bins,
            *self.strided(out)[:2],
            lam,
            self.n,
            self.tiles,
            self.blocks,
            chunks,
            BLOCK=self.block,
            **shapes,
        )
        self.launch(
            finish_steps_kernel,
            shares,
            *moved,
            *scales,
            self.present,
            self.chosen,
            self.total,
            table,
            packed,
            bins,
            out,
            lam,
            self.n,
            self.tiles,
            chunks,
            shares,
            kept,
            power,
            LOSS=loss,
            **shapes,
        )
        return out


def positive_ranks(
    scores: Tensor,
    positives: Tensor,
    lam: float,
    lam_tensor: Tensor | None,
    where: Tensor | None,
) -> Tensor:
    """Ranks of the positives among all, 0 elsewhere: 4 launches."""
    stream = _Stream(scores, positives, where)
    ranks = stream.empty(stream.n, dtype=rank_dtype(scores.dtype, stream.n))
    if scores.numel() < 1:
        return ranks.reshape(scores.shape)
    stream.collect(zeros=ranks)
    chunk, few = tuning.STREAM_CHUNK, tuning.STREAM_FEW
    table, bins = stream.count(chunk, few)
    chunks, shares = stream.chunks(chunk - 1)
    stream.launch(
        finish_ranks_kernel,
        shares,
        *stream.strided(stream.scores),
        stream.chosen,
        stream.total,
        table,
        bins,
        ranks,
        stream.n,
        chunks,
        shares,
        FEW=few,
        CHUNK=chunk,
    )
    return ranks.reshape(scores.shape)


def positive_ranks_backward(
    grad: Tensor,
    scores: Tensor,
    positives: Tensor,
    ranks: Tensor,
    lam: float,
    lam_tensor: Tensor | None,
    where: Tensor | None,
) -> Tensor:
    """``(rk(a + lam g) - rk(a)) / lam`` of all items, g being 0 at the negatives: 4 launches."""
    if scores.numel() < 1:
        return scores.new_empty(scores.shape)
    stream = _Stream(scores, positives, where)
    stream.collect()
    lam = host.lam_argument(lam, lam_tensor, scores)
    grad, ranks = host.as_lists(grad), host.as_lists(ranks)
    out = stream.step(grad, ranks, (None, None), None, lam, 1, False)
    return out.reshape(scores.shape)


def rankreg_loss(
    scores: Tensor,
    positives: Tensor,
    lam: float,
    lam_tensor: Tensor | None,
    power: int,
    normalize: int,
    where: Tensor | None,
    reduction: int,
) -> tuple[Tensor, Tensor]:
    """The loss, and what its backward needs: 4 launches, and one for a sum over lists."""
    batch, dtype = scores.shape[:-1], compute_dtype(scores.dtype)
    kept = torch.sym_min(scores.shape[-1], _ops.STATE_CAPACITY)
    state = scores.new_empty((*batch, 1 + kept), dtype=rank_dtype(scores.dtype, scores.shape[-1]))
    each = reduction == loss_sum.NONE
    if scores.numel() < 1:  # zero, whatever it is divided by
        state.fill_(1)
        return scores.new_zeros(batch if each else (), dtype=dtype), state
    stream = _Stream(scores, positives, where)
    # The losses of the lists are the result, unless there are several to be summed up.
    summed = not each and stream.lists > 1
    losses = scores.new_empty(stream.lists, dtype=torch.float64 if summed else dtype)
    by_length = normalize == 1
    stream.collect(by_length=by_length)
    chunk, few = tuning.STREAM_CHUNK, tuning.STREAM_FEW
    table, bins = stream.count(chunk, few)
    stream.launch(
        finish_loss_kernel,
        1,
        *stream.strided(stream.scores),
        stream.chosen,
        stream.present,
        stream.total,
        table,
        bins,
        losses,
        state,
        stream.n,
        stream.tiles,
        stream.chunks(chunk - 1)[0],
        kept,
        power,
        BY_LENGTH=by_length,
        FEW=few,
        CHUNK=chunk,
        TILES=stream.most_tiles,
    )
    if summed:
        return loss_sum.finish(losses, stream.total, reduction, state, dtype), state
    return losses.reshape(batch if each else ()), state


def rankreg_loss_backward(
    grad: Tensor,
    scores: Tensor,
    positives: Tensor,
    state: Tensor,
    lam: float,
    lam_tensor: Tensor | None,
    power: int,
    normalize: int,
    where: Tensor | None,
) -> Tensor:
    """``upstream * (y(a + lam h) - y(a)) / lam``: 6 launches.

    Two of them find the ranks again that the state has no room for, and end at once where it has.
    """
    if scores.numel() < 1:
        return scores.new_empty(scores.shape)
    stream = _Stream(scores, positives, where)
    by_length = normalize == 1
    stream.collect(by_length=by_length)
    state = host.as_lists(state)
    known = stream.count(tuning.STREAM_CHUNK // 2, 0, least=state.shape[1] - 1)
    upstream = grad.expand(scores.shape[:-1]).reshape(-1)
    lam = host.lam_argument(lam, lam_tensor, scores)
    out = stream.step(None, state, known, upstream, lam, power, by_length)
    return out.reshape(scores.shape)
