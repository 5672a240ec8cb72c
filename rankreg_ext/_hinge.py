"""Hinge violations in torch's ops, differentiable any number of times.

The fallback of :func:`rankreg_ext.losses.hinge_violations` where there is no kernel, and what its
higher derivatives are made of. One sort and a few sums along it: going down the sorted list, q
grows by each gap times the number of negatives above it. These are sums of positive terms, in
float64, without a difference of large sums.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import compute_dtype


def hinge_violations(
    scores: Tensor, positives: Tensor, delta: float | Tensor, where: Tensor | None
) -> Tensor:
    """The sums q of the scores. Masks have the shape of the scores; ``delta`` gets no gradient."""
    if scores.numel() == 0:
        return scores.to(compute_dtype(scores.dtype)) * 0
    return _Hinge.apply(scores, *by_threshold(scores.detach(), positives, where, delta))


def transposed(
    grad: Tensor, scores: Tensor, positives: Tensor, delta: float | Tensor, where: Tensor | None
) -> Tensor:
    """The gradient at the scores from that at q, in which it is linear."""
    dtypes = scores.dtype, compute_dtype(scores.dtype)
    if scores.numel() == 0:
        return grad.to(scores.dtype) * 0
    return _HingeTransposed.apply(
        grad, *dtypes, *by_threshold(scores.detach(), positives, where, delta)
    )


def jacobian(
    change: Tensor, scores: Tensor, positives: Tensor, delta: float | Tensor, where: Tensor | None
) -> Tensor:
    """The change of q from one of the scores, in which it is linear."""
    dtypes = scores.dtype, compute_dtype(scores.dtype)
    if scores.numel() == 0:
        return change.to(dtypes[1]) * 0
    return _HingeJacobian.apply(
        change, *dtypes, *by_threshold(scores.detach(), positives, where, delta)
    )


def by_threshold(scores: Tensor, positives: Tensor, where: Tensor | None, delta: float | Tensor):
    """The order of the items by threshold; in that order, the thresholds and who is what.

    That is the positives, the negatives without the NaN among them, and the NaN scores. The
    threshold of a positive is ``a - delta``, that of a negative its score: a pair violates the
    margin if the negative is strictly above the positive.
    """
    if isinstance(delta, Tensor):
        delta = delta.detach()
    if where is None:
        where = torch.ones_like(positives)
    a = scores.double()
    nan = a.isnan() & where
    positives, negatives = positives & where, ~positives & where & ~nan
    threshold = torch.where(positives & ~nan, a - delta, torch.where(negatives, a, -torch.inf))
    # Stable, so that sums over ties are the same from run to run.
    threshold, order = threshold.sort(dim=-1, stable=True)
    return order, threshold, *(mask.gather(-1, order) for mask in (positives, negatives, nan))


# Every tensor of the three functions below is (..., n). What by_threshold returned is in its order;
# the first argument and the result are in the order of the scores.


class _Hinge(torch.autograd.Function):
    """q from the scores."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores, order, threshold, positives, negatives, nan):
        gap = threshold[..., 1:] - threshold[..., :-1]
        above = _from(negatives.double())[..., 1:]
        # Elsewhere the gap may be inf - inf, or there is nobody for an infinite one to concern.
        step = torch.where((gap > 0) & (above > 0), gap * above, 0)
        q = F.pad(_from(step), (0, 1))
        q = torch.where(positives, torch.where(nan, torch.nan, q), 0)
        return _unsorted(q, order).to(compute_dtype(scores.dtype))

    @staticmethod
    def setup_context(ctx, inputs, output):
        scores, *structure = inputs
        ctx.dtypes = scores.dtype, output.dtype
        ctx.save_for_backward(*structure)

    @staticmethod
    def backward(ctx, grad):
        gradient = _HingeTransposed.apply(grad, *ctx.dtypes, *ctx.saved_tensors)
        return gradient, None, None, None, None, None


class _HingeTransposed(torch.autograd.Function):
    """The gradient at the scores from that at q: linear, with :class:`_HingeJacobian` its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, dtype, q_dtype, order, threshold, positives, negatives, nan):
        positives = positives & ~nan
        u = torch.where(positives, grad.double().gather(-1, order), 0)
        first, last = _runs(threshold)
        above = F.pad(_from(negatives.double()), (0, 1)).gather(-1, last + 1)
        below = F.pad(u.cumsum(-1), (1, 0)).gather(-1, first)
        gradient = torch.where(positives, -u * above, torch.where(negatives, below, 0))
        return _unsorted(torch.where(nan, torch.nan, gradient), order).to(dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, dtype, q_dtype, *structure = inputs
        ctx.dtypes = dtype, q_dtype
        ctx.save_for_backward(*structure)

    @staticmethod
    def backward(ctx, grad):
        gradient = _HingeJacobian.apply(grad, *ctx.dtypes, *ctx.saved_tensors)
        return gradient, None, None, None, None, None, None, None


class _HingeJacobian(torch.autograd.Function):
    """The change of q from one of the scores: ``sum over violating k of (v_k - v_j)``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(change, dtype, q_dtype, order, threshold, positives, negatives, nan):
        v = change.double().gather(-1, order)
        _, last = _runs(threshold)
        above = F.pad(_from(negatives.double()), (0, 1)).gather(-1, last + 1)
        total = F.pad(_from(torch.where(negatives, v, 0)), (0, 1)).gather(-1, last + 1)
        out = torch.where(positives & ~nan, total - above * v, 0)
        return _unsorted(out, order).to(q_dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, dtype, q_dtype, *structure = inputs
        ctx.dtypes = dtype, q_dtype
        ctx.save_for_backward(*structure)

    @staticmethod
    def backward(ctx, grad):
        gradient = _HingeTransposed.apply(grad, *ctx.dtypes, *ctx.saved_tensors)
        return gradient, None, None, None, None, None, None, None


def _from(x: Tensor) -> Tensor:
    """Sums from each item to the end."""
    return x.flip(-1).cumsum(-1).flip(-1)


def _runs(value: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last place of the run of equal values that each item of a list is in."""
    n = value.shape[-1]
    place = torch.arange(n, device=value.device)
    change = F.pad(value[..., 1:] != value[..., :-1], (1, 1), value=True)
    first = torch.where(change[..., :-1], place, 0).cummax(-1).values
    last = torch.where(change[..., 1:], place, n).flip(-1).cummin(-1).values.flip(-1)
    return first, last


def _unsorted(x: Tensor, order: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter(-1, order, x)
