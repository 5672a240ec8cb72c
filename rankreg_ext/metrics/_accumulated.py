"""Metrics over one list that arrives in batches: update, compute, reset.

Exact: as of the list as a whole, but for the rounding of the sum in an average precision of half
precision. What is kept per item:

=====================================================  ========================================
FPRAtTPR, ROCAUC, PartialAUC, AveragePrecision         the score: 4 bytes of float32, 8 of
                                                       float64
the same, for float16 and bfloat16                     nothing: 1 MiB in all, past 2^16 items
ErrorAtTPR                                             the same for each critical class (2 MiB)
Accuracy                                               nothing
=====================================================  ========================================

Computing from scores takes 30 (FPRAtTPR, ROCAUC) to 70 (PartialAUC) bytes per item for a moment.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from . import _binary, _curve, _multiclass
from ._store import ABSENT, Store

State = Mapping[str, Tensor | str]


class _Accumulated:
    """What all metrics of this module have."""

    def reset(self) -> None:
        """Forget all batches."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor | str]:
        """All that has been added, as tensors (and the layout, a string); no settings."""
        raise NotImplementedError

    def _add_state(self, state: State) -> None:
        raise NotImplementedError

    def load_state_dict(self, state: State) -> None:
        """Hold what the state has, and nothing else.

        Raises:
            ValueError: if it is the state of another metric.
        """
        self._check_state("load_state_dict", state)
        self.reset()
        self._add_state(state)

    def merge_state(self, others: Iterable[_Accumulated | State]):
        """Add what other metrics, or states of such, have. Exact, in any order.

        Processes that share an evaluation gather their states, say by
        ``torch.distributed.all_gather_object``, and each, or one, merges those of the others.

        Returns:
            The metric itself.

        Raises:
            ValueError: if one is the state of another metric.
        """
        states = [x if isinstance(x, Mapping) else x.state_dict() for x in others]
        for state in states:
            self._check_state("merge_state", state)
        for state in states:
            self._add_state(state)
        return self

    def _check_state(self, method: str, state: State) -> None:
        if state.get("layout") != self._layout():
            raise ValueError(
                f"{type(self).__name__}.{method}: state must be that of a metric like this one, "
                f"of layout {self._layout()!r}, got {state.get('layout')!r}"
            )

    def _layout(self) -> str:
        """What a state must agree on."""
        raise NotImplementedError


class _Stored(_Accumulated):
    """A metric that keeps scores, of one kind or several."""

    def __init__(self, stores: int, groups: int):
        self._stores = [Store(groups) for _ in range(stores)]

    def reset(self) -> None:
        """Forget all batches."""
        for store in self._stores:
            store.reset()

    def __len__(self) -> int:
        """Items added since the last reset."""
        return len(self._stores[0])

    def to(self, device: torch.device | str):
        """Move what is kept to a device; the metric itself is returned."""
        for store in self._stores:
            store.to(device)
        return self

    def state_dict(self) -> dict[str, Tensor | str]:
        """All that has been added, as tensors (and the layout, a string); no settings."""
        state = {"layout": self._layout()}
        for i, store in enumerate(self._stores):
            state |= {f"{i}.{key}": value for key, value in store.state().items()}
        return state

    def _add_state(self, state: State) -> None:
        for i, store in enumerate(self._stores):
            prefix = f"{i}."
            store.add_state(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )

    def _layout(self) -> str:
        return f"{len(self._stores)} x {self._stores[0].groups}"


class _Binary(_Stored):
    def __init__(self):
        super().__init__(stores=1, groups=2)

    def update(self, scores: Tensor, positives: Tensor, where: Tensor | None = None) -> None:
        """Add a batch: detached copies, on the device of the first batch, in their own type.

        Args:
            scores: ``(n,)``; float16, bfloat16, float32, float64.
            positives: ``(n,)`` bool.
            where: ``(n,)`` bool; masked items count for nothing.

        Raises:
            TypeError, ValueError: for an argument that is not as described.
        """
        function = f"{type(self).__name__}.update"
        group = _binary.one_list(function, scores, positives).to(torch.uint8)
        if where is not None:
            where = _binary.one_list(function, scores, where, "where")
            group = torch.where(where, group, ABSENT)
        self._stores[0].append(scores, group)

    def _curve(self) -> tuple[_curve.Curve, Tensor]:
        curve, defined, _ = _curve_of(self._stores[0])
        return curve, defined


class FPRAtTPR(_Binary):
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
        self.rule, targets = _curve.rule_and_targets("FPRAtTPR", tpr, rule)
        self.tpr = targets[0] if isinstance(tpr, numbers.Real) else tuple(targets)

    @torch.no_grad()
    def compute(self) -> Tensor:
        """The rate, 0-dim, or ``(K,)`` for K targets; float64; NaN as for :func:`fpr_at_tpr`."""
        rule, targets = _curve.rule_and_targets("FPRAtTPR.compute", self.tpr, self.rule)
        curve, defined = self._curve()
        return _curve.stacked(_curve.fpr_at_tpr(curve, targets, rule), defined, self.tpr)


class ROCAUC(_Binary):
    """:func:`roc_auc` over all batches of an evaluation.

    Example:
        >>> metric = ROCAUC()
        >>> metric.update(torch.tensor([0.9, 0.5]), torch.tensor([True, True]))
        >>> metric.update(torch.tensor([0.5, 0.1]), torch.tensor([False, False]))
        >>> metric.compute()
        tensor(0.8750, dtype=torch.float64)
    """

    @torch.no_grad()
    def compute(self) -> Tensor:
        """The area, 0-dim float64; NaN as for :func:`roc_auc`."""
        curve, defined = self._curve()
        return torch.where(defined, _curve.roc_auc(curve), torch.nan)


class PartialAUC(_Binary):
    """:func:`partial_auc` over all batches of an evaluation.

    Args:
        min_tpr: as for :func:`partial_auc`.
        max_fpr: as for :func:`partial_auc`.
        area: as for :func:`partial_auc`.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> metric = PartialAUC(min_tpr=0.5)
        >>> metric.update(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True]))
        >>> metric.update(torch.tensor([0.6, 0.5, 0.4]), torch.tensor([False, False, False]))
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    def __init__(
        self,
        *,
        min_tpr: float | Sequence[float] | None = None,
        max_fpr: float | Sequence[float] | None = None,
        area: str = "normalised",
    ):
        super().__init__()
        side, value = _binary.partial_side("PartialAUC", min_tpr, max_fpr, area)
        self.min_tpr = value if side == "min_tpr" else None
        self.max_fpr = value if side == "max_fpr" else None
        self.area = area

    @torch.no_grad()
    def compute(self) -> Tensor:
        """The area, 0-dim, or ``(K,)`` for K rates; float64; NaN as for :func:`partial_auc`."""
        side, value = _binary.partial_side(
            "PartialAUC.compute", self.min_tpr, self.max_fpr, self.area
        )
        return _binary.partial_areas(*self._curve(), side, value, self.area)


class AveragePrecision(_Binary):
    """:func:`average_precision` over all batches of an evaluation.

    Example:
        >>> metric = AveragePrecision()
        >>> metric.update(torch.tensor([0.9, 0.8]), torch.tensor([True, False]))
        >>> metric.update(torch.tensor([0.7, 0.6]), torch.tensor([True, False]))
        >>> metric.compute()
        tensor(0.8333, dtype=torch.float64)
    """

    @torch.no_grad()
    def compute(self) -> Tensor:
        """The precision, 0-dim float64; NaN as for :func:`average_precision`."""
        curve, defined = self._curve()
        return torch.where(defined, _curve.average_precision(curve), torch.nan)


class ErrorAtTPR(_Stored):
    """:func:`error_at_tpr` over all batches of an evaluation.

    Args:
        critical: as for :func:`error_at_tpr`.
        tpr: as for :func:`error_at_tpr`.
        below: as for :func:`error_at_tpr`.
        population: as for :func:`error_at_tpr`.

    Raises:
        TypeError, ValueError: for an argument that is not as described.

    Example:
        >>> metric = ErrorAtTPR(critical=1, tpr=(0.5, 1.0))
        >>> metric.update(torch.tensor([[2.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]))
        >>> metric.update(torch.tensor([[3.0, 0.0], [1.0, -2.0]]), torch.tensor([0, 0]))
        >>> metric.compute()
        tensor([0.2500, 0.2500], dtype=torch.float64)
    """

    def __init__(
        self,
        critical: int | Sequence[int],
        tpr: float | Sequence[float] = (0.8, 0.9),
        *,
        below: str = "argmax",
        population: str = "all",
    ):
        classes, targets = _multiclass.error_arguments(
            "ErrorAtTPR", critical, tpr, below, population
        )
        super().__init__(stores=len(classes), groups=4)
        self.critical = critical if isinstance(critical, int) else tuple(classes)
        self.tpr = targets[0] if isinstance(tpr, numbers.Real) else tuple(targets)
        self.below = below
        self.population = population

    @torch.no_grad()
    def update(self, scores: Tensor, labels: Tensor, where: Tensor | None = None) -> None:
        """Add a batch: what :func:`error_at_tpr` needs of it, on the device of the first batch.

        Args:
            scores: ``(n, C)``; float16, bfloat16, float32, float64.
            labels: ``(n,)`` integers.
            where: ``(n,)`` bool; masked items count for nothing.

        Raises:
            TypeError, ValueError: for an argument that is not as described.
        """
        classes = _as_tuple(self.critical)
        labels, where = _batch("ErrorAtTPR.update", scores, labels, where, classes)
        for c, store in zip(classes, self._stores, strict=True):
            score, positives, wrong = _multiclass.reduced(scores, labels, c, self.below)
            group = (2 * positives + wrong).to(torch.uint8)
            store.append(score, group if where is None else torch.where(where, group, ABSENT))

    @torch.no_grad()
    def compute(self) -> Tensor:
        """The error, ``()``, ``(T,)``, ``(K,)`` or ``(K, T)`` as for :func:`error_at_tpr`."""
        targets, errors = _as_tuple(self.tpr), []
        for store in self._stores:
            curve, defined, groups = _curve_of(store)
            values = [
                _multiclass.error(curve.scores, groups, threshold, self.population)
                for threshold in _curve.thresholds(curve, targets)
            ]
            errors.append(_curve.stacked(values, defined, self.tpr))
        return errors[0] if isinstance(self.critical, int) else torch.stack(errors)


class Accuracy(_Accumulated):
    """:func:`accuracy` over all batches of an evaluation.

    Example:
        >>> metric = Accuracy()
        >>> metric.update(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([[3.0, 0.0]]), torch.tensor([1]))
        >>> metric.compute()
        tensor(0.6667, dtype=torch.float64)
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forget all batches, and the device."""
        self._counts: Tensor | None = None  # items right, items, items with a NaN score

    @torch.no_grad()
    def update(self, scores: Tensor, labels: Tensor, where: Tensor | None = None) -> None:
        """Count a batch, on the device of the first.

        Args:
            scores: ``(n, C)``; float16, bfloat16, float32, float64.
            labels: ``(n,)`` integers.
            where: ``(n,)`` bool; masked items count for nothing.

        Raises:
            TypeError, ValueError: for an argument that is not as described.
        """
        labels, where = _batch("Accuracy.update", scores, labels, where, None)
        present = torch.ones_like(labels, dtype=torch.bool) if where is None else where
        right = (scores.argmax(-1) == labels) & present
        nan = scores.isnan().any(-1) & present
        self._add(torch.stack([right.sum(), present.sum(), nan.sum()]))

    def _add(self, counts: Tensor) -> None:
        before = self._counts
        self._counts = counts if before is None else before + counts.to(before.device)

    @torch.no_grad()
    def compute(self) -> Tensor:
        """The accuracy, 0-dim float64; NaN as for :func:`accuracy`."""
        if self._counts is None:
            return torch.tensor(torch.nan, dtype=torch.float64)
        right, items, nan = self._counts.double()
        return torch.where(nan > 0, torch.nan, right / items)

    def __len__(self) -> int:
        """Items added since the last reset."""
        return 0 if self._counts is None else int(self._counts[1])

    def to(self, device: torch.device | str):
        """Move the counts to a device; the metric itself is returned."""
        if self._counts is not None:
            self._counts = self._counts.to(device)
        return self

    def state_dict(self) -> dict[str, Tensor | str]:
        """The counts (and the layout, a string)."""
        state = {"layout": self._layout()}
        return state if self._counts is None else state | {"counts": self._counts.clone()}

    def _add_state(self, state: State) -> None:
        if "counts" in state:
            self._add(state["counts"])

    def _layout(self) -> str:
        return "counts"


def _curve_of(store: Store) -> tuple[_curve.Curve, Tensor, list[Tensor]]:
    """The curve, whether there are metrics, and the items of each group at the curve's entries.

    The second half of the groups is the positives.
    """
    half = store.groups // 2
    if store.is_list():
        scores, group = store.list()
        if not len(scores):  # as a list of one masked item
            scores, group = scores.new_zeros(1), group.new_full((1,), ABSENT)
        curve, defined = _curve.masked(scores, group >= half, group != ABSENT)
        return curve, defined, [group == g for g in range(store.groups)]
    scores, items, nan = store.table()
    if not len(scores):  # NaN alone
        scores, items = scores.new_zeros(1), items.new_zeros(1, store.groups)
    if int(items[:, half:].sum()) * int(items[:, :half].sum()) > 2**61:
        items = items.double()  # for twice the pairs are more than int64 holds
    curve = _curve.TableCurve(scores, items[:, half:].sum(1), items[:, :half].sum(1))
    defined = (curve.n_pos > 0) & (curve.n_neg > 0) & (not nan)
    return curve, defined, list(items.unbind(1))


def _batch(function: str, scores: Tensor, labels: Tensor, where: Tensor | None, classes):
    """Labels and mask of scores that must be ``(n, C)``."""
    expanded = _multiclass.labels_and_mask(function, scores, labels, where, classes)
    if scores.dim() != 2:
        raise ValueError(
            f"{function}: scores must have 2 dimensions, (n, C), got shape {tuple(scores.shape)}"
        )
    return expanded


def _as_tuple(value):
    return value if isinstance(value, tuple) else (value,)
