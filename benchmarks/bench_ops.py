"""Time per call of every op and of the two honest baselines: ``make bench``.

Inputs rotate, because branch predictors memorise a small array; every case is first compared with
the specification; one thread. Compare medians within one run: machines differ, and are shared.
"""

import itertools

import pytest
import torch

import rankreg_ext
from rankreg_ext import reference

SHAPES = [(1, 64), (64, 128), (64, 1024), (8, 16384), (1, 1_000_000)]
POSITIVES = [8, 32, 128, 1024, 65536]
ROTATION = 8


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def double_argsort(x):
    return x.argsort(-1, descending=True).argsort(-1) + 1.0


def argsort_scatter(x):
    order = x.argsort(-1, descending=True)
    places = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype).expand_as(x)
    return torch.empty_like(x).scatter_(-1, order, places)


def run(benchmark, function, inputs, **facts):
    rotation = itertools.cycle(inputs)
    benchmark.extra_info.update(facts)
    benchmark(lambda: function(*next(rotation)))


def distinct(batch, n):
    """Scores without ties: the baselines order ties arbitrarily and could not be checked."""
    return torch.stack([torch.randperm(n).float() for _ in range(batch)])


@pytest.mark.parametrize("function", [rankreg_ext.rank, argsort_scatter, double_argsort])
@pytest.mark.parametrize(("batch", "n"), SHAPES)
def bench_rank(benchmark, function, batch, n):
    inputs = [(distinct(batch, n),) for _ in range(ROTATION)]
    assert torch.equal(function(*inputs[0]), reference.rank(*inputs[0]))
    run(benchmark, function, inputs, elements=batch * n)


LAM = 8.0


def fused_step(x, g):
    x.grad = None
    rankreg_ext.blackbox_rank(x, LAM).backward(g)
    return x.grad


def blackbox_step(rank):
    """The published formula over the given ranking function, outside autograd."""

    def step(x, g):
        x = x.detach()
        return (rank(x + LAM * g) - rank(x)) / LAM

    return step


STEPS = {
    "fused": fused_step,
    "argsort_scatter": blackbox_step(argsort_scatter),
    "double_argsort": blackbox_step(double_argsort),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("batch", "n"), SHAPES)
def bench_blackbox_rank_step(benchmark, step, batch, n):
    inputs = []
    for _ in range(ROTATION):
        x, moved = distinct(batch, n), distinct(batch, n)  # no ties after the move either
        inputs.append((x.requires_grad_(), (moved - x.detach()) / LAM))
    assert torch.equal(STEPS[step](*inputs[0]), STEPS["fused"](*inputs[0]))
    run(benchmark, STEPS[step], inputs, elements=batch * n)


def searchsorted_ranks(scores, positives):
    thresholds = scores[positives].sort().values
    below = torch.bincount(
        torch.searchsorted(thresholds, scores), minlength=len(thresholds) + 1
    )  # scores by the number of thresholds strictly below them
    ranks = 1 + below.flip(0).cumsum(0).flip(0)[1:]
    found = ranks[torch.searchsorted(thresholds, scores[positives])]
    return torch.zeros_like(scores).masked_scatter(positives, found.to(scores.dtype))


def sorted_ranks(scores, positives):
    return torch.where(positives, argsort_scatter(scores), 0)


@pytest.mark.parametrize("function", [rankreg_ext.positive_ranks, searchsorted_ranks, sorted_ranks])
@pytest.mark.parametrize("count", POSITIVES)
def bench_positive_ranks(benchmark, function, count, n=2**20):
    inputs = []
    for _ in range(ROTATION):
        positives = torch.zeros(n, dtype=torch.bool)
        positives[torch.randperm(n)[:count]] = True
        inputs.append((distinct(1, n)[0], positives))
    assert torch.equal(function(*inputs[0]), reference.positive_ranks(*inputs[0]))
    run(benchmark, function, inputs, elements=n, positives=count)


@pytest.mark.parametrize("n", [64, 256, 1024, 2**20])
def bench_rankreg_loss_step(benchmark, n):
    """Forward and backward through autograd, eight positives: what a training step pays."""
    inputs = []
    for _ in range(ROTATION):
        positives = torch.zeros(n, dtype=torch.bool)
        positives[torch.randperm(n)[:8]] = True
        inputs.append((torch.randn(n, requires_grad=True), positives))

    def step(scores, positives):
        scores.grad = None
        rankreg_ext.rankreg_loss(scores, positives, lam=5.0).backward()
        return scores.grad

    expected = inputs[0][0].detach().requires_grad_()
    reference.rankreg_loss(expected, inputs[0][1], lam=5.0).backward()
    assert torch.equal(step(*inputs[0]), expected.grad)
    run(benchmark, step, inputs, elements=n, positives=8)
