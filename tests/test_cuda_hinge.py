"""Hinge violations on the emulated GPU, against the loop over pairs.

With few multiprocessors and few positives a list is split into shares; with many positives a block
takes several groups of them.
"""

import pytest
import torch
from emulated import emulated
from hypothesis import assume, given, settings
from samples import LAYOUTS, assert_equal, cases, laid_out, values_of

from rankreg_ext import reference
from rankreg_ext.losses import hinge_violations
from rankreg_ext.reference import compute_dtype


def both(scores, positives, delta, where, grad):
    scores = scores.detach().requires_grad_()
    q = hinge_violations(scores, positives, delta, where)
    return q.detach(), *torch.autograd.grad(q, scores, grad)


def assert_agree(scores, positives, delta, where=None, **gpu):
    g = torch.Generator().manual_seed(scores.shape[-1])
    # In quarters sums are exact, whatever their order.
    grad = torch.randint(-8, 9, scores.shape, generator=g).to(compute_dtype(scores.dtype)) / 4
    with emulated(**gpu):
        q, gradient = both(scores, positives, delta, where, grad)
    number = delta.item() if isinstance(delta, torch.Tensor) else delta
    expected = reference.hinge_violations(scores, positives, number, where)
    epsilon = torch.finfo(q.dtype).eps * (16 if q.dtype == torch.float64 else 1)
    torch.testing.assert_close(q, expected, rtol=epsilon, atol=0, equal_nan=True)
    expected = reference.hinge_violations_backward(grad, scores, positives, number, where)
    assert_equal(gradient, expected)


@settings(max_examples=40)
@given(case=cases())
def test_drawn_cases(case):
    assume(case.n <= 600)
    delta = (0.0, 0.25, 1.0, 1e30)[case.seed % 4]
    delta = torch.tensor(delta, dtype=torch.float64) if case.seed % 3 == 0 else delta
    positives = laid_out(case.positives(), case.layout)
    gpu = {"seed": case.seed % 5, "multiprocessors": 1 + case.seed % 3}
    assert_agree(case.scores(), positives, delta, case.where(), **gpu)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 17, 511, 512, 513])
def test_numbers_of_positives(count):
    """Around a group, what a block holds of them, and groups for 8 blocks."""
    g = torch.Generator().manual_seed(count)
    scores = values_of("special", (700,), torch.float32, g)
    positives = torch.randperm(700, generator=g) < count
    assert_agree(scores, positives, 0.5, seed=count, multiprocessors=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_shares_of_a_long_list(dtype):
    """8 blocks: of three groups each has two shares, of one group four; lengths around both."""
    for n, count in ((2049, 17), (4097, 20), (6200, 5)):
        g = torch.Generator().manual_seed(n)
        scores = values_of("tied", (n,), dtype, g)
        positives = torch.randperm(n, generator=g) < count
        where = torch.rand(n, generator=g) < 0.9
        assert_agree(scores, positives, 0.5, where, seed=3, multiprocessors=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    g = torch.Generator().manual_seed(1)
    scores = laid_out(values_of("special", (2, 3, 90), torch.float32, g), layout)
    positives = laid_out(torch.rand(2, 3, 90, generator=g) < 0.2, layout)
    assert_agree(scores, positives, 0.5, laid_out(torch.rand(2, 3, 90, generator=g) < 0.8, layout))


def test_sums_do_not_depend_on_the_order_of_threads():
    g = torch.Generator().manual_seed(1)
    scores, grad = torch.randn(3000, generator=g), torch.randn(3000, generator=g)
    positives, seen = torch.rand(3000, generator=g) < 0.01, []
    for seed in range(3):
        with emulated(seed=seed, multiprocessors=2):
            seen.append(both(scores, positives, 0.25, None, grad))
    for other in seen[1:]:
        for a, b in zip(other, seen[0], strict=True):
            assert_equal(a, b)
