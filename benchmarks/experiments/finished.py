"""Finished runs: read from a folder, checked to belong together, grouped by loss and method.

A run is a pair of files, ``NAME.json`` and ``NAME.logits.pt``, written by :mod:`.results`; a sweep
is one file, written by :mod:`.sweep`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankreg_ext.metrics import accuracy, error_at_tpr, fpr_at_tpr, roc_auc

from .config import CRITICAL, SETTINGS
from .results import FORMAT
from .runs import ERROR_TPRS, TPRS

BINARY = (*(f"FPR@{100 * tpr:.0f}" for tpr in TPRS), "AUC")
MULTICLASS = (*(f"Error@{100 * tpr:.0f}" for tpr in ERROR_TPRS), "accuracy")

# In the order of the tables; others follow under their own names.
LOSSES = {
    "bce": "BCE",
    "s-ml": "S-ML",
    "s-fl": "S-FL",
    "a-ml": "A-ML",
    "a-fl": "A-FL",
    "cb-bce": "CB-BCE",
    "w-bce": "W-BCE",
    "ldam": "LDAM",
    "ce": "CE",
}
METHODS = {"base": "base loss", "alm": "+ ALM", "rankreg": "+ RankReg"}
NAMES = {**METHODS, "sampler": "+ sampler"}
# Settings that make runs larger or smaller: one table has runs of one size.
SIZE = ("width", "stem_stride", "epochs", "batch_size", "size", "validation_per_class")


class RunError(ValueError):
    """Files of runs that cannot be read, or that do not belong together."""


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        path: of its JSON file.
        setting, loss, method, seed: what was trained.
        config: all settings.
        epochs: what was recorded after each.
        best_epoch: the one whose weights were kept, by the AUC on the validation split.
        validation, test: metrics of these weights, in percent.
        logits: ``test`` and ``validation``, ``(n,)`` or ``(n, C)``, and ``test_targets`` and
            ``validation_targets``, ``(n,)`` bool or int64.
    """

    path: Path
    setting: str
    loss: str
    method: str
    seed: int
    config: dict[str, Any]
    epochs: list[dict[str, Any]]
    best_epoch: int
    validation: dict[str, float]
    test: dict[str, float]
    logits: dict[str, Tensor]


def metrics_of(setting: str) -> tuple[str, ...]:
    """The names of the metrics of a setting."""
    return MULTICLASS if setting in CRITICAL else BINARY


def lower_is_better(metric: str) -> bool:
    """Whether a difference below 0 is a gain."""
    return metric not in ("AUC", "accuracy")


# --- reading --------------------------------------------------------------------------------------


def load(folder: Path | str) -> list[Run]:
    """The finished runs of a folder, in the order of the tables.

    Sweeps in it are passed over; see :func:`load_sweeps`.

    Raises:
        RunError: naming the file, if one is damaged, is of no run, lacks its logits, or holds a
            run that another file holds as well.
    """
    if not Path(folder).is_dir():
        raise RunError(f"{folder}: no such folder")
    runs: dict[tuple, Run] = {}
    for path in sorted(Path(folder).glob("*.json")):
        found = _json(path)
        if _is_sweep(found):
            continue
        run = _run(path, found)
        key = (run.setting, run.loss, run.method, run.seed)
        if key in runs:
            raise RunError(
                f"{path}: the same run as {runs[key].path.name}: {', '.join(map(str, key))}"
            )
        runs[key] = run
    return sorted(runs.values(), key=_order)


def load_sweeps(folder: Path | str) -> dict[str, dict[str, Any]]:
    """The sweeps of a folder by name: ``question``, ``seeds``, ``rows``.

    Raises:
        RunError: naming the file, if one is damaged.
    """
    found = {path.stem: _json(path) for path in sorted(Path(folder).glob("*.json"))}
    return {name: sweep for name, sweep in found.items() if _is_sweep(sweep)}


def by_setting(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each setting."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.setting, []).append(run)
    return groups


def _order(run: Run) -> tuple:
    def place(names: Iterable[str], name: str) -> tuple[int, str]:
        names = list(names)
        return (names.index(name) if name in names else len(names), name)

    return (
        place(SETTINGS, run.setting),
        place(LOSSES, run.loss),
        place(METHODS, run.method),
        run.seed,
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path}: damaged: {error}") from error


def _is_sweep(found: Any) -> bool:
    return isinstance(found, dict) and {"question", "seeds", "rows"} <= found.keys()


def _run(path: Path, found: Any) -> Run:
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise RunError(f"{path}: not a run of format {FORMAT}")
    if str(found.get("setting")) not in SETTINGS:
        raise RunError(f"{path}: damaged: no such setting: {found.get('setting')}")
    logits_path = path.with_suffix(".logits.pt")
    if not logits_path.exists():
        raise RunError(f"{logits_path}: missing, although {path.name} is there")
    try:
        logits = torch.load(logits_path, weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch.load raise
        raise RunError(f"{logits_path}: damaged: {type(error).__name__}") from error
    try:
        names = [name for name in Run.__dataclass_fields__ if name not in ("path", "logits")]
        run = Run(path=path, logits=logits, **{name: found[name] for name in names})
        for values in (run.validation, run.test):
            [float(values[metric]) for metric in metrics_of(run.setting)]
        [epoch["epoch"] for epoch in run.epochs]
        shapes = [
            (tuple(logits[split].shape), tuple(logits[f"{split}_targets"].shape))
            for split in ("test", "validation")
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(f"{path}: damaged: {what}") from error
    dimensions = 2 if metrics_of(run.setting) is MULTICLASS else 1
    for scores, targets in shapes:
        if len(scores) != dimensions or targets != scores[:1]:
            raise RunError(
                f"{logits_path}: logits must be {'(n, C)' if dimensions == 2 else '(n,)'} and "
                f"targets (n,), got {scores} and {targets}"
            )
    return run


# --- the runs of one setting ----------------------------------------------------------------------


class Cells:
    """The runs of one setting by loss, method and seed, checked to belong together.

    Raises:
        RunError: for no run at all, several settings, several sizes, settings that differ between
            the seeds of a loss and method, or other test items.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = sorted(runs, key=_order)
        settings = list(by_setting(self.runs))
        if len(settings) != 1:
            raise RunError(f"one table has runs of one setting, got {settings or 'no run'}")
        self.setting = settings[0]
        self.metrics = metrics_of(self.setting)
        self.by_seed: dict[tuple[str, str], dict[int, Run]] = {}
        for run in self.runs:
            seeds = self.by_seed.setdefault((run.loss, run.method), {})
            _require_equal(run, next(iter(seeds.values()), run), except_for=("seed",))
            _require_equal(run, self.runs[0], only=SIZE)
            if not torch.equal(run.logits["test_targets"], self.targets):
                raise RunError(f"{run.path}: other test items than {self.runs[0].path.name}")
            if run.seed in seeds:
                raise RunError(f"{run.path}: the same run as {seeds[run.seed].path}")
            seeds[run.seed] = run
        self.losses = list(dict.fromkeys(run.loss for run in self.runs))
        others = {run.method for run in self.runs} - set(METHODS)
        self.methods = [m for m in METHODS if any(r.method == m for r in self.runs)]
        self.methods += sorted(others)

    @property
    def targets(self) -> Tensor:
        """Of the test items."""
        return self.runs[0].logits["test_targets"]

    def of(self, loss: str, method: str) -> dict[int, Run]:
        """The runs of each seed; empty if there are none."""
        return self.by_seed.get((loss, method), {})

    def differences(self, first: str, second: str) -> dict[str, dict[int, dict[str, float]]]:
        """``first - second`` of the test metrics, for each loss and common seed."""
        result = {}
        for loss in self.losses:
            a, b = self.of(loss, first), self.of(loss, second)
            common = {
                seed: {m: a[seed].test[m] - b[seed].test[m] for m in self.metrics}
                for seed in sorted(a.keys() & b.keys())
            }
            if common:
                result[loss] = common
        return result

    def evaluate(self, scores: Tensor, targets: Tensor, rule: str = "threshold") -> Tensor:
        """``(..., metrics)`` percent of the lists ``(..., n)`` or ``(..., n, C)``."""
        if self.metrics is BINARY:
            values = fpr_at_tpr(scores, targets, TPRS, rule=rule)
            last = roc_auc(scores, targets)
        else:
            critical = CRITICAL[self.setting]
            values = error_at_tpr(scores, targets, critical, ERROR_TPRS).mean(-2)
            last = accuracy(scores, targets)
        return 100 * torch.cat([values, last.unsqueeze(-1)], -1)


def ensemble(runs: Iterable[Run]) -> Tensor:
    """The mean of the runs' test logits, ``(n,)`` or ``(n, C)`` float32."""
    return torch.stack([run.logits["test"].double() for run in runs]).mean(0).float()


def _require_equal(
    run: Run, other: Run, only: tuple[str, ...] | None = None, except_for: tuple[str, ...] = ()
) -> None:
    for key in only or sorted(run.config.keys() | other.config.keys()):
        mine, theirs = run.config.get(key), other.config.get(key)
        if mine != theirs and key not in except_for:
            raise RunError(
                f"{run.path}: {key} is {mine!r}, but {theirs!r} in {other.path.name}: "
                "these runs do not belong into one table"
            )
