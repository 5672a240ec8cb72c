"""Metrics of a classifier of several classes, some of which are critical."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _validate
from . import _curve

BELOW = ("argmax", "others")
POPULATIONS = ("all", "critical", "others")
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@torch.no_grad()
def accuracy(scores: Tensor, labels: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Share of the items whose highest score is that of their label; the first of equal scores.

    Args:
        scores: ``(..., n, C)``, C classes; float16, bfloat16, float32, float64.
        labels: integers, broadcastable to ``(..., n)``. A label that is no class is never right.
        where: bool, broadcastable to ``(..., n)``; masked items count for nothing.

    Returns:
        ``scores.shape[:-2]``, float64; NaN for a list without an item, or with a NaN score.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> scores = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
        >>> accuracy(scores, torch.tensor([0, 1, 1]))
        tensor(0.6667, dtype=torch.float64)
    """
    labels, where = labels_and_mask("accuracy", scores, labels, where)
    right, present = scores.argmax(-1) == labels, torch.ones_like(labels, dtype=torch.bool)
    if where is not None:
        right, present = right & where, where
    undefined = (scores.isnan().any(-1) & present).any(-1)
    # 0 / 0 is NaN, as is wanted of an empty list.
    return torch.where(undefined, torch.nan, right.sum(-1).double() / present.sum(-1))


@torch.no_grad()
def error_at_tpr(
    scores: Tensor,
    labels: Tensor,
    critical: int | Sequence[int],
    tpr: float | Sequence[float] = 0.9,
    *,
    below: str = "argmax",
    population: str = "all",
    where: Tensor | None = None,
) -> Tensor:
    r"""Error rate of a classifier that must catch ``tpr`` of a critical class.

    An item is called critical if its score of the critical class is at or above the highest
    threshold that catches at least ``tpr`` of that class (the rule ``"threshold"`` of
    :func:`fpr_at_tpr`); any other item is called as ever. The error rate counts every item that is
    called by another name than its label.

    **This is our reading.** The paper reports "Error at 80 % and at 90 % TPR"; its definition is
    not public to us. What a reading must choose is therefore an argument.

    Thresholds compare scores of different items, which the softmax does not leave in order: logits,
    probabilities and log-probabilities of one model may give different errors. Logits of a class
    are the scores that the rank regulariser ranks.

    Args:
        scores: ``(..., n, C)``, C classes, at least 2; float16, bfloat16, float32, float64.
        labels: integers, broadcastable to ``(..., n)``. A label that is no class is never right.
        critical: a class, or a sequence of K classes, each of which is critical alone, in its turn.
        tpr: above 0 and at most 1, or a sequence of T such.
        below: what the items below the threshold are called: ``"argmax"`` the class of the highest
            score, which may be the critical one, so that more than ``tpr`` of it may be caught;
            ``"others"`` that of the highest score among the other classes.
        population: the items whose error rate it is: ``"all"``, the ``"critical"`` class, or the
            ``"others"``.
        where: bool, broadcastable to ``(..., n)``; masked items count for nothing.

    Returns:
        ``scores.shape[:-2]``, followed by K for a sequence of classes and by T for a sequence of
        rates; float64. NaN for a list without an item of the critical class, without another item,
        or with a NaN score.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> scores = torch.tensor([[2.0, 1.0], [1.0, 0.0], [3.0, 0.0], [1.0, -2.0]])
        >>> labels = torch.tensor([1, 1, 0, 0])
        >>> error_at_tpr(scores, labels, critical=1, tpr=(0.5, 1.0))  # 1 missed; 1 false alarm
        tensor([0.2500, 0.2500], dtype=torch.float64)
    """
    classes, targets = error_arguments("error_at_tpr", critical, tpr, below, population)
    labels, where = labels_and_mask("error_at_tpr", scores, labels, where, classes)
    errors = []
    for c in classes:
        score, positives, wrong = reduced(scores, labels, c, below)
        curve, defined = _curve.masked(score, positives, where)
        negatives, present = ~positives, defined.unsqueeze(-1)
        present = present if where is None else present & where
        groups = [negatives & ~wrong, negatives & wrong, positives & ~wrong, positives & wrong]
        groups = [group & present for group in groups]
        thresholds = _curve.thresholds(curve, targets)
        values = [error(score, groups, threshold, population) for threshold in thresholds]
        errors.append(_curve.stacked(values, defined, tpr))
    return errors[0] if isinstance(critical, int) else torch.stack(errors, scores.dim() - 2)


def reduced(scores: Tensor, labels: Tensor, c: int, below: str) -> tuple[Tensor, Tensor, Tensor]:
    """All that matters of each item ``(..., n)`` if ``c`` is critical.

    Its score, NaN if any of its scores is; whether it belongs to the class; and whether the name
    that it has below the threshold is wrong.
    """
    if below == "argmax":
        called = scores.argmax(-1)
    else:
        called = torch.cat([scores[..., :c], scores[..., c + 1 :]], -1).argmax(-1)
        called = called + (called >= c)
    score = torch.where(scores.isnan().any(-1), torch.nan, scores[..., c])
    return score, labels == c, called != labels


def error(score: Tensor, groups: list[Tensor], threshold: Tensor, population: str) -> Tensor:
    """``(...)`` float64, from entries of ``score`` ``(..., m)``.

    The groups are the items ``(..., m)`` of each entry: the negatives and the positives, of either
    first those that are right below the threshold and then those that are wrong.
    """
    negative_right, negative_wrong, positive_right, positive_wrong = groups
    reached = score >= threshold.unsqueeze(-1)
    errors = items = 0
    if population != "critical":
        errors = errors + torch.where(reached, negative_right, 0).sum(-1) + negative_wrong.sum(-1)
        items = items + negative_right.sum(-1) + negative_wrong.sum(-1)
    if population != "others":
        errors = errors + torch.where(reached, 0, positive_wrong).sum(-1)
        items = items + positive_right.sum(-1) + positive_wrong.sum(-1)
    return errors.double() / items


# --- arguments ------------------------------------------------------------------------------------


def labels_and_mask(
    function: str,
    scores: Tensor,
    labels: Tensor,
    where: Tensor | None,
    classes: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Labels and mask expanded to the items; ``classes`` must be classes of the scores."""
    _validate.scores(function, "scores", scores)
    least = 1 if classes is None else 2
    if scores.dim() < 2 or scores.shape[-1] < least:
        raise ValueError(
            f"{function}: scores must be (..., n, C) with C >= {least} classes, "
            f"got shape {tuple(scores.shape)}"
        )
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"{function}: labels must be an integer torch.Tensor, got {type(labels).__name__}"
        )
    if labels.dtype not in _INTEGERS:
        raise TypeError(f"{function}: labels must have an integer dtype, got {labels.dtype}")
    if labels.device != scores.device:
        raise ValueError(
            f"{function}: labels must be on the device of scores, {scores.device}, "
            f"got {labels.device}"
        )
    items = scores.shape[:-1]
    try:
        labels = labels.long().expand(items)  # so that no class is out of its type's range
    except RuntimeError:
        raise ValueError(
            f"{function}: labels must be broadcastable to the items of scores, {tuple(items)}, "
            f"got shape {tuple(labels.shape)}"
        ) from None
    if where is not None:
        where = _validate.mask(function, "where", where, scores[..., 0], "the items of scores")
    for c in classes or ():
        if not 0 <= c < scores.shape[-1]:
            raise ValueError(
                f"{function}: critical must be classes of scores, of which there are "
                f"{scores.shape[-1]}, got {c}"
            )
    return labels, where


def error_arguments(
    function: str, critical: int | Sequence[int], tpr, below: str, population: str
) -> tuple[list[int], list[float]]:
    """The critical classes and the true-positive rates, as lists."""
    required = f"{function}: critical must be a class, an integer of at least 0, or several"
    try:
        classes = [critical] if isinstance(critical, int) else list(critical)
    except TypeError:
        raise TypeError(f"{required}, got {type(critical).__name__}") from None
    if not classes:
        raise ValueError(f"{required}, got none")
    for c in classes:
        if not isinstance(c, int) or isinstance(c, bool):
            raise TypeError(f"{required}, got {c!r}")
        if c < 0:
            raise ValueError(f"{required}, got {c}")
    _validate.choice(function, "below", below, BELOW)
    _validate.choice(function, "population", population, POPULATIONS)
    return classes, _curve.rates(function, "tpr", tpr)
