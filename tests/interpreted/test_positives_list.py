"""Rare positives of short lists, a program each, in the interpreter: equal to the oracle."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rankreg_ext.triton_kernels import host, loss_sum, positive_ranks, rankreg_loss, tuning
from samples import FLOATS, LAYOUTS, Case, assert_equal, cases, laid_out, sprinkle, values_of

from rankreg_ext import _ops

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, on overflow

# Around the blocks of items, their warps, and tiles of thresholds.
LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 64, 127, 128, 129, 255, 256, 257, 258)
SETTINGS = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels that were launched, and their programs."""
    made = []
    launch = host.launch

    def recorded(kernel, programs, *args, **options):
        made.append((kernel.__name__, programs))
        launch(kernel, programs, *args, **options)

    monkeypatch.setattr(host, "launch", recorded)
    return made


@pytest.fixture
def small(monkeypatch):
    """Four thresholds at a time, two programs, and a state of five ranks."""
    monkeypatch.setattr(tuning, "LIST_THRESHOLDS", 4)
    monkeypatch.setattr(tuning, "LIST_WARPS", 2)
    monkeypatch.setattr(_ops, "STATE_CAPACITY", 5)


def short(case: Case, n: int) -> Case:
    n = min(case.n, n)
    return replace(case, n=n, share=min(case.share, 20 / n) if n > 64 else case.share)


def agree_on_ranks(case: Case, lam_tensor=None):
    scores, positives, where = case.scores(), case.positives(), case.where()
    positives = laid_out(positives, case.layout)
    args = (scores, positives, case.lam, lam_tensor, where)
    ranks = positive_ranks.positive_ranks(*args)
    assert_equal(ranks, _ops._positive_ranks(*args))
    assert ranks.is_contiguous()
    grad = laid_out(case.upstream().to(ranks.dtype), case.layout)
    args = (grad, scores, positives, ranks, case.lam, lam_tensor, where)
    gradient = positive_ranks.positive_ranks_backward(*args)
    assert_equal(gradient, _ops._positive_ranks_backward(*args))
    assert gradient.is_contiguous()


def agree_on_loss(case: Case, lam_tensor=None, grad=None):
    scores, where = case.scores(), case.where()
    positives = laid_out(case.positives(), case.layout)
    options = (case.power, _ops.NORMALIZE.index(case.normalize), where)
    reduction = _ops.REDUCTION.index(case.reduction)
    args = (scores, positives, case.lam, lam_tensor, *options, reduction)
    loss, state = rankreg_loss.rankreg_loss(*args)
    expected, expected_state = _ops._rankreg_loss(*args)
    several = case.reduction != "none" and scores.dim() > 1
    tolerance = 4 * torch.finfo(loss.dtype).eps if several else 0
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0, equal_nan=True)
    assert_equal(state, expected_state)
    assert state.is_contiguous()
    if grad is None:
        g = case.generator()
        grad = torch.randn(loss.shape, generator=g).to(loss.dtype) + 1
        grad = sprinkle(grad, g) if case.gradient == "special" else grad
        grad = grad.expand(loss.shape) if case.gradient == "one value" else grad
    args = (grad, scores, positives, state, case.lam, lam_tensor, *options)
    gradient = rankreg_loss.rankreg_loss_backward(*args)
    assert_equal(gradient, _ops._rankreg_loss_backward(*args))
    assert gradient.is_contiguous()


@SETTINGS
@given(cases())
def test_ranks(case):
    agree_on_ranks(short(case, 130))


@SETTINGS
@given(cases())
def test_ranks_of_small_tiles(small, case):
    agree_on_ranks(short(case, 40))


@SETTINGS
@given(cases())
def test_loss(case):
    agree_on_loss(short(case, 130))


@SETTINGS
@given(cases())
def test_loss_of_small_tiles(small, case):
    agree_on_loss(short(case, 40))


CASE = Case(
    seed=7,
    batch=(2,),
    n=40,
    dtype=torch.float32,
    values="tied",
    layout="contiguous",
    mask=None,
    share=0.3,
    ties="min",
    descending=True,
    lam=0.3,
    power=2,
    normalize="length",
    reduction="mean",
    gradient="dense",
)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("share", (0.1, 1.0))
def test_lengths(n, share):
    case = replace(CASE, n=n, share=share, batch=(), lam=10.0)
    agree_on_ranks(case)
    agree_on_loss(case)


@pytest.mark.parametrize("positives", (0, 1, 15, 16, 17, 32, 33))
@pytest.mark.parametrize("dtype", FLOATS)
def test_numbers_of_positives(positives, dtype):
    """Around the thresholds of a tile, anywhere in the list."""
    where = torch.randperm(100)[:positives]
    mask = torch.zeros(100, dtype=torch.bool).index_fill(0, where, True)

    class Given(Case):
        def positives(self):
            return mask

    case = Given(**{**vars(CASE), "n": 100, "dtype": dtype, "batch": ()})
    agree_on_ranks(case)
    agree_on_loss(replace(case, lam=30.0))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mask", ("random", "row"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_layouts(layout, mask, dtype):
    case = replace(CASE, layout=layout, mask=mask, dtype=dtype, batch=(2, 3), n=17)
    agree_on_ranks(case)
    agree_on_loss(replace(case, reduction="none"))


@pytest.mark.parametrize("lam", (1e-30, 1.0, 1e30))
@pytest.mark.parametrize("dtype", (torch.float16, torch.float32, torch.float64))
@pytest.mark.parametrize("lam_dtype", (torch.float32, torch.float64, None))
def test_lam(lam, dtype, lam_dtype):
    """A tensor takes precedence over the number."""
    case = replace(CASE, lam=lam, dtype=dtype, values="normal")
    if lam_dtype is None:
        agree_on_ranks(case)
        agree_on_loss(case)
    else:
        lam_tensor = torch.tensor(lam, dtype=lam_dtype)
        agree_on_ranks(replace(case, lam=123.0), lam_tensor)
        agree_on_loss(replace(case, lam=123.0), lam_tensor)


@pytest.mark.parametrize("values", ("special", "subnormal", "constant"))
@pytest.mark.parametrize("dtype", FLOATS)
def test_special(values, dtype):
    """NaN and infinities as scores, as gradients, and behind masks."""
    for seed in range(4):
        case = replace(CASE, seed=seed, values=values, dtype=dtype, mask="random", n=33)
        agree_on_ranks(replace(case, gradient="special"))
        for normalize in ("length", "none"):
            agree_on_loss(replace(case, gradient="special", normalize=normalize))


def test_gradients_of_others_are_not_read():
    """What is no positive does not move, be its gradient infinite; nor what is masked."""
    n = 20
    scores, positives = torch.randn(n), torch.arange(n) % 5 == 0
    where = torch.arange(n) != 10
    grad = torch.where(positives & where, torch.randn(n), torch.inf)
    ranks = positive_ranks.positive_ranks(scores, positives, 1.0, None, where)
    args = (grad, scores, positives, ranks, 1.0, None, where)
    gradient = positive_ranks.positive_ranks_backward(*args)
    assert gradient.isfinite().all()
    assert_equal(gradient, _ops._positive_ranks_backward(*args))


@pytest.mark.parametrize("power", (1, 2, 3, 4, 9))
@pytest.mark.parametrize("normalize", ("length", "none"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float64))
def test_powers(power, normalize, dtype):
    for mask in (None, "random"):
        case = replace(CASE, power=power, normalize=normalize, dtype=dtype, mask=mask, lam=1e-3)
        agree_on_loss(replace(case, values="normal"))


def test_moves_are_rounded_twice():
    """Scores one unit apart: a move that is rounded once would pass others by."""
    eps = 2.0**-23
    scores = 1 + torch.arange(33) * eps
    positives = torch.arange(33) % 4 == 0
    ranks = positive_ranks.positive_ranks(scores, positives, 1.0, None, None)
    for seed in range(10):
        g = torch.Generator().manual_seed(seed)
        grad = torch.randn(33, generator=g) * 5 * eps
        args = (grad, scores, positives, ranks, 0.7, None, None)
        expected = _ops._positive_ranks_backward(*args)
        assert_equal(positive_ranks.positive_ranks_backward(*args), expected)


@pytest.mark.parametrize("batch", ((), (1,), (4,), (2, 3)))
@pytest.mark.parametrize("reduction", _ops.REDUCTION)
def test_reductions(batch, reduction):
    """Lists without positives, and masked ones, count for nothing."""
    for share, mask in ((0.0, None), (0.05, None), (0.3, "nothing")):
        case = replace(CASE, batch=batch, reduction=reduction, share=share, mask=mask, lam=50.0)
        agree_on_loss(case)


@pytest.mark.parametrize("reduction", _ops.REDUCTION)
def test_upstream_of_any_stride(reduction):
    case = replace(CASE, batch=(2, 3), reduction=reduction, lam=50.0)
    if reduction == "none":
        grads = [torch.tensor(2.5).expand(2, 3), torch.randn(3, 2).T, torch.randn(2, 6)[:, ::2]]
    else:
        grads = [torch.tensor(2.5), torch.tensor(-0.0), torch.tensor(torch.inf)]
    for grad in grads:
        agree_on_loss(case, grad=grad)


@pytest.mark.parametrize("batch, n", (((), 0), ((3,), 0), ((0,), 5), ((2, 0), 5), ((0,), 0)))
@pytest.mark.parametrize("reduction", _ops.REDUCTION)
def test_empty(batch, n, reduction):
    case = replace(CASE, batch=batch, n=n, reduction=reduction)
    agree_on_ranks(case)
    agree_on_loss(case, grad=torch.ones(batch if reduction == "none" else ()))


def test_many_lists_share_programs(launches, monkeypatch):
    monkeypatch.setattr(tuning, "LIST_WARPS", 3)
    case = replace(CASE, batch=(8,), n=20, dtype=torch.float16)
    agree_on_ranks(case)
    agree_on_loss(replace(case, reduction="none"))
    assert {programs for _, programs in launches} == {3}


def test_one_launch_each_way(launches):
    for batch in ((), (1,), (3,)):
        agree_on_ranks(replace(CASE, batch=batch))
        names = [name for name, _ in launches]
        assert names == ["positive_ranks_kernel", "positive_ranks_backward_kernel"]
        launches.clear()
        for reduction in _ops.REDUCTION:
            agree_on_loss(replace(CASE, batch=batch, reduction=reduction))
            names = [name for name, _ in launches]
            summed = ["finish_kernel"] if reduction != "none" and batch == (3,) else []
            assert names == ["rankreg_loss_kernel", *summed, "rankreg_loss_backward_kernel"]
            launches.clear()


def test_state_beyond_its_capacity():
    """Ranks that the state has no room for are counted again."""
    for n in (256, 257, 300):
        agree_on_loss(replace(CASE, batch=(), n=n, share=1.0, values="normal", lam=100.0))


# As the sums of thousands of lists are made: in one launch, or by torch.
@pytest.mark.parametrize("most", (0, 1 << 30))
@pytest.mark.parametrize("lists", (0, 1, 2, 7, 8, 9, 40))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_sums(monkeypatch, most, lists, dtype):
    monkeypatch.setattr(tuning, "SUM_MOST", most)
    monkeypatch.setattr(tuning, "SUM_BLOCK", 8)
    losses = torch.rand(lists, dtype=torch.float64)
    counts = torch.randint(0, 3, (lists,), dtype=torch.int32)
    for reduction, name in enumerate(_ops.REDUCTION):
        state = torch.full((lists, 4), torch.nan, dtype=dtype)
        loss = loss_sum.finish(losses, counts, reduction, state, dtype)
        divisor = max(1, int((counts > 0).sum())) if name == "mean" else 1
        expected = losses if name == "none" else losses.sum() / divisor
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(loss, expected.to(dtype), rtol=4 * eps, atol=0)
        assert (state[:, 0] == divisor).all()
        assert state[:, 1:].isnan().all()


def test_sums_of_nan():
    losses = torch.tensor([1.0, torch.nan, 2.0], dtype=torch.float64)
    counts = torch.ones(3, dtype=torch.int32)
    loss = loss_sum.finish(losses, counts, loss_sum.MEAN, torch.empty(3, 2), torch.float32)
    assert loss.isnan()


@SETTINGS
@given(st.sampled_from(FLOATS), st.integers(0, 2**32 - 1))
def test_crowded_values(dtype, seed):
    """Few different scores, so that positives move onto others, past them, and away."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 4, (2, 24), generator=g).to(dtype) / 4
    positives = torch.rand(2, 24, generator=g) < 0.4
    grad = torch.randint(-3, 4, (2, 24), generator=g) / 4.0
    grad = grad.to(_ops.rank_dtype(dtype, 24))
    ranks = positive_ranks.positive_ranks(scores, positives, 1.0, None, None)
    args = (grad, scores, positives, ranks, 1.0, None, None)
    expected = _ops._positive_ranks_backward(*args)
    assert_equal(positive_ranks.positive_ranks_backward(*args), expected)


def test_long_lists_are_streamed(monkeypatch):
    """The bound decides, not the kernel."""
    monkeypatch.setattr(tuning, "LIST_MOST", 10)
    assert positive_ranks._kernels(torch.empty(2, 10)).__name__.endswith("positives_list")
    stream = pytest.importorskip("rankreg_ext.triton_kernels.positives_stream")
    assert positive_ranks._kernels(torch.empty(2, 11)) is stream


def test_values_of_every_kind():
    for values in ("sorted", "reversed", "clustered"):
        for dtype in FLOATS:
            assert values_of(values, (2, 40), dtype, torch.Generator()).dtype == dtype
            agree_on_ranks(replace(CASE, values=values, dtype=dtype))
            agree_on_loss(replace(CASE, values=values, dtype=dtype, lam=100.0))
