"""The CUDA kernels for rare positives of short lists, emulated: equal to the oracle."""

import pytest
import torch
from emulated import emulated
from hypothesis import given, settings
from samples import FLOATS, assert_equal, cases, laid_out, values_of

import rankreg_ext
from rankreg_ext import _ops, reference
from rankreg_ext.reference import compute_dtype, rank_dtype


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
    upstream = case.upstream().to(rank_dtype(case.dtype, case.n))
    check_ranks(
        case.scores(), case.positives(), upstream, case.lam, case.where(), seed=case.seed % 1000
    )


@settings(max_examples=150)
@given(case=cases())
def test_rankreg_loss(case):
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
