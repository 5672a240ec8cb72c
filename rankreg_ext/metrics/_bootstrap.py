"""Percentile intervals by resampling the items of a list, batched through the kernels."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _validate

Metric = Callable[[Tensor, Tensor], Tensor]


class Interval(NamedTuple):
    """A value with its bootstrap interval; all tensors have the shape of the metric.

    Example:
        >>> Interval(*map(torch.tensor, (0.5, 0.25, 0.75, 3, [0.25, 0.5, 0.75]))).high
        tensor(0.7500)
    """

    estimate: Tensor
    """The metric of the list itself."""
    low: Tensor
    """The lower end, float64."""
    high: Tensor
    """The upper end, float64."""
    defined: Tensor
    """int64: the resamples whose metric is no NaN; the others are left out of the interval."""
    samples: Tensor
    """``(resamples, ...)``: the metric of every resample."""


@torch.no_grad()
def bootstrap(
    metric: Metric,
    scores: Tensor,
    targets: Tensor,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    stratified: bool = True,
    seed: int = 0,
    max_items: int = 2**20,
) -> Interval:
    r"""A metric of a list of items and its percentile interval under resampling of the items.

    Items are drawn with replacement, as many as there are. Lists before the last dimension, say
    those of several models, are lists of the *same* items, and every resample draws the same items
    from all of them. The ends of the interval are the ``(1 - level) / 2`` quantile of the resamples
    and its mirror image, interpolated linearly between order statistics.

    Percentile intervals of a rate at the far end of a small sample, such as the FPR at 98 % TPR of
    30 positives, are too short: few items decide it, and no resample has a worse positive.

    Args:
        metric: a function of scores and targets, both with leading dimensions, that returns a value
            or several for each list: :func:`fpr_at_tpr` or another of this module, or
            ``functools.partial`` of it.
        scores: ``(..., n)`` for bool targets, ``(..., n, C)`` for integer targets.
        targets: ``(n,)``: bool, the positives, or integers, the labels.
        resamples: at least 1.
        level: of confidence, between 0 and 1.
        stratified: each class keeps its number of items, so that no resample lacks one. Otherwise
            the numbers vary as they would if data came from one source, and a resample may have no
            metric: see ``Interval.defined``.
        seed: of a generator of its own, on the CPU: the draws depend neither on the device nor on
            ``max_items``.
        max_items: about as many scores as are resampled at a time; memory is some 100 bytes each.

    Returns:
        An :class:`Interval`. NaN ends where no resample has a metric.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> from rankreg_ext.metrics import roc_auc
        >>> positives = torch.arange(60) < 20
        >>> scores = torch.arange(60) % 7 + 2.0 * positives
        >>> interval = bootstrap(roc_auc, scores, positives, resamples=200)
        >>> bool(interval.low < interval.estimate) and bool(interval.estimate < interval.high)
        True

    Source: Efron, 1979; the percentile interval: Efron and Tibshirani, 1993, chapter 13.
    """
    items = _items("bootstrap", scores, targets)
    _settings("bootstrap", resamples, level, seed, max_items)
    estimate, samples = _sampled(
        "bootstrap", metric, scores, targets, items, resamples, stratified, seed, max_items
    )
    return _interval(estimate, samples, level)


@torch.no_grad()
def bootstrap_difference(
    metric: Metric,
    scores: Tensor,
    other: Tensor,
    targets: Tensor,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    stratified: bool = True,
    seed: int = 0,
    max_items: int = 2**20,
) -> Interval:
    """``metric(scores) - metric(other)`` of two models on the same items, and its interval.

    Paired: every resample draws the same items for both models, so that what makes items hard for
    both cancels. An interval without 0 is a difference at that level. The arguments are those of
    :func:`bootstrap`, which see; ``other`` has the shape of ``scores``. A resample counts if both
    models have the metric.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> from rankreg_ext.metrics import fpr_at_tpr
        >>> positives = torch.arange(60) < 20
        >>> scores = torch.arange(60) % 7 + 2.0 * positives
        >>> bootstrap_difference(fpr_at_tpr, scores, scores, positives).high
        tensor(0., dtype=torch.float64)
    """
    function = "bootstrap_difference"
    items = _items(function, scores, targets)
    _validate.scores(function, "other", other)
    if other.shape != scores.shape or other.device != scores.device:
        raise ValueError(
            f"{function}: other must have the shape and the device of scores, "
            f"{tuple(scores.shape)} on {scores.device}, "
            f"got {tuple(other.shape)} on {other.device}"
        )
    _settings(function, resamples, level, seed, max_items)
    dtype = torch.promote_types(scores.dtype, other.dtype)
    both = torch.stack([scores.to(dtype), other.to(dtype)])
    estimate, samples = _sampled(
        function, metric, both, targets, items, resamples, stratified, seed, max_items
    )
    return _interval(estimate[0] - estimate[1], samples[:, 0] - samples[:, 1], level)


def _sampled(
    function: str,
    metric: Metric,
    scores: Tensor,
    targets: Tensor,
    items: int,
    resamples: int,
    stratified: bool,
    seed: int,
    max_items: int,
) -> tuple[Tensor, Tensor]:
    """The metric of the lists ``(...)``, and of every resample ``(resamples, ...)``.

    ``items`` is the dimension of the scores along which the items lie, from the end.
    """
    scores = scores.detach()
    shape = scores.shape[: scores.dim() + items + 1]
    estimate = metric(scores, targets.expand(shape))
    rows = max(1, max_items // max(1, scores.numel()))
    samples = []
    for index in draws(targets, resamples, stratified, seed, rows):
        if items == -1:
            lists = scores[..., index].movedim(-2, 0)
        else:
            lists = scores[..., index, :].movedim(-3, 0)
        labels = targets[index].view(len(index), *[1] * (len(shape) - 1), -1)
        values = metric(lists, labels.expand(len(index), *shape))
        if values.shape != (len(index), *estimate.shape):
            raise ValueError(
                f"{function}: metric must return for lists with one more leading dimension a shape "
                f"{(len(index), *estimate.shape)}, got {tuple(values.shape)}"
            )
        samples.append(values)
    return estimate, torch.cat(samples)


def draws(
    targets: Tensor, resamples: int, stratified: bool, seed: int, rows: int
) -> Iterator[Tensor]:
    """The items of each resample, ``(rows, n)`` at a time, on the device of the targets."""
    generator, n, device = torch.Generator().manual_seed(seed), len(targets), targets.device
    if stratified:
        labels = targets.cpu().to(torch.int64)
        order, counts = labels.argsort(stable=True), labels.unique(return_counts=True)[1]
        size = counts.repeat_interleave(counts)
        first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    else:
        order, size, first = torch.arange(n), n, 0
    for start in range(0, resamples, rows):
        # One draw of 63 bits per item, whatever the class, so that the stream is the same however
        # it is cut; the remainder's bias is below n / 2^63.
        shape = min(rows, resamples - start), n
        place = first + torch.randint(2**63 - 1, shape, generator=generator) % size
        yield order[place].to(device)


def _interval(estimate: Tensor, samples: Tensor, level: float) -> Interval:
    tail = (1 - level) / 2
    ordered = samples.double().sort(0).values  # NaN comes last
    defined = (~ordered.isnan()).sum(0)
    low, high = (_quantile(ordered, defined, q) for q in (tail, 1 - tail))
    return Interval(estimate, low, high, defined, samples)


def _quantile(ordered: Tensor, count: Tensor, q: float) -> Tensor:
    """The q-quantile of the first ``count`` of each column, linear between order statistics.

    Written out because ``torch.nanquantile`` refuses more than 2^24 samples.
    """
    place = q * (count - 1).clamp(min=0).double()
    below = place.floor()
    low, high = (ordered.gather(0, i.long().unsqueeze(0)).squeeze(0) for i in (below, place.ceil()))
    return low + (place - below) * (high - low)


# --- arguments ------------------------------------------------------------------------------------


def _items(function: str, scores: Tensor, targets: Tensor) -> int:
    """The dimension of the items, from the end: -1 of positives, -2 of labels."""
    _validate.scores(function, "scores", scores)
    if not isinstance(targets, Tensor):
        raise TypeError(
            f"{function}: targets must be a bool or integer torch.Tensor, "
            f"got {type(targets).__name__}"
        )
    if targets.is_floating_point() or targets.is_complex():
        raise TypeError(f"{function}: targets must be bool or integers, got {targets.dtype}")
    if targets.device != scores.device:
        raise ValueError(
            f"{function}: targets must be on the device of scores, {scores.device}, "
            f"got {targets.device}"
        )
    items = -1 if targets.dtype == torch.bool else -2
    if scores.dim() < -items or targets.shape != scores.shape[items : scores.dim() + items + 1]:
        lists = "(..., n) for bool" if items == -1 else "(..., n, C) for integer"
        raise ValueError(
            f"{function}: scores must be {lists} targets (n,), "
            f"got shapes {tuple(scores.shape)} and {tuple(targets.shape)}"
        )
    if not len(targets):
        raise ValueError(f"{function}: targets must have at least 1 item, got none")
    return items


def _settings(function: str, resamples: int, level: float, seed: int, max_items: int) -> None:
    _validate.integer(function, "resamples", resamples, 1)
    _validate.integer(function, "seed", seed, 0)
    _validate.integer(function, "max_items", max_items, 1)
    required = f"{function}: level must be a number between 0 and 1"
    if isinstance(level, bool) or not isinstance(level, numbers.Real):
        raise TypeError(f"{required}, got {level!r}")
    if not 0 < level < 1:
        raise ValueError(f"{required}, got {level}")
