"""Metrics of a binary classifier at high true-positive rates, from the ranks of the positives.

Scores need no sigmoid: only their order counts, and logits do not saturate into ties. Lists lie
along the last dimension, everything before it is batch, and nothing is differentiable. A metric is
NaN where a list has no positive, no negative or a NaN score: an undefined value is never hidden.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _validate
from .functional import positive_ranks

__all__ = ["ROCAUC", "FPRAtTPR", "fpr_at_tpr", "roc_auc", "roc_curve"]

RULES = ("threshold", "interpolate", "rounded")


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
    positives, negatives, defined = _classes("roc_auc", scores, positives, where)
    # With r the rank from the top and s the rank from the bottom, s_i - r_i is the number of items
    # below item i less the number above it. Summed over the positives, each pair of positives
    # enters once with either sign, which leaves wins - losses against the negatives. As wins +
    # ties + losses = P N, adding that gives 2 wins + ties: an exact integer.
    present = positives | negatives
    top = positive_ranks(scores, positives, where=present)
    bottom = positive_ranks(-scores, positives, where=present)
    surplus = torch.where(defined.unsqueeze(-1), bottom - top, 0).long().sum(-1)
    pairs = positives.sum(-1) * negatives.sum(-1)
    return torch.where(defined, (surplus + pairs).double() / (2 * pairs), torch.nan)


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

    ``"threshold"``
        The highest threshold whose true-positive rate is at least ``tpr``: the score of the k-th
        best positive, with the smallest k for which ``k / P >= tpr`` in float64.
    ``"interpolate"``
        The smallest rate at which the empirical ROC curve, joined by straight lines, reaches
        ``tpr``. It is lower than that of ``"threshold"`` only where the k-th best positive ties
        with negatives: elsewhere the curve is a staircase.
    ``"rounded"``
        The rule of the published evaluation of ALM (Sangalli et al., NeurIPS 2021), for comparison
        with figures computed so: the rate at a point whose true-positive rate is exactly ``tpr``;
        else at one whose true-positive rate, rounded to two decimals, is; else the mean of those
        at ``tpr - 0.01`` and ``tpr + 0.01``; else **0, which looks perfect and is not**. Our
        reading where that leaves room: the curve has one point per distinct score after (0, 0), of
        several points that fit the first counts, halves round to even, and both neighbours must
        exist.

    Args:
        scores: ``(..., n)``; float16, bfloat16, float32, float64.
        positives: bool, broadcastable to ``scores``.
        tpr: above 0 and at most 1, or a sequence of K such; whole hundredths for ``"rounded"``.
        rule: ``"threshold"``, ``"interpolate"`` or ``"rounded"``.
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
    targets = _targets("fpr_at_tpr", tpr, rule)
    positives, negatives, defined = _classes("fpr_at_tpr", scores, positives, where)
    if scores.shape[-1] == 0:
        rates = [torch.full_like(defined, torch.nan, dtype=torch.float64)] * len(targets)
    else:
        curve = _PositivesOnCurve(scores, positives, negatives)
        rates = [
            torch.where(defined, getattr(curve, rule)(target), torch.nan) for target in targets
        ]
    return rates[0] if isinstance(tpr, numbers.Real) else torch.stack(rates, -1)


class _PositivesOnCurve:
    """The ROC curve of each list, known at the scores of the positives: ``(..., n)`` tensors.

    At a score ``a_i`` stand the points "above ``a_i``" and "at or above ``a_i``". Every
    true-positive rate of the curve but 0 first occurs at one of the latter.
    """

    def __init__(self, scores: Tensor, positives: Tensor, negatives: Tensor):
        self.scores, self.positives, self.negatives = scores, positives, negatives
        self.n_pos = positives.sum(-1).double()
        self.n_neg = negatives.sum(-1).double()
        self.rank = positive_ranks(scores, positives, where=positives)

    def threshold(self, tpr: float) -> Tensor:
        return self._fpr(self._score_at(tpr))

    def interpolate(self, tpr: float) -> Tensor:
        t = self._score_at(tpr)
        above, at = self.scores > t.unsqueeze(-1), self.scores >= t.unsqueeze(-1)
        tpr0 = (self.positives & above).sum(-1) / self.n_pos
        tpr1 = (self.positives & at).sum(-1) / self.n_pos
        fpr0 = (self.negatives & above).sum(-1) / self.n_neg
        fpr1 = self._fpr(t)
        return fpr0 + (tpr - tpr0) / (tpr1 - tpr0) * (fpr1 - fpr0)

    def rounded(self, tpr: float) -> Tensor:
        # The positives at or above each positive: all less those below it.
        below = positive_ranks(-self.scores, self.positives, where=self.positives) - 1
        share = (self.n_pos.unsqueeze(-1) - below) / self.n_pos.unsqueeze(-1)
        hundredths, target = (share * 100).round(), round(tpr * 100)

        exact, fpr = self._first(share == tpr)
        same, fpr_same = self._first(hundredths == target)
        low, fpr_low = self._first(hundredths == target - 1)
        if target == 1:  # the point (0, 0) comes before every positive
            low, fpr_low = torch.ones_like(low), torch.zeros_like(fpr_low)
        high, fpr_high = self._first(hundredths == target + 1)

        between = torch.where(low & high, (fpr_low + fpr_high) / 2, 0)
        return torch.where(exact, fpr, torch.where(same, fpr_same, between))

    def _score_at(self, tpr: float) -> Tensor:
        """The score of the k-th best positive, k the smallest with ``k / P >= tpr``."""
        # The product may round to the wrong side of an integer: 0.07 * 100 = 7.000000000000001.
        k = (tpr * self.n_pos).ceil()
        k = torch.where((k - 1) / self.n_pos >= tpr, k - 1, k)
        k = torch.where(k / self.n_pos < tpr, k + 1, k)
        best = self.positives & (self.rank <= k.unsqueeze(-1))
        return torch.where(best, self.scores, torch.inf).amin(-1)

    def _first(self, fits: Tensor) -> tuple[Tensor, Tensor]:
        """Whether any positive fits, and the false-positive rate at the best of them."""
        fits = fits & self.positives
        return fits.any(-1), self._fpr(torch.where(fits, self.scores, -torch.inf).amax(-1))

    def _fpr(self, threshold: Tensor) -> Tensor:
        return (self.negatives & (self.scores >= threshold.unsqueeze(-1))).sum(-1) / self.n_neg


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
    positives = _one_list("roc_curve", scores, positives)
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


class _Accumulated:
    """A metric over one list that arrives in batches."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._batches: list[tuple[Tensor, Tensor]] = []

    def update(self, scores: Tensor, positives: Tensor) -> None:
        """Add a batch: detached copies, kept on the batch's device.

        Args:
            scores: ``(n,)``; float16, bfloat16, float32, float64.
            positives: ``(n,)`` bool.

        Raises:
            TypeError, ValueError: for an argument that is not as described.
        """
        positives = _one_list(f"{type(self).__name__}.update", scores, positives)
        self._batches.append((scores.detach().clone(), positives.clone()))

    def __len__(self) -> int:
        """Items added since the last reset."""
        return sum(len(scores) for scores, _ in self._batches)

    def _list(self) -> tuple[Tensor, Tensor]:
        """All batches as one list, on the device of the first."""
        if not self._batches:
            return torch.empty(0), torch.empty(0, dtype=torch.bool)
        device = self._batches[0][0].device
        scores, positives = (
            torch.cat([batch.to(device) for batch in batches])
            for batches in zip(*self._batches, strict=True)
        )
        return scores, positives


class FPRAtTPR(_Accumulated):
    """:func:`fpr_at_tpr` over all batches of an evaluation.

    Args:
        tpr: as for :func:`fpr_at_tpr`.
        rule: as for :func:`fpr_at_tpr`.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> metric = FPRAtTPR(tpr=(0.98, 0.5))
        >>> metric.update(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True]))
        >>> metric.update(torch.tensor([0.6, 0.5, 0.4]), torch.tensor([False, False, False]))
        >>> metric.compute()
        tensor([0.2500, 0.0000], dtype=torch.float64)
    """

    def __init__(
        self,
        tpr: float | Sequence[float] = (0.98, 0.95, 0.92, 0.90),
        rule: str = "threshold",
    ):
        super().__init__()
        targets = _targets("FPRAtTPR", tpr, rule)
        self.tpr = targets[0] if isinstance(tpr, numbers.Real) else tuple(targets)
        self.rule = rule

    def compute(self) -> Tensor:
        """The rate, 0-dim, or ``(K,)`` for K targets; float64; NaN as for :func:`fpr_at_tpr`."""
        return fpr_at_tpr(*self._list(), self.tpr, rule=self.rule)


class ROCAUC(_Accumulated):
    """:func:`roc_auc` over all batches of an evaluation.

    Example:
        >>> metric = ROCAUC()
        >>> metric.update(torch.tensor([0.9, 0.5]), torch.tensor([True, True]))
        >>> metric.update(torch.tensor([0.5, 0.1]), torch.tensor([False, False]))
        >>> metric.compute()
        tensor(0.8750, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """The area, 0-dim float64; NaN as for :func:`roc_auc`."""
        return roc_auc(*self._list())


def _classes(
    function: str, scores: Tensor, positives: Tensor, where: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The unmasked positives and negatives ``(..., n)``, and which lists have a metric at all."""
    _validate.scores(function, "scores", scores)
    positives = _validate.mask(function, "positives", positives, scores, "scores")
    negatives = ~positives
    if where is not None:
        where = _validate.mask(function, "where", where, scores, "scores")
        positives, negatives = positives & where, negatives & where
    nan = (positives | negatives) & scores.isnan()
    return positives, negatives, positives.any(-1) & negatives.any(-1) & ~nan.any(-1)


def _one_list(function: str, scores: Tensor, positives: Tensor) -> Tensor:
    """The positives of scores that must be ``(n,)``, as the positives must."""
    _validate.scores(function, "scores", scores)
    if scores.dim() != 1:
        raise ValueError(
            f"{function}: scores must have 1 dimension, got shape {tuple(scores.shape)}"
        )
    mask = _validate.mask(function, "positives", positives, scores, "scores")
    if positives.shape != scores.shape:
        raise ValueError(
            f"{function}: positives must have the shape of scores, {tuple(scores.shape)}, "
            f"got shape {tuple(positives.shape)}"
        )
    return mask


def _targets(function: str, tpr: float | Sequence[float], rule: str) -> list[float]:
    """The true-positive rates as a list of float."""
    _validate.choice(function, "rule", rule, RULES)
    required = f"{function}: tpr must be a number above 0 and at most 1, or a sequence of such"
    try:
        targets = [tpr] if isinstance(tpr, numbers.Real) else list(tpr)
    except TypeError:
        raise TypeError(f"{required}, got {type(tpr).__name__}") from None
    if not targets:
        raise ValueError(f"{required}, got none")
    for target in targets:
        if not isinstance(target, numbers.Real) or isinstance(target, bool):
            raise TypeError(f"{required}, got {target!r}")
        if not 0 < target <= 1:
            raise ValueError(f"{required}, got {target}")
        if rule == "rounded" and target != round(target, 2):
            raise ValueError(
                f"{function}: tpr must be whole hundredths for the rule 'rounded', got {target}"
            )
    return [float(target) for target in targets]
