"""hinge_violations of every back-end against the loop over pairs in rankreg_ext.reference.

The numbers themselves are tested in test_losses.py, by exact arithmetic.
"""

import pytest
import torch
from hypothesis import assume, given, settings
from samples import (
    BACKENDS,
    FLOATS,
    LAYOUTS,
    TRITON,
    Case,
    assert_equal,
    cases,
    laid_out,
    on_device,
    values_of,
)

import rankreg_ext
from rankreg_ext import _backend, _ops, reference
from rankreg_ext.losses import hinge_violations
from rankreg_ext.reference import compute_dtype

DELTAS = (0.0, 0.25, 1.0, 1e-30, 1e30)
EVERY = ("reference", *BACKENDS, pytest.param("triton", marks=TRITON))


native = _backend.load_native()


def both(scores, positives, delta, where, grad):
    """Value and gradient."""
    scores = scores.detach().requires_grad_()
    q = hinge_violations(scores, positives, delta, where)
    return q.detach(), *torch.autograd.grad(q, scores, grad)


def oracle(scores, positives, delta, where, grad):
    q = reference.hinge_violations(scores, positives, delta, where)
    return q, reference.hinge_violations_backward(grad, scores, positives, delta, where)


def assert_near(actual, expected, grad, delta):
    """All but the rounding of sums in float64, and then that to the result's own type."""
    q, expected_q = actual[0], expected[0]
    epsilon = torch.finfo(q.dtype).eps
    wide = 64 * epsilon if q.dtype == torch.float64 else epsilon
    torch.testing.assert_close(q, expected_q, rtol=wide, atol=0, equal_nan=True)
    gradient, expected_gradient = actual[1], expected[1]
    # Upstream values may cancel: an error of the sum of their magnitudes.
    scale = grad.abs().nan_to_num(0, 0, 0).double().sum().item() if grad.numel() else 0.0
    torch.testing.assert_close(
        gradient,
        expected_gradient,
        rtol=2 * torch.finfo(gradient.dtype).eps,
        atol=1e-13 * scale,
        equal_nan=True,
    )


def upstream(case):
    g = case.generator().manual_seed(case.seed + 3)
    grad = torch.randn((*case.batch, case.n), generator=g, dtype=compute_dtype(case.dtype))
    if case.gradient in ("sparse", "zero lists"):
        grad = grad * (torch.rand(grad.shape, generator=g) < 0.3)
    elif case.gradient == "one value" and grad.numel():
        grad = grad.flatten()[:1].expand(grad.shape)
    return grad


def check(backend, case, delta, device="cpu"):
    scores, positives, where, grad = (
        on_device(x, device)
        for x in (case.scores(), case.positives(), case.where(), upstream(case))
    )
    if isinstance(delta, torch.Tensor):
        delta = delta.to(device)
    expected = oracle(scores, positives, delta, where, grad)
    with rankreg_ext.use_backend(backend):
        actual = both(scores, positives, delta, where, grad)
    assert_near(actual, expected, grad, delta)


@pytest.mark.parametrize("backend", EVERY)
@settings(max_examples=80)
@given(case=cases())
def test_equals_the_loop_over_pairs(backend, case):
    assume(case.n <= 300 or not case.batch)  # the loop is slow
    device = _backend.DEVICES[backend][0] if backend != "reference" else "cpu"
    delta = DELTAS[case.seed % len(DELTAS)]
    check(backend, case, torch.tensor(delta) if case.seed % 3 == 0 else delta, device)


def a_case(n, share=0.3, dtype=torch.float32, batch=(), values="tied", layout="contiguous", **more):
    return Case(
        seed=more.pop("seed", n), batch=batch, n=n, dtype=dtype, values=values, layout=layout,
        mask=more.pop("mask", None), share=share, ties="min", descending=True, lam=1.0, power=1,
        normalize="none", reduction="none", gradient="dense",
    )  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_every_count_of_positives_around_the_crossovers(share, dtype):
    # Lengths times shares: on both sides of kHingePairs and of kSearchMost of every isa.
    for n in (1, 4, 5, 8, 31, 32, 33, 63, 64, 65, 127, 128, 257, 1025):
        check("auto", a_case(n, share, dtype, mask="random"), 0.5)


@pytest.mark.parametrize("isa", native.isas())
def test_instruction_sets_and_threads_give_equal_results(isa, threads):
    g = torch.Generator().manual_seed(5)
    before = native.isa()
    try:
        for n, share in ((200_000, 0.00001), (200_000, 0.001), (70_000, 0.3), (257, 0.1)):
            scores = torch.randn(n, generator=g)
            positives = torch.rand(n, generator=g) < share
            positives[n // 2] = True
            grad = torch.randn(n, generator=g)
            args = (scores, positives, 0.25, None, grad)
            native.use_isa(before)
            threads(1)
            expected = both(*args)
            native.use_isa(isa)
            for count in (1, 2, 5):
                threads(count)
                for a, b in zip(both(*args), expected, strict=True):
                    assert_equal(a, b)
    finally:
        native.use_isa(before)


def test_long_lists_of_many_positives():
    n, g = 70_000, torch.Generator().manual_seed(1)
    for share in (0.0002, 0.02, 0.6):
        scores, positives = torch.randn(n, generator=g), torch.rand(n, generator=g) < share
        where, grad = torch.rand(n, generator=g) < 0.9, torch.randn(n, generator=g)
        with rankreg_ext.use_backend("reference"):
            expected = both(scores, positives, 0.25, where, grad)
        assert_near(both(scores, positives, 0.25, where, grad), expected, grad, 0.25)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_masks_and_gradients(layout):
    g = torch.Generator().manual_seed(2)
    scores = values_of("special", (3, 70), torch.float32, g)
    positives, where = torch.rand(3, 70, generator=g) < 0.3, torch.rand(3, 70, generator=g) < 0.8
    grad = torch.randn(3, 70, generator=g)
    expected = both(scores, positives, 0.5, where, grad)
    args = (laid_out(x, layout) for x in (scores, positives, where, grad))
    scores, positives, where, grad = args
    for a, b in zip(both(scores, positives, 0.5, where, grad), expected, strict=True):
        assert_equal(a, b)


def test_gradients_of_positives_that_nothing_violates():
    # None has a score above its threshold, so that there is no breakpoint at all.
    for n in (5, 40):
        scores = torch.full((n,), torch.inf)
        q, gradient = both(scores, torch.arange(n) % 2 == 0, 1.0, None, torch.ones(n))
        assert not q.any() and not gradient.any()
    nan = torch.full((40,), torch.nan)
    q, gradient = both(nan, torch.arange(40) % 2 == 0, 1.0, None, torch.ones(40))
    assert q[::2].isnan().all() and not q[1::2].any() and gradient.isnan().all()


def test_a_nan_delta_is_nobodys_violation():
    scores = torch.randn(60)
    for positives in (torch.arange(60) < 3, torch.arange(60) % 2 == 0):
        args = (scores, positives, torch.tensor(torch.nan), None, torch.ones(60))
        q, gradient = both(*args)
        assert not q.any() and not gradient.any()


def test_fallback_and_kernel_agree_op_by_op():
    x = values_of("special", (2, 3, 17), torch.float32, torch.Generator())
    args = (torch.rand(x.shape) < 0.3, 0.5, None, torch.rand(x.shape) < 0.8)
    ops = torch.ops.rankreg_ext
    assert_equal(ops.hinge_violations(x, *args), _ops._hinge_violations(x, *args))
    grad = torch.randint(-8, 9, x.shape) / 4
    assert_equal(
        ops.hinge_violations_backward(grad, x, *args),
        _ops._hinge_violations_backward(grad, x, *args),
    )


def test_one_delta_per_example_of_a_mapped_dimension():
    scores, positives = torch.randn(3, 9), torch.rand(3, 9) < 0.4
    deltas = torch.tensor([0.0, 0.5, 2.0])

    def total(s, p, delta):
        return hinge_violations(s, p, delta).sum()

    gradient = torch.func.grad(total)
    assert_equal(
        torch.func.vmap(gradient)(scores, positives, deltas),
        torch.stack([gradient(*row) for row in zip(scores, positives, deltas, strict=True)]),
    )
