"""Ranks and their gradient from the CUDA kernels, emulated: every kernel, and where they take over.

``WAYS`` names the ways of csrc/cuda/rank.cu. Few multiprocessors make a batch large, and send it to
the network; many make it small, and spread its comparisons over the grid.
"""

import itertools
from dataclasses import replace

import pytest
import torch
from emulated import emulated
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    FLOATS,
    INTEGERS,
    LAYOUTS,
    MASKS,
    VALUES,
    Case,
    assert_equal,
    cases,
)

import rankreg_ext
from rankreg_ext import reference
from rankreg_ext.reference import TIES

# By lanes, 4 items each, up to 44, 56 or 96 by key width, or half of it; for the network 8 or 16
# items a thread, groups up to a warp (256 or 512 items), then whole blocks.
LANES = (1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 44, 45, 48, 49, 56, 57, 64, 65, 96, 97)
NETWORK = (15, 127, 128, 255, 256, 257, 511, 512, 513, 1024, 1025, 2049)
# Over the grid: tiles of 32 items, a warp of a block for each 32 others up to 32 warps.
GRID = (97, 128, 129, 159, 160, 161, 513, 1023, 1024, 1025, 1500)
WAYS = {"network": 1, "grid": 132}


def sample(seed, n, dtype, batch=(3,)):
    """One of each kind of input, chosen by `seed`, so that a few of them meet all kinds."""
    pick = torch.Generator().manual_seed(seed)

    def one(of):
        return of[int(torch.randint(len(of), (), generator=pick))]

    return Case(
        seed=seed,
        batch=batch,
        n=n,
        dtype=dtype,
        values=one(VALUES),
        layout=one(LAYOUTS),
        mask=one(MASKS),
        share=0.0,
        ties=one(TIES),
        descending=one((True, False)),
        lam=one((1e-30, 1e-3, 0.3, 5.0, 1e4, 1e30)),
        power=2,
        normalize="none",
        reduction="none",
        gradient=one(("dense", "sparse", "zero lists", "special", "one value")),
    )


def check_rank(case, x=None):
    x = case.scores() if x is None else x
    args = {"descending": case.descending, "ties": case.ties, "where": case.where()}
    assert_equal(rankreg_ext.rank(x, **args), reference.rank(x, **args))


def check_gradient(case, lam=None):
    lam = case.lam if lam is None else lam
    args = {"descending": case.descending, "ties": case.ties, "where": case.where()}

    def run(module):
        x = case.scores().detach().requires_grad_()
        ranks = module.blackbox_rank(x, lam, **args)
        ranks.backward(case.upstream())
        return ranks.detach(), x.grad

    for actual, expected in zip(run(rankreg_ext), run(reference), strict=True):
        assert_equal(actual, expected)


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
def test_rank_of_every_length(dtype):
    seed = itertools.count()
    with emulated(seed=1, multiprocessors=WAYS["network"]):
        for n, ties in itertools.product((*LANES, *NETWORK), TIES):
            check_rank(replace(sample(next(seed), n, dtype), ties=ties))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradient_of_every_length(dtype):
    seed = itertools.count(10**6)
    with emulated(seed=2, multiprocessors=WAYS["network"]):
        for n, ties in itertools.product((*LANES, *NETWORK), TIES):
            check_gradient(replace(sample(next(seed), n, dtype), ties=ties))


@pytest.mark.parametrize("dtype", (*FLOATS, torch.uint8, torch.int16), ids=str)
def test_every_length_over_the_grid(dtype):
    """Dense ranks and the integers that are no exact float or double have no such way."""
    seed = itertools.count(2 * 10**6)
    with emulated(seed=3, multiprocessors=WAYS["grid"]):
        for n, ties in itertools.product(GRID, ("min", "max", "average", "ordinal")):
            case = replace(sample(next(seed), n, dtype, batch=(2,)), ties=ties)
            check_rank(case)
            if dtype.is_floating_point:
                check_gradient(case)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.int64, torch.float16, torch.float64], ids=str
)
@pytest.mark.parametrize("ties", TIES)
def test_longest_lists(dtype, ties):
    """A block of 512 threads and, of 1024, the longest list of a block."""
    with emulated(seed=4, multiprocessors=1):
        for n in (4097, 8192) if dtype.itemsize == 8 else (8192, 8193, 16384):
            check_rank(replace(sample(n, n, dtype, batch=()), ties=ties, mask="random"))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("ties", [ties for ties in TIES if ties != "dense"])
def test_wide_tiles_of_the_grid(dtype, ties):
    """Tiles of 128 items: more of them than multiprocessors."""
    with emulated(seed=5, multiprocessors=8):
        for n in (1023, 1025, 2000):
            case = replace(sample(n, n, dtype, batch=()), ties=ties)
            check_rank(case)
            check_gradient(case)


@pytest.mark.parametrize("seed", range(4))
def test_order_of_threads(seed):
    """0 is the natural order; in others, a missing barrier shows."""
    for way, n, dtype in itertools.product(
        WAYS.values(), (3, 40, 100, 300, 600, 1500), (torch.float32, torch.float64, torch.int32)
    ):
        with emulated(seed=seed, multiprocessors=way):
            check_rank(sample(n, n, dtype, batch=(5,)))


@pytest.mark.parametrize("n", [7, 40, 200, 300])
@pytest.mark.parametrize("lists", [0, 1, 2, 33, 70])
def test_number_of_lists(lists, n):
    """Blocks and warps that several lists share, the last of them not full."""
    for dtype, way in itertools.product(
        (torch.float32, torch.int64, torch.bfloat16), WAYS.values()
    ):
        with emulated(seed=6, multiprocessors=way):
            check_rank(sample(lists, n, dtype, batch=(lists,)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_ends_of_integer_types(dtype, way):
    """Their keys take every value, so that a masked item cannot be told by its key."""
    info = None if dtype == torch.bool else torch.iinfo(dtype)
    ends = (False, True) if info is None else (info.min, info.max)
    with emulated(seed=7, multiprocessors=WAYS[way]):
        for n, mask, descending in itertools.product(
            (3, 20, 130, 520), (None, "random", "nothing"), (True, False)
        ):
            case = replace(sample(n, n, dtype), mask=mask, descending=descending)
            pick = torch.rand(3, n, generator=case.generator()) < 0.5
            x = torch.where(
                pick, torch.tensor(ends[0], dtype=dtype), torch.tensor(ends[1], dtype=dtype)
            )
            for ties in TIES:
                check_rank(replace(case, ties=ties), x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("lam_dtype", FLOATS, ids=str)
def test_lam_tensor(lam_dtype, way):
    lam = torch.tensor(0.7).to(lam_dtype)
    with emulated(seed=8, multiprocessors=WAYS[way]):
        for n, dtype in itertools.product((9, 150, 300), FLOATS):
            check_gradient(sample(n, n, dtype), lam)


@pytest.mark.parametrize("n", [1, 32, 100, 130, 600, 1500])
def test_one_launch_each_way(n):
    for way, ties in itertools.product(WAYS.values(), TIES):
        with emulated(multiprocessors=way) as module:
            x = torch.randn(2, n, requires_grad=True)
            before = module.launches()
            ranks = rankreg_ext.blackbox_rank(x, 0.5, ties=ties)
            assert module.launches() == before + 1
            ranks.sum().backward()
            assert module.launches() == before + 2


def test_no_launch_for_nothing():
    with emulated() as module:
        before = module.launches()
        for shape in ((0, 5), (3, 0), (0,), (0, 0)):
            assert rankreg_ext.rank(torch.zeros(shape)).shape == shape
        assert module.launches() == before


def test_ranks_of_another_dtype_are_refused():
    x, ranks = torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.float64)
    with (
        emulated(),
        pytest.raises((ValueError, RuntimeError), match=r"must be of rank\(\)'s dtype"),
    ):
        torch.ops.rankreg_ext.blackbox_rank_backward(ranks, x, ranks, 1.0, None, True, 0, None)


@settings(max_examples=150)
@given(
    case=cases(FLOATS + INTEGERS),
    seed=st.integers(0, 2**32 - 1),
    multiprocessors=st.sampled_from((1, 2, 16, 132)),
)
def test_rank(case, seed, multiprocessors):
    with emulated(seed=seed, multiprocessors=multiprocessors):
        check_rank(case)


@settings(max_examples=150)
@given(
    case=cases(),
    seed=st.integers(0, 2**32 - 1),
    multiprocessors=st.sampled_from((1, 2, 16, 132)),
)
def test_blackbox_rank(case, seed, multiprocessors):
    with emulated(seed=seed, multiprocessors=multiprocessors):
        check_gradient(case)
