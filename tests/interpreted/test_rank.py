"""Ranks and their gradient by each of the three ways, whatever the length would choose."""

import inspect
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rankreg_ext.triton_kernels import host, tuning
from rankreg_ext.triton_kernels import rank as kernels
from samples import FLOATS, INTEGERS, LAYOUTS, assert_equal, cases, laid_out, values_of

from rankreg_ext import _ops
from rankreg_ext.reference import TIES

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, on overflow

# Bounds that leave one way alone, and lengths that the interpreter has time for. (Dense ranks are
# never counted, 64-bit scores never sorted in registers.)
BLOCK = 16
WAYS = {
    "count": dict(COUNT_MOST=2048, COUNT_MOST_WIDE=2048),
    "sort": dict(COUNT_MOST=0, COUNT_MOST_WIDE=0),
    "torch.sort": dict(COUNT_MOST=0, COUNT_MOST_WIDE=0, SORT_MOST=0, PLACE_BLOCK=BLOCK),
}
LENGTHS = {
    "count": (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 40, 63, 65, 100),
    "sort": (0, 1, 2, 3, 5, 7, 8, 9, 13, 15, 16, 17, 24, 31, 32, 33),
    "torch.sort": (0, 1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 100),
}
WAY = pytest.mark.parametrize("way", WAYS)


@contextmanager
def bounds(way):
    with mock.patch.multiple(tuning, **WAYS[way]):
        yield


def check_rank(x, descending, ties, where):
    before = x.clone()
    ranks = kernels.rank(x, descending, ties, where)
    assert ranks.is_contiguous()
    assert_equal(ranks, _ops._rank(x, descending, ties, where))
    assert_equal(x, before)


def check_gradient(grad, x, lam, lam_tensor, descending, ties, where, layout="contiguous"):
    ranks = laid_out(_ops._rank(x, descending, ties, where), layout)
    args = (grad, x, ranks, lam, lam_tensor, descending, ties, where)
    gradient = kernels.blackbox_rank_backward(*args)
    assert gradient.is_contiguous()
    assert_equal(gradient, _ops._blackbox_rank_backward(*args))


def sized(way, dtypes):
    return st.builds(
        lambda case, n: replace(case, n=n), cases(dtypes), st.sampled_from(LENGTHS[way])
    )


@WAY
@settings(max_examples=50)
@given(data=st.data())
def test_ranks(way, data):
    case = data.draw(sized(way, (*FLOATS, *INTEGERS)))
    with bounds(way):
        check_rank(case.scores(), case.descending, TIES.index(case.ties), case.where())


@WAY
@settings(max_examples=60)
@given(data=st.data())
def test_gradients(way, data):
    case = data.draw(sized(way, FLOATS))
    kind = data.draw(st.sampled_from((None, torch.float32, torch.float64)))
    tensor = None if kind is None else torch.tensor(case.lam, dtype=kind)
    layout = data.draw(st.sampled_from(LAYOUTS))
    args = (case.lam, tensor, case.descending, TIES.index(case.ties), case.where(), layout)
    with bounds(way):
        check_gradient(case.upstream(), case.scores(), *args)


def extremes(dtype, shape):
    """The values at both ends of a type, and in its middle."""
    g = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        return values_of("special", shape, dtype, g)
    low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    ends = (low, low + 1, low // 2 + high // 2, high - 1, high)
    # torch makes no uint64 above 2^63 but out of the bits of an int64.
    bits = torch.tensor([end - 2**64 if end >= 2**63 else end for end in ends])
    picked = bits[torch.randint(len(bits), shape, generator=g)]
    return picked.view(dtype) if dtype.itemsize == 8 else picked.to(dtype)


@WAY
@pytest.mark.parametrize("dtype", (*FLOATS, *INTEGERS), ids=str)
def test_extreme_values(way, dtype):
    x = extremes(dtype, (2, 14))
    where = torch.rand(x.shape) < 0.7
    with bounds(way):
        for ties in range(len(TIES)):
            check_rank(x, ties % 2 == 0, ties, where)
            check_rank(x, ties % 2 == 1, ties, None)


@WAY
@pytest.mark.parametrize("ties", range(len(TIES)), ids=TIES)
def test_runs_across_blocks(way, ties):
    """Runs that begin and end in, at and beyond the edges of a block, whose first is item 0."""
    lengths = (BLOCK - 1, BLOCK, BLOCK + 1, 1, 2 * BLOCK + 3, BLOCK - 3, 2)
    x = torch.cat([torch.full((length,), -float(i)) for i, length in enumerate(lengths)])
    x = torch.stack([x, torch.zeros_like(x), torch.where(x < -3, x, torch.nan)])
    x = x[:, torch.randperm(x.shape[1])]
    with bounds(way):
        check_rank(x, True, ties, None)
        if way != "sort":
            check_rank(x, False, ties, x != -4)
            check_gradient(torch.randn_like(x).round(), x, 1.0, None, True, ties, x != -4)


@pytest.mark.parametrize("n", [127, 128, 129, 256, 257])
def test_tiles_of_a_list(n):
    """A list of 257 items takes two programs."""
    g = torch.Generator().manual_seed(n)
    x = values_of("tied", (1, n), torch.float32, g)
    with bounds("count"):
        check_rank(x, True, TIES.index("average"), torch.rand(1, n, generator=g) < 0.8)
        if n == 257:
            check_gradient(torch.randn(1, n, generator=g), x, 0.3, None, False, 4, None)


def test_rows_of_a_tile():
    """Lists enough for programs with all their rows and one with some."""
    for n in (1, 3, 100):
        rows = tuning.count_tile(host.power_of_two(n))["ROWS"]
        x = torch.randn(2 * rows + 1, n).round()
        with bounds("count"):
            check_rank(x, True, 0, torch.rand(x.shape) < 0.8)


def test_special_gradients():
    x = torch.tensor([0.0, 1.0, -1.0, float("inf"), float("-inf"), float("nan")]).repeat(7)
    values = [0.0, -0.0, 1.0, float("inf"), -float("inf"), float("nan"), 1e38]
    grad = torch.tensor(values).repeat_interleave(6)
    for lam in (1e-46, 1e-45, 1e-30, 1.0, 1e30, 3e38):
        for way in WAYS:
            with bounds(way):
                check_gradient(grad, x, lam, None, lam > 1, 0, x.abs() != 1)


def test_a_contracted_product_would_show():
    """With one rounding instead of two, x + lam g ties the first two items or parts them."""
    lam = torch.tensor(1 + 2.0**-12)
    x = torch.tensor([-1.0 - 2.0**-11, 0.0, 1.0])
    grad = torch.tensor([1 + 2.0**-12, 0.0, 0.0])
    assert torch.equal(x[:1] + lam * grad[:1], x[1:2])
    for way in WAYS:
        with bounds(way):
            check_gradient(grad, x, 1.0, lam, True, TIES.index("max"), None)


# --- what is launched -----------------------------------------------------------------------------


class Recorder:
    """Takes the place of `host.launch`."""

    def __init__(self):
        self.launches = []

    def __call__(self, kernel, programs, *args, **options):
        names = list(inspect.signature(kernel.fn).parameters)
        self.launches.append((kernel, programs, dict(zip(names, args, strict=False)), options))


@pytest.fixture
def launches(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(host, "launch", recorder)
    return recorder.launches


def launched(launches, x, ties="min", where=None, backward=False):
    launches.clear()
    ties = TIES.index(ties)
    if backward:
        ranks = torch.zeros_like(x)
        kernels.blackbox_rank_backward(ranks, x, ranks, 0.5, None, True, ties, where)
    else:
        kernels.rank(x, True, ties, where)
    return list(launches)


def test_the_way_is_chosen_by_length(launches):
    def way(n, dtype=torch.float32, **options):
        x = torch.zeros(3, n, dtype=dtype)
        return [kernel for kernel, *_ in launched(launches, x, **options)]

    count, sort = [kernels.count_kernel], [kernels.sort_kernel]
    long = [kernels.key_kernel, kernels.place_kernel]
    for backward in (False, True):
        assert way(tuning.COUNT_MOST, backward=backward) == count
        assert way(tuning.COUNT_MOST + 1, backward=backward) == sort
        assert way(tuning.SORT_MOST, backward=backward) == sort
        assert way(tuning.SORT_MOST + 1, backward=backward) == long
        assert way(tuning.COUNT_MOST_WIDE, torch.float64, backward=backward) == count
        assert way(tuning.COUNT_MOST_WIDE + 1, torch.float64, backward=backward) == long
    assert way(9, ties="dense") == sort
    assert way(9, torch.float64, ties="dense") == long
    # Masked items are placed behind any 64-bit integer by the reference.
    where = torch.ones(3, 2000, dtype=torch.bool)
    assert way(2000, torch.int64) == long
    assert way(2000, torch.int64, where=where) == []
    assert way(2000, torch.int32, where=where) == sort


def test_keys_are_narrow():
    """A sort of whole tensors takes as many passes as its keys have bytes."""
    of = kernels._key_dtype
    assert of(torch.bfloat16, False, True) == torch.int16
    assert of(torch.bfloat16, True, True) == torch.int32
    assert of(torch.bool, False, True) == of(torch.uint8, False, True) == torch.int16
    assert of(torch.uint16, False, False) == torch.int16
    assert of(torch.uint16, False, True) == torch.int32
    assert of(torch.float32, True, True) == of(torch.int32, False, False) == torch.int32
    assert of(torch.int32, False, True) == of(torch.float64, True, True) == torch.int64
    assert of(torch.uint64, False, True) is None


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("low, high", [(17, 32), (65, 128), (257, 512), (1025, 2048), (4097, 8192)])
def test_lengths_within_a_power_of_two_share_their_kernels(launches, low, high, backward):
    """What differs between them is what a kernel is not specialised on."""
    seen = []
    for n in (low, low + 1, high - 1, high):
        for x in (torch.zeros(3, n), torch.zeros(1, n), torch.zeros(n, 16).T):
            found = launched(
                launches, x, where=torch.ones_like(x, dtype=torch.bool), backward=backward
            )
            seen.append(found)
    first = seen[0]
    for found in seen[1:]:
        assert [(kernel, options) for kernel, _, _, options in found] == [
            (kernel, options) for kernel, _, _, options in first
        ]
    for launch, (kernel, _, args, _) in enumerate(first):
        numbers = {name for name, value in args.items() if isinstance(value, int)}
        vary = {name for name in numbers if len({found[launch][2][name] for found in seen}) > 1}
        free = set(kernel.kwargs["do_not_specialize"])
        assert "n" in vary <= numbers
        # Item strides have two kinds: 1, and all others.
        aligned = set(kernel.kwargs["do_not_specialize_on_alignment"])
        assert numbers <= free | aligned
        assert {name for name in vary if not name.endswith("_item")} <= free


def test_few_long_lists_spread_over_programs(launches):
    ((_, programs, _, _),) = launched(launches, torch.zeros(1, 1024, dtype=torch.float64))
    assert programs == 4
    ((_, programs, _, _),) = launched(launches, torch.zeros(4096, 16))
    assert programs == 4096 // tuning.count_tile(16)["ROWS"]
