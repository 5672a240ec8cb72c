"""Scores of one list that arrives in batches, kept exactly and in little memory.

None of them can be forgotten: whatever has come, the positives still to come may lie anywhere among
the negatives that have. So items are sorted into their groups (the classes), which leaves the bare
scores to keep, in their own type; and of half precision, which has no more than 2^16 values, the
number of items of each value.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)
_BINS = 2**16 + 1  # the last one is that of NaN
_PENDING_ITEMS, _PENDING_BATCHES = 2**16, 256
ABSENT = 255


class Store:
    """The scores of each of several groups.

    ==================  ============================================================
    float32, float64    4 or 8 bytes per item; while two parts are joined, twice that
    float16, bfloat16   2^19 bytes per group, whatever the number of items
    not yet sorted      1 byte more per item, of at most 2^16 items
    ==================  ============================================================

    An append reads nothing on the host until 2^16 items or 256 batches wait, and then once.
    """

    def __init__(self, groups: int):
        self.groups = groups
        self.reset()

    def reset(self) -> None:
        """Forget everything, the device too."""
        self.device: torch.device | None = None
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._pending_items = 0
        self._parts: list[list[Tensor]] = [[] for _ in range(self.groups)]
        self._counts: dict[torch.dtype, Tensor] = {}  # (groups, _BINS) int64

    def append(self, scores: Tensor, group: Tensor) -> None:
        """Copies of scores ``(n,)`` and of their groups, or ABSENT, ``(n,)`` uint8."""
        self.device = self.device or scores.device
        self._pending.append((scores.detach().to(self.device, copy=True), group.to(self.device)))
        self._pending_items += len(scores)
        if self._pending_items >= _PENDING_ITEMS or len(self._pending) >= _PENDING_BATCHES:
            self._sort_pending()

    def __len__(self) -> int:
        pending = sum(int((group != ABSENT).sum()) for _, group in self._pending)
        parts = sum(len(part) for parts in self._parts for part in parts)
        return pending + parts + sum(int(counts.sum()) for counts in self._counts.values())

    def to(self, device: torch.device | str) -> None:
        """Move to a device, where later batches follow."""
        if self.device is None:
            return
        self._pending = [(s.to(device), g.to(device)) for s, g in self._pending]
        self._parts = [[part.to(device) for part in parts] for parts in self._parts]
        self._counts = {dtype: counts.to(device) for dtype, counts in self._counts.items()}
        self.device = torch.empty(0, device=device).device

    def is_list(self) -> bool:
        """Whether :meth:`list` has all items: nothing has been counted away."""
        return not self._counts

    def list(self) -> tuple[Tensor, Tensor]:
        """Scores ``(n,)`` and groups ``(n,)`` of the items that are kept one by one."""
        scores = [s for s, _ in self._pending]
        groups = [g for _, g in self._pending]
        for g, parts in enumerate(self._parts):
            scores += parts
            groups += [torch.full_like(part, g, dtype=torch.uint8) for part in parts]
        if not scores:
            return torch.empty(0, device=self.device), torch.empty(0, dtype=torch.uint8)
        return torch.cat(scores), torch.cat(groups)

    def table(self) -> tuple[Tensor, Tensor, bool]:
        """Distinct scores ``(m,)``, best first, their items ``(m, groups)``, and if any is NaN.

        A NaN score has no row.
        """
        scores, group = self.list()
        kept = group != ABSENT
        scores, group = scores[kept], group[kept].long()
        nan = scores.isnan()
        rows = [_tabulated(scores[~nan], group[~nan], self.groups)] if len(scores) else []
        has_nan = bool(nan.any())
        for dtype, counts in self._counts.items():
            has_nan = has_nan or bool(counts[:, -1].any())
            rows.append(_rows_of(counts[:, :-1], dtype))
        values, index = torch.unique(torch.cat([v for v, _ in rows]), return_inverse=True)
        table = torch.zeros(len(values), self.groups, dtype=torch.int64, device=values.device)
        table.index_add_(0, index, torch.cat([c for _, c in rows]))
        return values.flip(0), table.flip(0), has_nan

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors: scores of each group, and distinct scores with their counts."""
        self._sort_pending()
        state = {}
        for g, parts in enumerate(self._parts):
            if parts:
                state[f"scores.{g}"] = torch.cat(parts)
        for dtype, counts in self._counts.items():
            values, rows = _rows_of(counts, dtype)
            name = str(dtype).removeprefix("torch.")
            state[f"values.{name}"], state[f"counts.{name}"] = values, rows
        return state

    def add_state(self, state: Mapping[str, Tensor]) -> None:
        """Add what :meth:`state` of a store of as many groups has."""
        for key, value in state.items():
            kind, name = key.split(".")
            if kind == "counts":
                continue
            self.device = self.device or value.device
            value = value.to(self.device)
            if kind == "scores":
                self._keep(int(name), value.clone())
            else:
                counts = state[f"counts.{name}"].to(self.device)
                self._counts_of(value.dtype).index_add_(1, _bins(value), counts.t())

    def _sort_pending(self) -> None:
        by_type: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for scores, group in self._pending:
            by_type.setdefault(scores.dtype, []).append((scores, group))
        self._pending, self._pending_items = [], 0
        for dtype, batches in by_type.items():
            scores, group = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
            if dtype in _HALF:
                present = group != ABSENT
                cell = torch.where(present, group, 0).long() * _BINS + _bins(scores)
                self._counts_of(dtype).view(-1).index_add_(0, cell, present.long())
            else:
                for g in range(self.groups):
                    self._keep(g, scores[group == g])

    def _keep(self, group: int, scores: Tensor) -> None:
        """One more part of a group. Parts at least halve in length: few, and joined rarely."""
        parts = self._parts[group]
        if len(scores):
            parts.append(scores)
        while len(parts) > 1 and len(parts[-2]) < 2 * len(parts[-1]):
            last = parts.pop()
            parts[-1] = torch.cat([parts[-1], last])

    def _counts_of(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._counts:
            self._counts[dtype] = torch.zeros(
                self.groups, _BINS, dtype=torch.int64, device=self.device
            )
        return self._counts[dtype]


def _bins(scores: Tensor) -> Tensor:
    """The place of each half-precision score among all values of its type, lowest first."""
    bits = (scores + 0).view(torch.int16).long()  # + 0 folds -0.0
    return torch.where(scores.isnan(), _BINS - 1, torch.where(bits < 0, -1 - bits, bits + 2**15))


def _rows_of(counts: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The values ``(m,)`` that occur, NaN last, and their items ``(m, groups)``."""
    place = counts.any(0).nonzero().squeeze(1)
    bits = torch.where(place < 2**15, -1 - place, place - 2**15)
    values = bits.to(torch.int16).view(dtype)
    values = torch.where(place == _BINS - 1, torch.nan, values)
    return values, counts[:, place].t()


def _tabulated(scores: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    values, index = torch.unique(scores + 0, return_inverse=True)
    cells = torch.bincount(index * groups + group, minlength=len(values) * groups)
    return values, cells.view(-1, groups)
