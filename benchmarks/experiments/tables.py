"""Finished runs as Markdown tables: means, paired differences, ensembles, published figures.

    runs = tables.load(folder)
    print(tables.table(tables.by_setting(runs)["cifar10-100"]))

A run is a pair of files, ``NAME.json`` and ``NAME.logits.pt``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankreg_ext.metrics import accuracy, bootstrap_difference, error_at_tpr, fpr_at_tpr, roc_auc

from . import published
from .summary import align, mean, standard_error, std

FORMAT = 1
TPRS, ERROR_TPRS = (0.98, 0.95, 0.92, 0.90), (0.80, 0.90)
BINARY = (*(f"FPR@{100 * tpr:.0f}" for tpr in TPRS), "AUC")
MULTICLASS = (*(f"Error@{100 * tpr:.0f}" for tpr in ERROR_TPRS), "accuracy")

# In the order of the tables; others follow under their own names.
LOSSES = {
    "bce": "BCE",
    "s-ml": "S-ML",
    "a-ml": "A-ML",
    "s-fl": "S-FL",
    "a-fl": "A-FL",
    "cb-bce": "CB-BCE",
    "w-bce": "W-BCE",
    "ldam": "LDAM",
    "ce": "CE",
}
METHODS = {"base": "base loss", "alm": "+ ALM", "rankreg": "+ RankReg"}
SETTINGS = {
    "cifar10-100": "CIFAR-10, 100 : 1",
    "cifar10-200": "CIFAR-10, 200 : 1",
    "cifar100-100": "CIFAR-100, 100 : 1",
    "cifar100-200": "CIFAR-100, 200 : 1",
    "melanoma-170": "Melanoma, 170 : 1",
    "fashion-100": "Fashion-MNIST, 100 : 1",
    "lt-cifar10-100": "Long-tailed CIFAR-10, imbalance 100",
    "lt-cifar10-200": "Long-tailed CIFAR-10, imbalance 200",
}
# Settings of a run that make it smaller or larger: one table has runs of one size.
SIZE = ("preset", "network", "model", "width", "epochs", "batch_size", "image_size", "limit")


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
    return MULTICLASS if setting.startswith("lt-") else BINARY


def lower_is_better(metric: str) -> bool:
    """Whether a difference below 0 is a gain."""
    return metric not in ("AUC", "accuracy")


# ------------------------------------------------------------------------------------------ reading


def load(folder: Path | str) -> list[Run]:
    """The finished runs of a folder, in the order of the tables.

    Raises:
        RunError: naming the file, if one is damaged, is of no run, lacks its logits, or holds a
            run that another file holds as well.
    """
    if not Path(folder).is_dir():
        raise RunError(f"{folder}: no such folder")
    runs: dict[tuple, Run] = {}
    for path in sorted(Path(folder).glob("*.json")):
        run = _read(path)
        key = (run.setting, run.loss, run.method, run.seed)
        if key in runs:
            raise RunError(
                f"{path}: the same run as {runs[key].path.name}: {', '.join(map(str, key))}"
            )
        runs[key] = run
    return sorted(runs.values(), key=_order)


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


def _read(path: Path) -> Run:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path}: damaged: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise RunError(f"{path}: not a run of format {FORMAT}")
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


# ------------------------------------------------------------------------------ one setting's table


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
            critical = self.runs[0].config.get("critical", scores.shape[-1] - 1)
            values = error_at_tpr(scores, targets, critical, ERROR_TPRS)
            if not isinstance(critical, int):
                values = values.mean(-2)
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


def table(runs: Iterable[Run], resamples: int = 1000) -> str:
    """All tables of one setting, as Markdown.

    Args:
        runs: of one setting.
        resamples: of the bootstrap.

    Raises:
        RunError: if the runs do not belong together.
    """
    cells = Cells(runs)
    parts = [f"## {SETTINGS.get(cells.setting, cells.setting)}", size_note(cells)]
    parts += ["Test images, %: mean ± standard deviation over seeds.", _means(cells)]
    text = _differences(cells)
    if text:
        parts += [
            "Paired differences over the common seeds, points: mean ± standard error (seeds "
            "better/worse). Below 0 is better, but for AUC and accuracy. An average is, for each "
            "seed that all losses have, the mean over the losses.",
            text,
        ]
    parts += [
        "Ensembles, %: the test logits averaged over the seeds, one curve"
        + (", FPR by the rounding rule of ALM's evaluation." * (cells.metrics is BINARY) or "."),
        _ensembles(cells),
    ]
    text = _ensemble_differences(cells, resamples)
    if text:
        parts += [
            "RankReg - ALM of ensembles over the common seeds, points, with 95 % bootstrap "
            f"intervals ({resamples:,} resamples of the test images, paired)"
            + (
                "; FPR at the highest threshold that reaches the rate, since the rounding rule "
                "yields 0 where a resample's curve has no point near."
                * (cells.metrics is BINARY)
                or "."
            ),
            text,
        ]
    return "\n\n".join([*parts, *_notes(cells)]) + "\n"


def size_note(cells: Cells) -> str:
    """What was trained at which size, and what that allows to conclude."""
    config = cells.runs[0].config
    stated = [
        f"{key.replace('_', ' ')} {config[key]}" for key in SIZE if config.get(key) is not None
    ]
    size = ", ".join(stated) or "not recorded"
    if cells.setting not in published.FIGURES and cells.setting not in published.BEST_FPR98:
        return f"Size of these runs: {size}. Nothing is published for this setting."
    full = (
        "The size of the published runs is not public to us; ALM's code, on CIFAR, has a ResNet-10 "
        "of width 64, up to 100 epochs and 10 seeds."
    )
    width, epochs = config.get("width") or 0, config.get("epochs") or 0
    if width < 64 or epochs < 100 or config.get("limit") not in (None, 0, 1):
        full += (
            " **These runs are smaller: their figures replicate nothing, and only differences "
            "within these tables can be read.**"
        )
    return f"Size of these runs: {size}. {full}"


def _by_method(cells: Cells, text: Callable[[dict[int, Run]], dict[str, str]]) -> str:
    """A row for each loss and method; beside each metric its published figure, if there are any."""
    figures = published.FIGURES.get(cells.setting, {})
    shown = {metric for row in figures.values() for metric in row}
    heads = [[metric, "publ."] if metric in shown else [metric] for metric in cells.metrics]
    rows = [["loss", "method", "seeds", *chain(*heads)]]
    for (loss, method), runs in cells.by_seed.items():
        row = [LOSSES.get(loss, loss), METHODS.get(method, method), str(len(runs))]
        values = text(runs)
        for metric in cells.metrics:
            row.append(values[metric])
            if metric in shown:
                figure = published.figure(cells.setting, loss, method, metric)
                slip = "?" if (cells.setting, loss, method, metric) in published.SUSPECT else ""
                row.append("" if figure is None else f"{figure:.1f}{slip}")
        rows.append(row)
    return align(rows)


def _means(cells: Cells) -> str:
    return _by_method(
        cells,
        lambda runs: {m: spread([run.test[m] for run in runs.values()]) for m in cells.metrics},
    )


def _ensembles(cells: Cells) -> str:
    def text(runs: dict[int, Run]) -> dict[str, str]:
        values = cells.evaluate(ensemble(runs.values()), cells.targets, "rounded").tolist()
        return {m: f"{value:.1f}" for m, value in zip(cells.metrics, values, strict=True)}

    return _by_method(cells, text)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation; of a single value, the value."""
    return f"{mean(values):.1f}" + (f" ± {std(values):.1f}" if len(values) > 1 else "")


def paired(values: list[float], lower: bool) -> str:
    """Mean ± standard error of differences, and how many of them are better and worse."""
    error = f" ± {standard_error(values):.1f}" if len(values) > 1 else ""
    below, above = sum(v < 0 for v in values), sum(v > 0 for v in values)
    better, worse = (below, above) if lower else (above, below)
    return f"{mean(values):+.1f}{error} ({better}/{worse})"


def _differences(cells: Cells) -> str:
    pairs = [("rankreg", "base"), ("rankreg", "alm"), ("alm", "base")]
    for control in (m for m in cells.methods if m not in METHODS):
        pairs += [(control, "base"), ("rankreg", control)]
    rows = [["loss", "difference", "seeds", *cells.metrics]]
    for pair in pairs:
        differences = cells.differences(*pair)
        name = " - ".join(METHODS.get(m, m).removeprefix("+ ") for m in pair)
        for loss, seeds in differences.items():
            rows.append([LOSSES.get(loss, loss), name, str(len(seeds))])
            for m in cells.metrics:
                rows[-1].append(paired([d[m] for d in seeds.values()], lower_is_better(m)))
        if len(differences) > 1:
            rows += _averages(cells, differences, pair, name)
    return align(rows) if len(rows) > 1 else ""


def _averages(cells: Cells, differences: dict, pair: tuple[str, str], name: str) -> list[list[str]]:
    """The mean over losses, per seed; and the published one of the same losses, and of all."""
    seeds = sorted(set.intersection(*(set(d) for d in differences.values())))
    row = [f"average of {len(differences)}", name, str(len(seeds))]
    for m in cells.metrics:
        values = [mean([d[seed][m] for d in differences.values()]) for seed in seeds]
        row.append(paired(values, lower_is_better(m)) if seeds else "-")
    rows = [row]
    all_losses = list(published.FIGURES.get(cells.setting, {}))
    choices = {"published, same": list(differences), "published, all": all_losses}
    if set(all_losses) <= set(differences):
        choices.pop("published, same")
    for label, losses in choices.items():
        values = [published.mean_difference(cells.setting, m, *pair, losses) for m in cells.metrics]
        if any(value is not None for value in values):
            rows.append([label, name, "", *("" if v is None else f"{v:+.1f}" for v in values)])
    return rows


def _ensemble_differences(cells: Cells, resamples: int) -> str:
    seeds = {
        loss: sorted(cells.of(loss, "rankreg").keys() & cells.of(loss, "alm").keys())
        for loss in cells.losses
    }
    losses = [loss for loss in cells.losses if seeds[loss]]
    if not losses:
        return ""
    rankreg, alm = (
        torch.stack(
            [ensemble(cells.of(loss, method)[seed] for seed in seeds[loss]) for loss in losses]
        )
        for method in ("rankreg", "alm")
    )

    def metric(scores: Tensor, targets: Tensor) -> Tensor:
        values = cells.evaluate(scores, targets)
        return torch.cat([values, values.mean(-2, keepdim=True)], -2)

    interval = bootstrap_difference(metric, rankreg, alm, cells.targets, resamples=resamples)
    rows = [["loss", "seeds", *cells.metrics]]
    names = [[LOSSES.get(loss, loss), str(len(seeds[loss]))] for loss in losses]
    if len(losses) > 1:
        names.append([f"average of {len(losses)}", ""])
    for k, name in enumerate(names):
        ends = zip(interval.estimate[k], interval.low[k], interval.high[k], strict=True)
        rows.append([*name, *(f"{e:+.1f} [{low:+.1f}, {high:+.1f}]" for e, low, high in ends)])
    return align(rows)


def _notes(cells: Cells) -> list[str]:
    """What the tables cannot say themselves."""
    notes = []
    if cells.setting in published.FIGURES:
        notes.append(
            "publ.: slides of the paper (CVPR 2023). How it combines seeds and reads rates off a "
            "curve is not public to us; ALM's published evaluation is that of the ensembles."
        )
    if any(setting == cells.setting for setting, *_ in published.SUSPECT):
        notes.append("?: identical to the CIFAR-10 table, probably a slip; not to be used.")
    if cells.setting in published.BEST_FPR98:
        notes.append(
            f"Of the published table we know only the FPR@98 of its best row, whatever that is: "
            f"{published.BEST_FPR98[cells.setting]:.1f}."
        )
    if cells.metrics is MULTICLASS:
        notes.append("Error@b: our reading of the paper's measure, `metrics.error_at_tpr`.")
    return notes


# ------------------------------------------------------------------------------------------- sweeps


def sweep_table(rows: list[dict[str, Any]]) -> str:
    """A sweep as Markdown: the settings that vary, the objective, mean ± std of each metric.

    Args:
        rows: each with ``settings``, ``objective``, ``mean`` and ``std`` of each metric, ``chosen``
            and, optionally, ``candidate``: False for what is only shown.
    """
    varying = [
        key
        for key in rows[0]["settings"]
        if any(row["settings"][key] != rows[0]["settings"][key] for row in rows)
    ]
    metrics = list(rows[0]["mean"])
    lines = [[*varying, "objective", *metrics, "chosen"]]
    for row in rows:
        settings = row["settings"]
        # Without the regulariser its settings mean nothing.
        unused = (
            ("lam", "power", "rankreg_from", "remembered") if not settings.get("alpha", 1) else ()
        )
        cells = ["-" if key in unused else _setting(settings[key]) for key in varying]
        numbers = [f"{row['mean'][name]:.1f} ± {row['std'][name]:.1f}" for name in metrics]
        verdict = "yes" if row["chosen"] else "" if row.get("candidate", True) else "only shown"
        lines.append([*cells, f"{row['objective']:.2f}", *numbers, verdict])
    return align(lines)


def _setting(value: Any) -> str:
    if value is None:
        return "-"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if number else str(value)
