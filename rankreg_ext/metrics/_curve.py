"""The ROC curve of each list at the scores of its positives, and the metrics read off it.

Every metric here is arithmetic on four counts of each positive: the positives and the negatives
above it, and those at or above it. A list gives the counts by the ranks of its positives, without
a sort; a table of distinct scores, by sums. The metrics do not tell the two apart.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _validate
from ..functional import positive_ranks

RULES = ("threshold", "interpolate", "rounded")
# Other words for the same rules.
SYNONYMS = {"reached": "threshold", "interpolated": "interpolate", "alm": "rounded"}


class ListCurve:
    """The curve at the items of lists ``(..., n)``, n >= 1; counts hold at the positives alone.

    Each positive of a tie is an entry of its own, of weight 1.
    """

    def __init__(self, scores: Tensor, positives: Tensor, negatives: Tensor):
        self.scores, self.weight, self.negatives = scores, positives, negatives
        self.n_pos, self.n_neg = positives.sum(-1), negatives.sum(-1)

    def above(self) -> tuple[Tensor, Tensor]:
        """``(..., n)`` int64: the positives and the negatives with a higher score."""
        return self._beyond(self.scores)

    def reached(self) -> tuple[Tensor, Tensor]:
        """``(..., n)`` int64: the positives and the negatives with this score or a higher one."""
        positives, negatives = self._beyond(-self.scores)
        return self.n_pos.unsqueeze(-1) - positives, self.n_neg.unsqueeze(-1) - negatives

    def reached_positives(self) -> Tensor:
        """The first of :meth:`reached`."""
        below = positive_ranks(-self.scores, self.weight, where=self.weight).long() - 1
        return self.n_pos.unsqueeze(-1) - below

    def kth_best(self, ks: Sequence[Tensor]) -> list[Tensor]:
        """``(...)`` for each k ``(...)``, 1 <= k <= P: the score of the k-th best positive."""
        rank = positive_ranks(self.scores, self.weight, where=self.weight)
        best = (self.weight & (rank <= k.unsqueeze(-1)) for k in ks)
        return [torch.where(which, self.scores, torch.inf).amin(-1) for which in best]

    def surplus(self) -> Tensor:
        """``(...)`` int64: the pairs of a positive and a negative in the right order, less others.

        With r the rank from the top and s the rank from the bottom, ``s_i - r_i`` is the number of
        items below item i less the number above it. Summed over the positives, each pair of
        positives enters once with either sign, which leaves the pairs with negatives.
        """
        present = self.weight | self.negatives
        top = positive_ranks(self.scores, self.weight, where=present)
        bottom = positive_ranks(-self.scores, self.weight, where=present)
        return (bottom - top).long().sum(-1)

    def swapped(self) -> ListCurve:
        """The curve with the classes, and best and worst, in each other's place."""
        return ListCurve(-self.scores, self.negatives, self.weight)

    def _beyond(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        present = self.weight | self.negatives
        positives = positive_ranks(scores, self.weight, where=self.weight).long() - 1
        everything = positive_ranks(scores, self.weight, where=present).long() - 1
        return positives, everything - positives


class TableCurve:
    """The curve at distinct scores ``(m,)``, m >= 1, best first, with items ``(m,)`` of each class.

    Entries without a positive have weight 0.
    """

    def __init__(self, scores: Tensor, positives: Tensor, negatives: Tensor):
        self.scores, self.weight, self.negatives = scores, positives, negatives
        self.n_pos, self.n_neg = positives.sum(-1), negatives.sum(-1)

    def above(self) -> tuple[Tensor, Tensor]:
        """As :meth:`ListCurve.above`."""
        positives, negatives = self.reached()
        return positives - self.weight, negatives - self.negatives

    def reached(self) -> tuple[Tensor, Tensor]:
        """As :meth:`ListCurve.reached`."""
        return self.weight.cumsum(-1), self.negatives.cumsum(-1)

    def reached_positives(self) -> Tensor:
        """As :meth:`ListCurve.reached_positives`."""
        return self.weight.cumsum(-1)

    def kth_best(self, ks: Sequence[Tensor]) -> list[Tensor]:
        """As :meth:`ListCurve.kth_best`."""
        reached = self.weight.cumsum(-1)
        fits = ((self.weight > 0) & (reached >= k) for k in ks)
        return [torch.where(which, self.scores, -torch.inf).amax(-1) for which in fits]

    def surplus(self) -> Tensor:
        """As :meth:`ListCurve.surplus`."""
        reached = self.negatives.cumsum(-1)
        below, above = self.n_neg - reached, reached - self.negatives
        return (self.weight * (below - above)).sum(-1)

    def swapped(self) -> TableCurve:
        """As :meth:`ListCurve.swapped`."""
        return TableCurve(-self.scores.flip(-1), self.negatives.flip(-1), self.weight.flip(-1))


Curve = ListCurve | TableCurve


def of_lists(
    function: str, scores: Tensor, positives: Tensor, where: Tensor | None
) -> tuple[ListCurve, Tensor]:
    """The curves of ``(..., n)`` lists, and ``(...)`` bool: which of them have metrics at all."""
    _validate.scores(function, "scores", scores)
    positives = _validate.mask(function, "positives", positives, scores, "scores")
    if where is not None:
        where = _validate.mask(function, "where", where, scores, "scores")
    return masked(scores.detach(), positives, where)


def masked(scores: Tensor, positives: Tensor, where: Tensor | None) -> tuple[ListCurve, Tensor]:
    """:func:`of_lists` of arguments that have been checked and expanded."""
    negatives = ~positives
    if where is not None:
        positives, negatives = positives & where, negatives & where
    nan = (positives | negatives) & scores.isnan()
    defined = positives.any(-1) & negatives.any(-1) & ~nan.any(-1)
    if scores.shape[-1] == 0:  # one masked item, for the sake of minima
        shape = (*scores.shape[:-1], 1)
        scores = scores.new_zeros(shape)
        positives = negatives = positives.new_zeros(shape)
    # A list without a metric counts as empty: its ranks, which may be NaN, are not asked for.
    return ListCurve(scores, positives & defined.unsqueeze(-1), negatives), defined


def roc_auc(curve: Curve) -> Tensor:
    """``(...)`` float64."""
    pairs = curve.n_pos * curve.n_neg
    return (curve.surplus() + pairs).double() / (2 * pairs)  # 2 wins + ties: an exact integer


def average_precision(curve: Curve) -> Tensor:
    """``(...)`` float64."""
    tp, fp = curve.reached()
    precision = torch.where(curve.weight > 0, curve.weight * (tp.double() / (tp + fp)), 0)
    return precision.sum(-1) / curve.n_pos


def partial_auc(curve: Curve, skips: Sequence[Tensor], area: str) -> list[Tensor]:
    """``(...)`` float64 for each ``(...)`` skip: the area beyond that many of the P positives.

    All positives of a tie share one segment of the curve, and one segment at most is cut.
    """
    n_pos, n_neg = curve.n_pos.double(), curve.n_neg.double()
    (tp0, fp0), (tp1, fp1) = curve.above(), curve.reached()
    here = curve.weight > 0
    # Twice the negatives below each entry plus those beside it: integers, whose sum has no order.
    beaten = torch.where(here, curve.weight * (2 * curve.n_neg.unsqueeze(-1) - fp0 - fp1), 0)

    def beyond(skip: Tensor) -> Tensor:
        start = skip.unsqueeze(-1)
        whole = torch.where(tp0 >= start, beaten, 0).sum(-1)
        # Counts grow along the curve: the largest belong to the one segment that reaches the start.
        cut = here & (tp0 < start)
        t0, f0, t1, f1 = (
            torch.where(cut, count, 0).amax(-1).double() for count in (tp0, fp0, tp1, fp1)
        )
        f = f0 + (skip - t0) / (t1 - t0) * (f1 - f0)
        part = torch.where(cut.any(-1), (t1 - skip) * (2 * n_neg - f - f1), 0)
        return (whole + part) / (2 * n_neg * (n_pos if area == "raw" else n_pos - skip))

    return [beyond(skip) for skip in skips]


def fpr_at_tpr(curve: Curve, targets: Sequence[float], rule: str) -> list[Tensor]:
    """``(...)`` float64 for each target."""
    n_pos, n_neg = curve.n_pos.double(), curve.n_neg.double()

    def fpr(score: Tensor) -> Tensor:
        return _count(curve.negatives, curve.scores >= score.unsqueeze(-1)) / n_neg

    def interpolated(target: float, score: Tensor) -> Tensor:
        above, reached = (
            compare(curve.scores, score.unsqueeze(-1)) for compare in (torch.gt, torch.ge)
        )
        t0, t1 = _count(curve.weight, above) / n_pos, _count(curve.weight, reached) / n_pos
        f0, f1 = _count(curve.negatives, above) / n_neg, _count(curve.negatives, reached) / n_neg
        return f0 + (target - t0) / (t1 - t0) * (f1 - f0)

    def rounded(target: float) -> Tensor:
        hundred = round(target * 100)

        def first(fits: Tensor) -> tuple[Tensor, Tensor]:
            fits = fits & (curve.weight > 0)
            return fits.any(-1), fpr(torch.where(fits, curve.scores, -torch.inf).amax(-1))

        exact, fpr_exact = first(tpr == target)
        same, fpr_same = first(hundredths == hundred)
        low, fpr_low = first(hundredths == hundred - 1)
        if hundred == 1:  # the point (0, 0) comes before every positive
            low, fpr_low = torch.ones_like(low), torch.zeros_like(fpr_low)
        high, fpr_high = first(hundredths == hundred + 1)
        between = torch.where(low & high, (fpr_low + fpr_high) / 2, 0)
        return torch.where(exact, fpr_exact, torch.where(same, fpr_same, between))

    if rule == "rounded":
        tpr = curve.reached_positives() / n_pos.unsqueeze(-1)
        hundredths = (tpr * 100).round()
        return [rounded(target) for target in targets]
    scores = thresholds(curve, targets)
    if rule == "threshold":
        return [fpr(score) for score in scores]
    return [interpolated(target, score) for target, score in zip(targets, scores, strict=True)]


def thresholds(curve: Curve, targets: Sequence[float]) -> list[Tensor]:
    """``(...)`` for each target: the highest score whose true-positive rate is at least that."""
    n_pos, ks = curve.n_pos.double(), []
    for target in targets:
        # The product may round to the wrong side of an integer: 0.07 * 100 = 7.000000000000001.
        k = (target * n_pos).ceil()
        k = torch.where((k - 1) / n_pos >= target, k - 1, k)
        ks.append(torch.where(k / n_pos < target, k + 1, k))
    return curve.kth_best(ks)


def _count(items: Tensor, entries: Tensor) -> Tensor:
    """The items, bool or counts, of these entries."""
    return (items * entries).sum(-1)


# --- arguments ------------------------------------------------------------------------------------


def rule_and_targets(function: str, tpr: float | Sequence[float], rule: str):
    """The rule by its first name, and the true-positive rates as a list of float."""
    _validate.choice(function, "rule", rule, (*RULES, *SYNONYMS))
    rule = SYNONYMS.get(rule, rule)
    targets = rates(function, "tpr", tpr)
    for target in targets:
        if rule == "rounded" and target != round(target, 2):
            raise ValueError(
                f"{function}: tpr must be whole hundredths for the rule 'rounded', got {target}"
            )
    return rule, targets


def rates(
    function: str, argument: str, value: float | Sequence[float], *, from_zero: bool = False
) -> list[float]:
    """A rate or several as a list: in (0, 1], or in [0, 1) with ``from_zero``."""
    interval = "of at least 0 and below 1" if from_zero else "above 0 and at most 1"
    required = f"{function}: {argument} must be a number {interval}, or a sequence of such"
    try:
        values = [value] if isinstance(value, numbers.Real) else list(value)
    except TypeError:
        raise TypeError(f"{required}, got {type(value).__name__}") from None
    if not values:
        raise ValueError(f"{required}, got none")
    for rate in values:
        if not isinstance(rate, numbers.Real) or isinstance(rate, bool):
            raise TypeError(f"{required}, got {rate!r}")
        if not (0 <= rate < 1 if from_zero else 0 < rate <= 1):
            raise ValueError(f"{required}, got {rate}")
    return [float(rate) for rate in values]


def stacked(values: list[Tensor], defined: Tensor, of: float | Sequence[float]) -> Tensor:
    """NaN where undefined; the values of a sequence along a last dimension."""
    values = [torch.where(defined, value, torch.nan) for value in values]
    return values[0] if isinstance(of, numbers.Real) else torch.stack(values, -1)
