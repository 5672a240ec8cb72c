"""The radix sorts of csrc/cuda on the emulator, whatever the length of the lists.

The ops of rankreg_ext take them for long lists alone; here each is an op of its own (see
tests/emulator/radix_ops.cpp), so that short lists reach all of their branches.
"""

from __future__ import annotations

import pytest
import torch
from emulator.build import load
from hypothesis import example, given, settings
from hypothesis import strategies as st
from samples import FLOATS, INTEGERS, VALUES, Case, assert_equal, cases, values_of
from torch import Tensor

from rankreg_ext import reference
from rankreg_ext.reference import TIES, rank_dtype

WAYS = ("block", "device")
TILE = 4096  # Tiles::kSize of rank_device_radix.cuh
SMALL_BLOCK = 8192  # kSmallBlockRadixMost of tuning.h
LONGEST_BLOCK = 32767  # BlockRadix::kLongest


@pytest.fixture(autouse=True)
def gpu():
    """A GPU of the largest size, and a sort of its own for lists of more than 64 elements."""
    module = load()
    module.set_seed(1)
    module.set_gpu(4, 227 * 1024)
    module.set_radix_tuning(64, 200)
    yield module
    module.set_seed(0)


def ranks(way: str, x: Tensor, descending=True, ties="min", where=None) -> Tensor:
    rank = getattr(torch.ops, f"rankreg_ext_{way}_radix").rank
    return rank(x, descending, TIES.index(ties), where)


def gradient(way: str, grad, x, before, lam, descending=True, ties="min", where=None) -> Tensor:
    backward = getattr(torch.ops, f"rankreg_ext_{way}_radix").blackbox_rank_backward
    number, tensor = (0.0, lam) if isinstance(lam, Tensor) else (lam, None)
    return backward(grad, x, before, number, tensor, descending, TIES.index(ties), where)


def check(way: str, x: Tensor, descending=True, ties="min", where=None, lam=None) -> None:
    """Ranks and, with ``lam``, the gradient are those of the reference."""
    expected = reference.rank(x, descending=descending, ties=ties, where=where)
    assert_equal(ranks(way, x, descending, ties, where), expected)
    if lam is None:
        return
    g = torch.Generator().manual_seed(x.shape[-1])
    grad = torch.randn(x.shape, generator=g).to(expected.dtype)
    rest = (lam, descending, ties, where)
    assert_equal(
        gradient(way, grad, x, expected, *rest),
        reference.blackbox_rank_backward(grad, x, expected, *rest),
    )


def sample(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return values_of(kind, shape, dtype, torch.Generator().manual_seed(seed))


def masked(x: Tensor, share: float = 0.7) -> Tensor:
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) < share


@pytest.mark.parametrize("way", WAYS)
@given(case=cases(), seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_any_case(way, case: Case, seed):
    load().set_seed(seed)
    x, where = case.scores(), case.where()
    rule = (case.descending, case.ties, where)
    before = reference.rank(x, descending=case.descending, ties=case.ties, where=where)
    assert_equal(ranks(way, x, *rule), before)
    grad, lam = case.upstream(), case.lam
    assert_equal(
        gradient(way, grad, x, before, lam, *rule),
        reference.blackbox_rank_backward(grad, x, before, lam, *rule),
    )


@pytest.mark.parametrize("way", WAYS)
@given(case=cases(dtypes=INTEGERS), seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_any_case_of_integers(way, case: Case, seed):
    load().set_seed(seed)
    check(way, case.scores(), case.descending, case.ties, case.where())


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
def test_dtypes(way, ties, dtype):
    for kind in VALUES:
        x = sample(kind, (2, 150), dtype)
        lam = 0.4 if dtype.is_floating_point else None
        check(way, x, TIES.index(ties) % 2 == 0, ties, None, lam)
        check(way, x, TIES.index(ties) % 2 == 1, ties, masked(x), lam)


# Around one word, the words of all warps, and of four steps of all threads, of either block.
@pytest.mark.parametrize("n", [1, 31, 32, 33, 255, 256, 257, 1023, 1024, 1025, 2047, 2048, 2049])
@pytest.mark.parametrize("ties", ["ordinal", "average", "dense"])
def test_block_edges(n, ties):
    for x in (sample("normal", (2, n), torch.float32), sample("tied", (2, n), torch.float64)):
        check("block", x, ties=ties)
        check("block", x, ties=ties, where=masked(x))


@pytest.mark.parametrize("n", [SMALL_BLOCK, SMALL_BLOCK + 1, 3 * SMALL_BLOCK // 2 + 5])
def test_block_sizes(n):
    x = sample("normal", (1, n), torch.bfloat16)
    check("block", x, ties="average")
    check("block", x, ties="ordinal", where=masked(x), lam=0.1)


def test_longest_block():
    x = sample("special", (1, LONGEST_BLOCK), torch.float16)
    check("block", x, ties="max")
    with pytest.raises(RuntimeError, match="does not fit"):
        ranks("block", sample("normal", (1, LONGEST_BLOCK + 1), torch.float16))


def bytes_of_block(n: int, key: int, threads: int) -> int:
    slots, warps = -(-n // 32) * 32, threads // 32
    return 16 * (2 * key + 4) + 32 + slots * (key + 4) + 2 * warps * 1024 + slots // 8


@pytest.mark.parametrize(("dtype", "key"), [(torch.float32, 4), (torch.int64, 8)])
def test_block_fits_to_the_byte(gpu, dtype, key):
    n = SMALL_BLOCK + 100
    for threads in (256, 512):
        gpu.set_gpu(4, bytes_of_block(n, key, threads))
        check("block", sample("normal", (1, n), dtype))
    gpu.set_gpu(4, bytes_of_block(n, key, 256) - 1)
    with pytest.raises(RuntimeError, match="does not fit"):
        ranks("block", sample("normal", (1, n), dtype))


def of_bits(bits: list[int], n: int, dtype: torch.dtype) -> Tensor:
    """Integers that differ in these bits alone."""
    g = torch.Generator().manual_seed(len(bits))
    x = torch.zeros(n, dtype=torch.int64)
    for bit in bits:
        x |= torch.randint(0, 2, (n,), generator=g) << bit
    return x.to(dtype)


@pytest.mark.parametrize(
    "bits", [[0], [5, 30], [7, 8], [31], [0, 8, 16, 24], [3, 10, 11, 19], list(range(32))]
)
def test_passes_begin_where_keys_differ(bits):
    check("block", of_bits(bits, 200, torch.int32), ties="ordinal")
    check("block", of_bits([2 * bit for bit in bits], 200, torch.int64), ties="ordinal")
    check("block", of_bits([bit // 2 for bit in bits], 200, torch.int16), ties="ordinal")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", [1, 3, 1024])
def test_evenly_spaced(way, step):
    x = torch.arange(3000, dtype=torch.int32) * step
    for scores in (x, x.flip(0), x.float()):
        check(way, scores, ties="ordinal")


@pytest.mark.parametrize("n", [TILE - 1, TILE, TILE + 1, 2 * TILE, 2 * TILE + 1])
@pytest.mark.parametrize("ties", TIES)
def test_tile_edges(n, ties):
    for x in (sample("normal", (1, n), torch.float32), sample("tied", (1, n), torch.bfloat16)):
        check("device", x, ties=ties)
        check("device", x, ties=ties, where=masked(x, 0.5))


@pytest.mark.parametrize("ties", TIES)
def test_groups_beyond_their_tile(ties):
    n = 4 * TILE + 77
    at = torch.arange(n)
    for first in (0, 1, 2 * TILE - 1, 2 * TILE, 2 * TILE + 1, n - 1, n):
        x = (at < first).to(torch.float32)[torch.randperm(n)]
        check("device", x, ties=ties)
        check("device", x.to(torch.int8), ties=ties, where=masked(x))
    # Groups of every length up to two tiles, in turn.
    x = ((2 * at).double().sqrt().floor() * 60 // 61).to(torch.int32)
    check("device", x, False, ties)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_masked_integers_beside_keys_of_all_ones(dtype, ties):
    low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    ends = torch.tensor([low, high], dtype=dtype)
    x = ends.view(-1)[torch.randint(2, (TILE + 50,))]
    for where in (masked(x), masked(x, 0.01), torch.zeros(x.shape, dtype=torch.bool)):
        for descending in (True, False):
            check("device", x, descending, ties, where)
    check("device", x, True, ties)


# Up to 3 of 7 lists together, the last sort with one; then by 64 and by 1.
@pytest.mark.parametrize(("lists", "n"), [(7, 60), (6, 60), (70, 3), (3, 64), (3, 65), (1, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint32])
def test_lists_sorted_together(lists, n, dtype):
    for ties in TIES:
        x = sample("special", (lists, n), dtype)
        lam = 0.7 if dtype.is_floating_point else None
        check("device", x, True, ties, None, lam)
        check("device", x, False, ties, masked(x), lam)


def test_lists_of_several_tiles_sorted_together(gpu):
    gpu.set_radix_tuning(2**20, 2**24)
    x = sample("tied", (3, TILE + 900), torch.float32)
    for ties in TIES:
        check("device", x, True, ties, masked(x), 0.2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0)])
def test_empty(way, shape):
    x = torch.zeros(shape)
    check(way, x, lam=1.0)


@pytest.mark.parametrize("way", WAYS)
def test_lam_in_device_memory(way):
    x = sample("normal", (2, 90), torch.float32)
    for lam in (torch.tensor(0.3), torch.tensor(2.0, dtype=torch.float64)):
        check(way, x, lam=lam)


@pytest.mark.parametrize("way", WAYS)
def test_inputs_as_they_lie_in_memory(way):
    x = sample("special", (3, 400), torch.float32)
    grad = torch.randn(400, 3).t()
    where = masked(x)[:, 0::2].repeat_interleave(2, 1)
    before = reference.rank(x, where=where).t().contiguous().t()
    expected = reference.blackbox_rank_backward(grad, x, before, 0.5, True, "min", where)
    assert_equal(gradient(way, grad, x, before, 0.5, where=where), expected)
    one = torch.ones(1, 1).expand(3, 400)
    expected = reference.blackbox_rank_backward(one, x, before, 0.5, True, "min", where)
    assert_equal(gradient(way, one, x, before, 0.5, where=where), expected)


@pytest.mark.parametrize("way", WAYS)
@example(seed=0)
@given(seed=st.integers(1, 2**32))
@settings(max_examples=10)
def test_any_order_of_threads(way, seed):
    load().set_seed(seed)
    x = sample("tied", (2, 1500), torch.float32)
    for ties in TIES:
        check(way, x, ties=ties)


# Lists longer than 2^24 have ranks of float64, whatever their scores.
@pytest.mark.parametrize("dtype", FLOATS)
def test_gradient_of_long_lists(dtype):
    x = sample("special", (2, 100), dtype)
    before = reference.rank(x).double()
    grad = torch.randn(2, 100, dtype=torch.float64)
    expected = reference.blackbox_rank_backward(grad, x, before, 0.4, True, "min", None)
    assert_equal(gradient("device", grad, x, before, 0.4), expected)


def launches(way: str, *args) -> int:
    before = load().launches()
    ranks(way, *args)
    return load().launches() - before


def test_launches(gpu):
    x, k = sample("normal", (4, 50), torch.float32), sample("normal", (4, 50), torch.int32)
    assert launches("block", x, True, "dense", masked(x)) == 1
    gpu.set_radix_tuning(64, 1000)
    assert launches("device", x, True, "min", masked(x)) == 2
    assert launches("device", x, True, "dense") == 4
    assert launches("device", k, True, "dense", masked(k)) == 6
    gpu.set_radix_tuning(64, 100)
    assert launches("device", x) == 4
    assert launches("device", x.double()) == 8


def test_ranks_have_the_dtype_of_the_contract():
    for way in WAYS:
        for dtype in FLOATS:
            assert ranks(way, torch.zeros(3, dtype=dtype)).dtype == rank_dtype(dtype, 3)
