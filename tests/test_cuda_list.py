"""The CUDA kernels for rare positives of short lists, emulated: equal to the oracle."""

import pytest
import torch
from emulated import emulated
from hypothesis import assume, given, settings
from samples import FLOATS, assert_equal, cases, laid_out, values_of

import rankreg_ext
from rankreg_ext import _ops, reference
from rankreg_ext.reference import compute_dtype, rank_dtype

LONGEST = 4096  # of csrc/cuda/tuning.h


def gradient(function, scores, upstream):
    x = scores.detach().requires_grad_()
    out = function(x)
    if out.shape != upstream.shape:
        upstream = upstream.flatten()[0]
    out.backward(upstream.to(out.dtype))
    return out.detach(), x.grad


def check_ranks(x, positives, upstream, lam, where=None, **gpu):
    def run(module):
        function = lambda x: module.positive_ranks(x, positives, lam=lam, where=where)  # noqa: E731
        return gradient(function, x, upstream)

    expected_ranks, expected_grad = run(reference)
    with emulated(**gpu):
        ranks, grad = run(rankreg_ext)
    assert_equal(ranks, expected_ranks)
    assert_equal(grad, expected_grad)


def check_loss(x, positives, upstream, gpu, **args):
    def run(module):
        return gradient(lambda x: module.rankreg_loss(x, positives, **args), x, upstream)

    expected_loss, expected_grad = run(reference)
    with emulated(**gpu):
        loss, grad = run(rankreg_ext)
    assert_equal(grad, expected_grad)
    # The sum over lists, and over terms of 2^53 and more, may be added in another order.
    torch.testing.assert_close(
        loss, expected_loss, rtol=4 * torch.finfo(loss.dtype).eps, atol=0, equal_nan=True
    )
    return loss


@settings(max_examples=150)
@given(case=cases())
def test_positive_ranks(case):
    assume(case.n <= LONGEST)
    upstream = case.upstream().to(rank_dtype(case.dtype, case.n))
    check_ranks(
        case.scores(), case.positives(), upstream, case.lam, case.where(), seed=case.seed % 1000
    )


@settings(max_examples=150)
@given(case=cases())
def test_rankreg_loss(case):
    assume(case.n <= LONGEST)
    shape = case.batch if case.reduction == "none" else ()
    upstream = torch.randn(shape, generator=case.generator()) * 65536
    check_loss(
        case.scores(),
        case.positives(),
        upstream.to(compute_dtype(case.dtype)),
        {"seed": case.seed % 1000},
        lam=case.lam,
        power=case.power,
        normalize=case.normalize,
        where=case.where(),
        reduction=case.reduction,
    )


def sample(lists, n, count, dtype, values, seed):
    """Scores, `count` positives a list, and gradients of the ranks."""
    g = torch.Generator().manual_seed(seed)
    x = values_of(values, (lists, n), dtype, g)
    positives = torch.rand(lists, n, generator=g).argsort(-1) < count
    return x, positives, torch.randn(lists, n, generator=g).to(rank_dtype(dtype, n))


# Around every border: 128 items a warp and round, up to four rounds; teams of 512 threads; compare
# all up to 16 positives, count to sort up to 256, or as many as threads.
LENGTHS = (1, 4, 127, 128, 129, 255, 257, 511, 512, 513, 640, 1025)
COUNTS = (0, 1, 8, 9, 16, 17, 32, 33, 256, 257)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_way_of_few_and_many_positives(n, spread, dtype):
    lists = 3 if n > 300 else 9
    gpu = {"multiprocessors": 100 if spread else 1}
    for seed, count in enumerate(sorted({min(n, c) for c in (*COUNTS, n)})):
        values = ("normal", "tied", "special", "clustered")[seed % 4]
        x, positives, upstream = sample(lists, n, count, dtype, values, seed)
        check_ranks(x, positives, upstream, 3.0, seed=seed, **gpu)
        check_loss(x, positives, torch.tensor(0.7), {"seed": seed, **gpu}, lam=200.0, power=3)


@pytest.mark.parametrize("n", [2047, 2048, 2049, 3000, 4095, 4096])
def test_longest_lists(n):
    for count in (3, 40, 300, n):
        x, positives, upstream = sample(1, n, count, torch.float32, "tied", n)
        check_ranks(x, positives, upstream, 0.5, seed=1)
        check_loss(x, positives, torch.tensor(2.0), {"seed": 1}, lam=1000.0, normalize="none")


@pytest.mark.parametrize("layout", ["permuted", "strided", "misaligned", "expanded"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_layouts_of_every_argument(layout, dtype):
    def laid(x):
        return x[:1].expand(x.shape) if layout == "expanded" else laid_out(x, layout)

    for n in (132, 133):
        x, positives, upstream = sample(6, n, 20, dtype, "tied", n)
        where = laid(torch.rand(6, n) < 0.9)
        x, positives, upstream = laid(x), laid(positives), laid(upstream)
        check_ranks(x, positives, upstream, 1.0, where, seed=2, multiprocessors=1)
        for reduction, up in (("mean", torch.tensor(1.5)), ("none", laid(upstream)[:, 0])):
            args = {"where": where, "reduction": reduction, "lam": 50.0}
            up = up.to(compute_dtype(dtype))
            check_loss(x, positives, up, {"seed": 2, "multiprocessors": 1}, **args)


@pytest.mark.parametrize("lam_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_lam_in_memory(dtype, lam_dtype):
    lam = torch.tensor(2.5, dtype=lam_dtype)
    x, positives, upstream = sample(2, 100, 10, dtype, "normal", 0)
    check_ranks(x, positives, upstream, lam)
    check_loss(x, positives, torch.ones((), dtype=compute_dtype(dtype)), {}, lam=lam)


def loss_op(x, positives, reduction, lam=100.0, power=2):
    """The op itself: loss and state."""
    args = (lam, None, power, 1, None, _ops.REDUCTION.index(reduction))
    return torch.ops.rankreg_ext.rankreg_loss(x, positives, *args)


def test_state():
    """The divisor, then ranks in index order; a list with more positives than that keeps none."""
    capacity = _ops.STATE_CAPACITY
    x = torch.randn(7, 600)
    counts = (0, 5, 16, 17, capacity, capacity + 1, 600)
    positives = torch.stack([torch.randperm(600) < count for count in counts])
    x[2, positives[2].nonzero()[3]] = torch.nan
    x[3, positives[3].nonzero()[0]] = torch.nan
    with emulated(seed=5):
        states = {r: loss_op(x, positives, r)[1] for r in _ops.REDUCTION}
    expected = torch.zeros(7, 1 + capacity)
    ranks = reference.rank(x)
    for row, p, r, count in zip(expected, positives, ranks, counts, strict=True):
        if count <= capacity:
            row[1 : 1 + count] = r[p]
    for reduction, state in states.items():
        expected[:, 0] = 6 if reduction == "mean" else 1
        assert_equal(state, expected)


@pytest.mark.parametrize("count", [3, 16, 17, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ranks_that_were_not_kept_are_counted_again(count, dtype):
    x, positives, _ = sample(4, 333, count, dtype, "special", count)
    args = (100.0, None, 3, 1, None)
    upstream = torch.full((4,), 0.3, dtype=dtype)
    with emulated(seed=6):
        _, state = loss_op(x, positives, "none", power=3)
        backward = torch.ops.rankreg_ext.rankreg_loss_backward
        expected = backward(upstream, x, positives, state, *args)
        few = state[:, : 1 + count // 2].clone()
        few[:, 1:] = 0
        assert_equal(backward(upstream, x, positives, few, *args), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("lists", "n", "multiprocessors", "launches"),
    [
        (0, 5, 4, 1),
        (1, 1000, 4, 1),
        (8, 100, 4, 1),  # a block
        (40, 100, 4, 1),  # few blocks find out which of them is the last
        (20, 300, 4, 1),
        (256, 130, 132, 1),
        (257, 130, 132, 2),  # and more need a launch
        (40, 300, 1, 1),  # several lists a team
        (2600, 3, 9, 2),
    ],
)
def test_reduction_over_lists(reduction, lists, n, multiprocessors, launches):
    x = torch.randn(lists, n)
    positives = torch.rand(lists, n) < min(0.3, 10 / n)
    expected = reference.rankreg_loss(x, positives, lam=1.0, reduction=reduction)
    divisor = positives.any(-1).sum().clamp(min=1).float() if reduction == "mean" else 1.0
    results = []
    for seed in range(3):
        with emulated(seed=seed, multiprocessors=multiprocessors) as module:
            before = module.launches()
            loss, state = loss_op(x, positives, reduction)
            assert module.launches() - before == launches
        assert (state[:, 0] == divisor).all()
        results.append(loss)
    torch.testing.assert_close(
        results[0], expected, rtol=4 * torch.finfo(torch.float32).eps, atol=0
    )
    assert results[0] == results[1] == results[2]  # whatever the order of threads and blocks


def test_one_launch_each_way():
    x, positives, upstream = sample(300, 40, 20, torch.float32, "normal", 0)
    for lam in (1.0, torch.tensor(1.0)):
        with emulated() as module:
            a = x.clone().requires_grad_()
            before = module.launches()
            ranks = rankreg_ext.positive_ranks(a, positives, lam=lam)
            assert module.launches() - before == 1
            ranks.backward(upstream)
            assert module.launches() - before == 2
            losses = rankreg_ext.rankreg_loss(a, positives, lam=lam, reduction="none")
            assert module.launches() - before == 3
            losses.sum().backward()
            assert module.launches() - before == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("power", [5, 20, 60, 200])
def test_sums_beyond_exact_integers(dtype, power):
    """Terms up to 2000^power, and infinite ones: the sum is compensated, and never NaN."""
    for count in (12, 1000, 2000):
        x, positives, _ = sample(2, 2000, count, dtype, "normal", power)
        one = torch.ones(2, dtype=dtype)
        args = {"lam": 1.0, "power": power, "reduction": "none", "normalize": "none"}
        check_loss(x, positives, one, {"seed": 3}, **args)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 0), (2, 0, 5)])
def test_empty(shape):
    x, positives = torch.randn(shape), torch.zeros(shape, dtype=torch.bool)
    check_ranks(x, positives, torch.zeros(shape), 1.0)
    for reduction in ("mean", "sum", "none"):
        up = torch.ones(shape[:-1] if reduction == "none" else ())
        check_loss(x, positives, up, {}, lam=1.0, reduction=reduction)


def test_no_positive_gives_zero():
    x, positives = torch.randn(5, 70), torch.zeros(5, 70, dtype=torch.bool)
    check_ranks(x, positives, torch.randn(5, 70), 1.0)
    loss = check_loss(x, positives, torch.tensor(3.0), {}, lam=1.0)
    assert loss == 0
