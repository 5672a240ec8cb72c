"""Metrics of a binary classifier: functions of whole lists."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _validate
from . import _curve

AREAS = ("normalised", "raw")


@torch.no_grad()
def roc_auc(scores: Tensor, positives: Tensor, *, where: Tensor | None = None) -> Tensor:
    r"""Area under the ROC curve: the share of (positive, negative) pairs in the right order.

    A tie counts one half. Exact, whatever the number of ties, and without sorting the scores.

    Args:
        scores: ``(..., n)``; float16, bfloat16, float32, float64.
        positives: bool, broadcastable to ``scores``.
        where: bool, broadcastable to ``scores``; masked items count for nothing.

    Returns:
        ``scores.shape[:-1]``, float64; NaN for a list without a positive, without a negative, or
        with a NaN score.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> scores = torch.tensor([0.9, 0.5, 0.5, 0.1])
        >>> roc_auc(scores, torch.tensor([True, True, False, False]))  # 3 wins and a tie of 4
        tensor(0.8750, dtype=torch.float64)

    Source: Mann and Whitney, 1947; Hanley and McNeil, 1982.
    """
    curve, defined = _curve.of_lists("roc_auc", scores, positives, where)
    return torch.where(defined, _curve.roc_auc(curve), torch.nan)


@torch.no_grad()
def fpr_at_tpr(
    scores: Tensor,
    positives: Tensor,
    tpr: float | Sequence[float] = 0.98,
    *,
    rule: str = "threshold",
    where: Tensor | None = None,
) -> Tensor:
    r"""False-positive rate at a true-positive rate: the false alarms that catching ``tpr`` costs.

    An item is called positive if its score is at or above a threshold. No rule sorts the scores.

    ``"threshold"``, or ``"reached"``
        The highest threshold whose true-positive rate is at least ``tpr``: the score of the k-th
        best positive, with the smallest k for which ``k / P >= tpr`` in float64.
    ``"interpolate"``, or ``"interpolated"``
        The smallest rate at which the empirical ROC curve, joined by straight lines, reaches
        ``tpr``. It is lower than that of ``"threshold"`` only where the k-th best positive ties
        with negatives: elsewhere the curve is a staircase.
    ``"rounded"``, or ``"alm"``
        The rule of the published evaluation of ALM (Sangalli et al., NeurIPS 2021), for comparison
        with figures computed so: the rate at a point whose true-positive rate is exactly ``tpr``;
        else at the first one whose true-positive rate, rounded to two decimals, is; else the mean
        of those at ``tpr - 0.01`` and ``tpr + 0.01``; else **0, which looks perfect and is not**.
        Our reading where that leaves room: the curve has one point per distinct score after (0, 0),
        none dropped for lying on a straight line; "exactly" is equality in float64; of several
        points that fit, the first, of the highest threshold, counts, for the exact hit and for the
        neighbours too; a neighbour fits by its rounded rate; halves round to even; both neighbours
        must exist.

    Args:
        scores: ``(..., n)``; float16, bfloat16, float32, float64.
        positives: bool, broadcastable to ``scores``.
        tpr: above 0 and at most 1, or a sequence of K such; whole hundredths for ``"rounded"``.
        rule: one of the above.
        where: bool, broadcastable to ``scores``; masked items count for nothing.

    Returns:
        ``scores.shape[:-1]``, or ``(*scores.shape[:-1], K)`` for a sequence; float64. NaN for a
        list without a positive, without a negative, or with a NaN score.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
        >>> positives = torch.tensor([True, False, True, False, False, False])
        >>> fpr_at_tpr(scores, positives, 0.98)  # one of four negatives is above 0.7
        tensor(0.2500, dtype=torch.float64)
        >>> fpr_at_tpr(scores, positives, (0.98, 0.5))
        tensor([0.2500, 0.0000], dtype=torch.float64)

    Source: the measure of "Ranking Regularization for Critical Rare Classes" (CVPR 2023). Which of
    the rules that paper uses is not public to us.
    """
    rule, targets = _curve.rule_and_targets("fpr_at_tpr", tpr, rule)
    curve, defined = _curve.of_lists("fpr_at_tpr", scores, positives, where)
    return _curve.stacked(_curve.fpr_at_tpr(curve, targets, rule), defined, tpr)


@torch.no_grad()
def partial_auc(
    scores: Tensor,
    positives: Tensor,
    *,
    min_tpr: float | Sequence[float] | None = None,
    max_fpr: float | Sequence[float] | None = None,
    area: str = "normalised",
    where: Tensor | None = None,
) -> Tensor:
    r"""Area beside a part of the ROC curve, which is joined by straight lines.

    With ``min_tpr`` the corner where a critical class is caught: the area to the right of the
    curve between the true-positive rates ``b`` and 1,

    .. math:: \int_b^1 (1 - \mathrm{FPR}(t)) \, dt

    which the worst ``(1 - b) P`` positives alone decide. With ``max_fpr`` the one-way partial area
    below the curve up to the false-positive rate ``b``, ``\int_0^b \mathrm{TPR}(f) \, df``. Of
    either, ``"raw"`` is the integral, at most its width; ``"normalised"`` divides it by its width,
    ``1 - b`` or ``b``: the mean true-negative rate over those true-positive rates, or the mean
    true-positive rate over those false-positive rates, at most 1. A score that knows nothing has
    ``(1 - b) / 2`` or ``b / 2``. (The standardised area of McClish, 1989, which maps that to 1/2,
    is another thing.) The whole range gives :func:`roc_auc`.

    Args:
        scores: ``(..., n)``; float16, bfloat16, float32, float64.
        positives: bool, broadcastable to ``scores``.
        min_tpr: at least 0 and below 1, or a sequence of K such.
        max_fpr: above 0 and at most 1, or a sequence of K such; exactly one of the two is given.
            Ranks the negatives where the other ranks the positives: slower if those are rare.
        area: ``"normalised"`` or ``"raw"``.
        where: bool, broadcastable to ``scores``; masked items count for nothing.

    Returns:
        ``scores.shape[:-1]``, or ``(*scores.shape[:-1], K)`` for a sequence; float64. NaN for a
        list without a positive, without a negative, or with a NaN score.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
        >>> positives = torch.tensor([True, False, True, False, False, False])
        >>> partial_auc(scores, positives, min_tpr=0.5)  # the worse positive beats 3 of 4
        tensor(0.7500, dtype=torch.float64)
        >>> partial_auc(scores, positives, min_tpr=(0.5, 0.0), area="raw")
        tensor([0.3750, 0.8750], dtype=torch.float64)

    Source: Dodd and Pepe, 2003. The corner: the measures of "Ranking Regularization for Critical
    Rare Classes" (CVPR 2023) are points of it.
    """
    side, values = partial_side("partial_auc", min_tpr, max_fpr, area)
    curve, defined = _curve.of_lists("partial_auc", scores, positives, where)
    return partial_areas(curve, defined, side, values, area)


def partial_side(function: str, min_tpr, max_fpr, area: str) -> tuple[str, object]:
    """Which of the two arguments was given, and its value, checked."""
    _validate.choice(function, "area", area, AREAS)
    if (min_tpr is None) == (max_fpr is None):
        got = "none" if min_tpr is None else "both"
        raise ValueError(f"{function}: exactly one of min_tpr and max_fpr must be given, got {got}")
    side = "max_fpr" if min_tpr is None else "min_tpr"
    value = max_fpr if min_tpr is None else min_tpr
    rates = _curve.rates(function, side, value, from_zero=side == "min_tpr")
    return side, rates[0] if isinstance(value, numbers.Real) else tuple(rates)


def partial_areas(
    curve: _curve.Curve, defined: Tensor, side: str, value: float | Sequence[float], area: str
) -> Tensor:
    """The areas for arguments from :func:`partial_side`."""
    rates = value if isinstance(value, tuple) else (value,)
    if side == "max_fpr":  # with the classes swapped, FPR <= b reads TPR >= 1 - b
        curve = curve.swapped()
    n = curve.n_pos.double()
    skips = [n * rate if side == "min_tpr" else n - n * rate for rate in rates]
    return _curve.stacked(_curve.partial_auc(curve, skips, area), defined, value)


@torch.no_grad()
def average_precision(scores: Tensor, positives: Tensor, *, where: Tensor | None = None) -> Tensor:
    r"""Step-wise area under the precision-recall curve, without interpolation.

    ``sum_k (R_k - R_(k-1)) P_k`` over the distinct scores, best first: all items of a tie pass the
    threshold together. That equals the mean, over the positives, of the precision among the items
    with the positive's score or a higher one.

    Args:
        scores: ``(..., n)``; float16, bfloat16, float32, float64.
        positives: bool, broadcastable to ``scores``.
        where: bool, broadcastable to ``scores``; masked items count for nothing.

    Returns:
        ``scores.shape[:-1]``, float64; NaN for a list without a positive, without a negative (where
        it would be 1 whatever the scores), or with a NaN score.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
        >>> average_precision(scores, torch.tensor([True, False, True, False]))  # (1 + 2/3) / 2
        tensor(0.8333, dtype=torch.float64)

    Source: the definition of ``average_precision_score`` of scikit-learn, which gives lists of one
    class a number where this gives NaN.
    """
    curve, defined = _curve.of_lists("average_precision", scores, positives, where)
    return torch.where(defined, _curve.average_precision(curve), torch.nan)


@torch.no_grad()
def roc_curve(scores: Tensor, positives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The empirical ROC curve of one list: a point per distinct score, after (0, 0).

    Args:
        scores: ``(n,)``; float16, bfloat16, float32, float64; no NaN.
        positives: ``(n,)`` bool.

    Returns:
        The false-positive rates and the true-positive rates, float64 and ascending, and the
        thresholds, of the dtype of the scores and descending from inf; each ``(points,)``. The
        rates of a class that is absent are NaN.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> scores = torch.tensor([0.75, 0.5, 0.5, 0.25])
        >>> fpr, tpr, thresholds = roc_curve(scores, torch.tensor([True, True, False, False]))
        >>> fpr.tolist()
        [0.0, 0.0, 0.5, 1.0]
        >>> tpr.tolist()
        [0.0, 0.5, 1.0, 1.0]
        >>> thresholds.tolist()
        [inf, 0.75, 0.5, 0.25]
    """
    positives = one_list("roc_curve", scores, positives)
    if scores.isnan().any():
        raise ValueError(
            f"roc_curve: scores must not hold NaN, got {int(scores.isnan().sum())} NaN scores"
        )
    values, index = torch.unique(scores.detach() + 0, return_inverse=True)  # + 0 folds -0.0
    thresholds = torch.cat([values.new_full((1,), torch.inf), values.flip(0)])

    def rate(members: Tensor) -> Tensor:
        counts = torch.bincount(index[members], minlength=len(values)).flip(0)
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).double() / members.sum()

    return rate(~positives), rate(positives), thresholds


def one_list(function: str, scores: Tensor, mask: Tensor, argument: str = "positives") -> Tensor:
    """The mask of scores that must be ``(n,)``, as the mask must."""
    _validate.scores(function, "scores", scores)
    if scores.dim() != 1:
        raise ValueError(
            f"{function}: scores must have 1 dimension, got shape {tuple(scores.shape)}"
        )
    expanded = _validate.mask(function, argument, mask, scores, "scores")
    if mask.shape != scores.shape:
        raise ValueError(
            f"{function}: {argument} must have the shape of scores, {tuple(scores.shape)}, "
            f"got shape {tuple(mask.shape)}"
        )
    return expanded
