"""Ranks and their blackbox gradient: by counting, by one sort in registers, or by torch.sort.

A gradient is a difference of ranks, so one kernel does both: given `grad`, scores are moved as
they are loaded, and what is stored is not the rank but ``(rank - saved rank) / lam``.

Every kernel takes a tensor as pointer, stride of lists and stride of items; `grad`, `ranks`, `lam`
and `where` may be None. Whatever a stride multiplies has 64 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from . import host, tuning
from .common import ascending_key, compute_type, divide, perturb, read_flags, read_lam

MIN, MAX, AVERAGE, DENSE, ORDINAL = (tl.constexpr(i) for i in range(len(reference.TIES)))

# A kernel is compiled once for all lengths and strides, but for an item stride of 1.
_ANY = ["lists", "n", "lam", "x_list", "grad_list", "ranks_list", "where_list"]
_ANY_BUT_1 = ["x_item", "grad_item", "ranks_item", "where_item"]


@triton.jit
def _load(x, grad, lam, mask, DESCENDING: tl.constexpr):
    """Scores at the pointers `x`; moved, and then in C, if there are pointers `grad`."""
    a = _read(x, mask)
    if grad is not None:
        C: tl.constexpr = compute_type(a.dtype)
        a = perturb(a.to(C), lam, _read(grad, mask).to(C), DESCENDING)
    return a


@triton.jit
def _read(x, mask):
    if mask is None:
        a = tl.load(x)
    else:
        a = tl.load(x, mask=mask, other=0)
    return a


@triton.jit
def _store(out, rank, ranks, lam, mask):
    """Stores ranks or, if there are pointers `ranks` to the saved ones, gradients."""
    if ranks is not None:
        C: tl.constexpr = compute_type(out.dtype.element_ty)
        old = tl.load(ranks, mask=mask, other=0)
        rank = divide((rank.to(old.dtype) - old).to(C), lam)
    tl.store(out, rank.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _comparable(a):
    """The score in a type that the hardware compares."""
    if a.dtype.is_floating():
        if a.dtype.primitive_bitwidth < 32:
            a = a.to(tl.float32)
    else:
        a = ascending_key(a)
    return a


@triton.jit
def _is_nan(a):
    a = _comparable(a)
    return a != a


@triton.jit
def _best_first_key(a, DESCENDING: tl.constexpr):
    """A signed integer of the width of the score, ascending from the best score on. No NaN."""
    key = ascending_key(a)
    if a.dtype == tl.uint16:
        key -= 1 << 15
    if DESCENDING:
        key ^= -1
    return key


@triton.jit
def _meet(
    count,
    a,
    i,
    k,
    x,
    x_item,
    grad,
    grad_item,
    lam,
    where,
    where_item,
    DESCENDING: tl.constexpr,
    TIES: tl.constexpr,
):
    """The counts of the items `a`, at `i` of their lists, after they met item `k`."""
    at = tl.full([], 0, tl.int64) + k
    if grad is not None:
        grad += at * grad_item
    b = _comparable(_load(x + at * x_item, grad, lam, None, DESCENDING))
    UNIT: tl.constexpr = 0.5 if TIES == AVERAGE else 1.0
    weight = UNIT
    if where is not None:
        weight = tl.where(tl.load(where + at * where_item) != 0, UNIT, 0.0)
    if DESCENDING:
        better = b > a
        level = b >= a
    else:
        better = b < a
        level = b <= a
    if TIES == ORDINAL:
        better |= level & (k < i)
    if TIES != MAX:
        count += tl.where(better, weight, 0.0)
    if TIES == MAX or TIES == AVERAGE:
        count += tl.where(level, weight, 0.0)
    return count


# Counting. A program has ITEMS * LANES items of each of ROWS lists; a thread has ITEMS items of one
# list in registers, and lets them meet every item k of that list: a load that all threads of the
# list share, so that L1 serves it, then a comparison and a predicated sum per item.
#   x, grad, ranks (lists, n); where bool (lists, n); lam: see read_lam; out (lists, n)
# Moves 8 bytes per item of float32, 16 for a gradient, but from n of about 32 on the bound is
# 2 n instructions per item.
@triton.jit(do_not_specialize=_ANY, do_not_specialize_on_alignment=_ANY_BUT_1)
def count_kernel(
    x,
    x_list,
    x_item,
    grad,
    grad_list,
    grad_item,
    ranks,
    ranks_list,
    ranks_item,
    lam,
    where,
    where_list,
    where_item,
    out,
    lists,
    n,
    DESCENDING: tl.constexpr,
    TIES: tl.constexpr,
    ITEMS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Ranks by counting."""
    UNROLL: tl.constexpr = 8
    blocks = tl.cdiv(n, ITEMS * LANES)
    block = tl.program_id(0) % blocks
    # Items are the slowest dimension, whose items a thread keeps to itself.
    i = block * (ITEMS * LANES) + tl.arange(0, LANES)[None, None, :]
    i += tl.arange(0, ITEMS)[:, None, None] * LANES
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)[None, :, None]
    mask = (i < n) & (row < lists)
    # Rows past the end repeat the last list: loads of its item k need no mask.
    row = tl.minimum(row, lists - 1)
    at = i.to(tl.int64)

    x += row * x_list
    grad_i = None
    if grad is not None:
        lam = read_lam(lam, compute_type(x.dtype.element_ty))
        grad += row * grad_list
        grad_i = grad + at * grad_item
    if where is not None:
        where += row * where_list
    a = _comparable(_load(x + at * x_item, grad_i, lam, mask, DESCENDING))

    # Counts are exact in float32. NaN beats nothing by itself, a masked item has no weight.
    count = tl.zeros([ITEMS, ROWS, LANES], tl.float32)
    whole = n // UNROLL * UNROLL
    for k in range(0, whole, UNROLL):
        for step in tl.static_range(UNROLL):
            count = _meet(
                count, a, i, k + step, x, x_item, grad, grad_item, lam, where, where_item,
                DESCENDING, TIES,
            )  # fmt: skip
    for k in range(whole, n):
        count = _meet(
            count, a, i, k, x, x_item, grad, grad_item, lam, where, where_item,
            DESCENDING, TIES,
        )  # fmt: skip

    if TIES == MAX:
        rank = count
    elif TIES == AVERAGE:
        rank = count + 0.5
    else:
        rank = count + 1.0
    if a.dtype.is_floating():
        rank = tl.where(_is_nan(a), float("nan"), rank)
    if where is not None:
        rank = tl.where(read_flags(where + at * where_item, mask), rank, 0.0)
    ranks_i = None
    if ranks is not None:
        ranks_i = ranks + row * ranks_list + at * ranks_item
    _store(out + row * n + at, rank, ranks_i, lam, mask)


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _first_of_run(a, first_a, b, first_b):
    """Of two neighbouring stretches: the last key, and where its run begins."""
    return b, tl.where(a == b, first_a, first_b)


@triton.jit
def _rank_of_run(first, last, R: tl.constexpr, TIES: tl.constexpr):
    """The rank, of type R, of the places `first` to `last`, of which but average ties use one."""
    if TIES == MAX:
        rank = (last + 1).to(R)
    elif TIES == AVERAGE:
        both = first + last + 2
        rank = (both >> 1).to(R) + tl.where((both & 1) == 1, 0.5, 0.0).to(R)
    else:
        rank = (first + 1).to(R)
    return rank


# One sort. A program has one list: keys, best first, above a state (present, NaN, masked or past
# the end) above the index, packed into one integer of twice HALF bits and sorted in registers;
# equal keys are neighbours then, in index order, and ranks go to the index of each.
#   x, grad, ranks (lists, n); where bool (lists, n); lam: see read_lam; out (lists, n)
# Moves 8 bytes per item of float32, 16 for a gradient; the bound are the
# log2(N) (log2(N) + 1) / 2 exchanges of each item.
@triton.jit(do_not_specialize=_ANY, do_not_specialize_on_alignment=_ANY_BUT_1)
def sort_kernel(
    x,
    x_list,
    x_item,
    grad,
    grad_list,
    grad_item,
    ranks,
    ranks_list,
    ranks_item,
    lam,
    where,
    where_list,
    where_item,
    out,
    n,
    DESCENDING: tl.constexpr,
    TIES: tl.constexpr,
    HALF: tl.constexpr,
    N: tl.constexpr,
):
    """Ranks by one sort per list."""
    P: tl.constexpr = tl.int32 if HALF == 16 else tl.int64
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, N)
    mask = i < n
    at = i.to(tl.int64)
    # Loads stand here, not in functions: from a store to where they lead, torch's search for what
    # a kernel writes to stops at loads but goes through calls, and would find the inputs.
    a = tl.load(x + row * x_list + at * x_item, mask=mask, other=0)
    if grad is not None:
        C: tl.constexpr = compute_type(a.dtype)
        if lam.dtype.is_ptr():
            lam = tl.load(lam).to(C)
        else:
            lam = read_lam(lam, C)
        g = tl.load(grad + row * grad_list + at * grad_item, mask=mask, other=0)
        a = perturb(a.to(C), lam, g.to(C), DESCENDING)

    state = tl.where(mask, 0, 2)
    if a.dtype.is_floating():
        state = tl.where(_is_nan(a), 1, state)
    if where is not None:
        present = tl.load(where + row * where_list + at * where_item, mask=mask, other=0)
        state = tl.where(present != 0, state, 2)
    WORST: tl.constexpr = 2 ** (HALF - 1) - 1
    key = tl.where(state > 0, WORST, _best_first_key(a, DESCENDING).to(tl.int32))
    SHIFT: tl.constexpr = HALF - 2
    packed = (((key.to(P) << 2) | state.to(P)) << SHIFT) | i.to(P)

    packed = tl.sort(packed)
    index = (packed & ((1 << SHIFT) - 1)).to(tl.int32)
    run = packed >> SHIFT
    state = (run & 3).to(tl.int32)
    first = i
    last = i
    if TIES != ORDINAL and TIES != MAX:
        _, first = tl.associative_scan((run, i), 0, _first_of_run)
    if TIES == MAX or TIES == AVERAGE:
        _, last = tl.associative_scan((run, i), 0, _first_of_run, reverse=True)
    if TIES == DENSE:
        first = tl.cumsum((first == i).to(tl.int32), 0) - 1
    rank = _rank_of_run(first, last, tl.float32, TIES)
    rank = tl.where(state == 0, rank, tl.where(state == 1, float("nan"), 0.0))

    mask = index < n
    at = index.to(tl.int64)
    ranks_i = None
    if ranks is not None:
        ranks_i = ranks + row * ranks_list + at * ranks_item
    _store(out + row * n + at, rank, ranks_i, lam, mask)


# Keys for a sort of whole tensors: signed integers of the type of `keys`, best first, then NaN,
# then masked items. A program has BLOCK items of one list.
#   x, grad (lists, n); where bool (lists, n); lam: see read_lam; keys (lists, n)
# Moves 8 bytes per item of float32, 12 if it is moved.
@triton.jit(do_not_specialize=_ANY, do_not_specialize_on_alignment=_ANY_BUT_1)
def key_kernel(
    x,
    x_list,
    x_item,
    grad,
    grad_list,
    grad_item,
    lam,
    where,
    where_list,
    where_item,
    keys,
    n,
    DESCENDING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Keys to sort by."""
    K: tl.constexpr = keys.dtype.element_ty
    WORST: tl.constexpr = 2 ** (K.primitive_bitwidth - 1) - 1
    blocks = tl.cdiv(n, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    at = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    grad_i = None
    if grad is not None:
        lam = read_lam(lam, compute_type(x.dtype.element_ty))
        grad_i = grad + row * grad_list + at * grad_item
    a = _load(x + row * x_list + at * x_item, grad_i, lam, mask, DESCENDING)
    key = _best_first_key(a, DESCENDING).to(K)
    if a.dtype.is_floating():
        key = tl.where(_is_nan(a), WORST - 1, key)
    if where is not None:
        present = read_flags(where + row * where_list + at * where_item, mask)
        key = tl.where(present, key, WORST)
    tl.store(keys + row * n + at, key, mask=mask)


# Ranks of sorted lists. A program has BLOCK places of one list; a run of equal keys that reaches
# past them is followed by binary search, one per end.
#   keys, sorted, and order int64 (lists, n): key and item of a place; changes int32 (lists, n - 1),
#   for dense ranks: how often the key has changed before the next place; ranks, out (lists, n)
# Moves 16 bytes per item of float32, 20 for a gradient, and touches a sector of `out`, and of
# `ranks`, for every single item: up to 32 bytes each.
@triton.jit(do_not_specialize=_ANY, do_not_specialize_on_alignment=_ANY_BUT_1)
def place_kernel(
    keys,
    order,
    changes,
    ranks,
    ranks_list,
    ranks_item,
    lam,
    out,
    n,
    ABSENT: tl.constexpr,
    TIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Ranks of sorted lists."""
    R: tl.constexpr = out.dtype.element_ty if ranks is None else ranks.dtype.element_ty
    K: tl.constexpr = keys.dtype.element_ty
    WORST: tl.constexpr = 2 ** (K.primitive_bitwidth - 1) - 1
    blocks = tl.cdiv(n, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    begin = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK
    end = tl.minimum(begin + BLOCK, n)
    i = tl.arange(0, BLOCK)
    place = begin + i
    mask = place < n
    keys += row * n
    key = tl.load(keys + place, mask=mask, other=WORST)

    first = place
    last = place
    if TIES == DENSE:
        before = mask & (place > 0)
        first = tl.load(changes + row * (n - 1) + place - 1, mask=before, other=0).to(tl.int64)
    elif TIES != ORDINAL:
        if TIES != MAX:
            outer = begin
            value = tl.load(keys + begin)
            if begin > 0:
                if tl.load(keys + begin - 1) == value:
                    low = begin * 0
                    while low < outer:
                        middle = (low + outer) // 2
                        below = tl.load(keys + middle) < value
                        low = tl.where(below, middle + 1, low)
                        outer = tl.where(below, outer, middle)
            before = tl.load(keys + place - 1, mask=mask & (place > 0), other=0)
            starts = tl.where((key != before) & (i > 0), i, 0)
            inner = tl.associative_scan(starts, 0, _larger)
            first = tl.where(inner > 0, begin + inner, outer)
        if TIES != MIN:
            outer = end - 1
            value = tl.load(keys + outer)
            if end < n:
                if tl.load(keys + end) == value:
                    high = begin * 0 + n - 1
                    while outer < high:
                        middle = (outer + high + 1) // 2
                        above = tl.load(keys + middle) > value
                        high = tl.where(above, middle - 1, high)
                        outer = tl.where(above, outer, middle)
            after = tl.load(keys + place + 1, mask=place + 1 < end, other=0)
            ends = tl.where((key != after) & (place + 1 < end), i, BLOCK)
            inner = tl.associative_scan(ends, 0, _smaller, reverse=True)
            last = tl.where(inner < BLOCK, begin + inner, outer)
    rank = _rank_of_run(first, last, R, TIES)
    if ABSENT:
        rank = tl.where(key == WORST - 1, float("nan"), tl.where(key == WORST, 0.0, rank))

    at = tl.load(order + row * n + place, mask=mask, other=0)
    ranks_i = None
    if ranks is not None:
        lam = read_lam(lam, compute_type(out.dtype.element_ty))
        ranks_i = ranks + row * ranks_list + at * ranks_item
    _store(out + row * n + at, rank, ranks_i, lam, mask)


def rank(x: Tensor, descending: bool, ties: int, where: Tensor | None) -> Tensor:
    """Ranks of the lists along the last dimension of `x`."""
    dtype = reference.rank_dtype(x.dtype, x.shape[-1], reference.TIES[ties])
    out = x.new_empty(x.shape, dtype=dtype)
    _launch(out, x, None, None, None, descending, ties, where)
    return out


def blackbox_rank_backward(
    grad: Tensor,
    x: Tensor,
    ranks: Tensor,
    lam: float,
    lam_tensor: Tensor | None,
    descending: bool,
    ties: int,
    where: Tensor | None,
) -> Tensor:
    """``(rank(x + lam grad) - ranks) / lam``, of the type of `x`."""
    out = x.new_empty(x.shape)
    _launch(out, x, grad, ranks, host.lam_argument(lam, lam_tensor, x), descending, ties, where)
    return out


def blackbox_rank(
    x: Tensor,
    lam: float,
    lam_tensor: Tensor | None,
    descending: bool,
    ties: int,
    where: Tensor | None,
) -> Tensor:
    """Ranks whose gradient is `blackbox_rank_backward`."""
    return rank(x, descending, ties, where)


def _launch(out, x, grad, ranks, lam, descending, ties, where) -> None:
    """Writes ranks to `out`, or gradients if there is a `grad`."""
    if x.numel() < 1:
        return
    x, grad, ranks, where = (host.as_lists(t) for t in (x, grad, ranks, where))
    n = x.shape[-1]
    wide = x.dtype.itemsize == 8
    if ties != DENSE.value and n <= (tuning.COUNT_MOST_WIDE if wide else tuning.COUNT_MOST):
        _count(out, x, grad, ranks, lam, descending, ties, where)
    elif n <= tuning.SORT_MOST and not wide:
        _sort(out, x, grad, ranks, lam, descending, ties, where)
    else:
        _sort_lists(out, x, grad, ranks, lam, descending, ties, where)


def _count(out, x, grad, ranks, lam, descending, ties, where) -> None:
    lists, n = x.shape
    tile = tuning.count_tile(host.power_of_two(n))
    host.launch(
        count_kernel,
        host.cdiv(lists, tile["ROWS"]) * host.cdiv(n, tile["ITEMS"] * tile["LANES"]),
        *host.strided(x),
        *host.strided(grad),
        *host.strided(ranks),
        lam,
        *host.strided(where),
        out,
        lists,
        n,
        DESCENDING=descending,
        TIES=ties,
        **tile,
    )


def _sort(out, x, grad, ranks, lam, descending, ties, where) -> None:
    lists, n = x.shape
    half = x.dtype.itemsize < 4 and grad is None
    size = host.power_of_two(n, tuning.SORT_LEAST)
    host.launch(
        sort_kernel,
        lists,
        *host.strided(x),
        *host.strided(grad),
        *host.strided(ranks),
        lam,
        *host.strided(where),
        out,
        n,
        DESCENDING=descending,
        TIES=ties,
        HALF=16 if half else 32,
        N=size,
        num_warps=tuning.sort_warps(size),
    )


def _sort_lists(out, x, grad, ranks, lam, descending, ties, where) -> None:
    lists, n = x.shape
    dtype = _key_dtype(x.dtype, grad is not None, where is not None)
    if dtype is None:
        # 64-bit integers leave no key for masked items.
        rule = reference.TIES[ties]
        out.copy_(reference.rank(x, descending=descending, ties=rule, where=where).view(out.shape))
        return
    block = tuning.PLACE_BLOCK
    programs = lists * host.cdiv(n, block)
    keys = x.new_empty((lists, n), dtype=dtype)
    host.launch(
        key_kernel,
        programs,
        *host.strided(x),
        *host.strided(grad),
        lam,
        *host.strided(where),
        keys,
        n,
        DESCENDING=descending,
        BLOCK=block,
    )
    keys, order = torch.sort(keys, dim=-1, stable=True)
    changes = None
    if ties == DENSE.value:
        changes = (keys[:, 1:] != keys[:, :-1]).cumsum(-1, dtype=torch.int32)
    host.launch(
        place_kernel,
        programs,
        keys,
        order,
        changes,
        *host.strided(ranks),
        lam,
        out,
        n,
        ABSENT=x.dtype.is_floating_point or where is not None,
        TIES=ties,
        BLOCK=block,
    )


def _key_dtype(dtype: torch.dtype, moved: bool, masked: bool) -> torch.dtype | None:
    """The narrowest type of keys; masked items take a bit that integers do not have to spare."""
    floating = dtype.is_floating_point
    bits = 32 if moved and dtype.itemsize < 4 else 8 * dtype.itemsize
    bits = max(16, bits + (masked and not floating))
    for key_dtype in (torch.int16, torch.int32, torch.int64):
        if bits <= 8 * key_dtype.itemsize:
            return key_dtype
    return None
