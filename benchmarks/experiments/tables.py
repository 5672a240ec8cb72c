"""Tables of finished runs and of sweeps: means, paired differences, ensembles, published figures.

:func:`of_folder` makes all that a folder of runs or sweeps allows, as Markdown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankreg_ext.metrics import bootstrap_difference

from . import published
from .config import CRITICAL, SETTINGS
from .finished import (
    BINARY,
    LOSSES,
    METHODS,
    MULTICLASS,
    NAMES,
    Cells,
    Run,
    RunError,
    by_setting,
    ensemble,
    load,
    load_sweeps,
    lower_is_better,
)
from .summary import align, mean, standard_error, std

SIZE_IN_WORDS = {
    "width": "width {}",
    "stem_stride": "stem stride {}",
    "epochs": "up to {} epochs",
    "batch_size": "batches of {}",
}
# By method, the settings that mean nothing to it.
_RANKREG = ("alpha", "lam", "power", "gradient", "projection", "remembered", "start")
_ALM = ("mu", "delta")
UNUSED = {"base": (*_RANKREG, *_ALM, "extra_positives"), "alm": _RANKREG, "rankreg": _ALM}


def table(runs: Iterable[Run], resamples: int = 1000) -> str:
    """All tables of one setting, as Markdown.

    Args:
        runs: of one setting.
        resamples: of the bootstrap.

    Raises:
        RunError: if the runs do not belong together.
    """
    cells = Cells(runs)
    parts = [f"## {SETTINGS[cells.setting].title}", size_note(cells)]
    parts += ["Test images, %: mean ± standard deviation over seeds.", _means(cells)]
    text = _differences(cells)
    if text:
        parts += [
            "Paired differences over the common seeds, points: mean ± standard error (seeds "
            "better/worse). Below 0 is better, but for AUC and accuracy. An average is, for each "
            "seed that all losses have, the mean over the losses.",
            text,
        ]
    binary = cells.metrics is BINARY
    rule = "; FPR by the rounding rule of ALM's evaluation, 0 if no point of the curve is near"
    parts += [
        f"Ensembles, %: test logits averaged over the seeds, one curve{rule if binary else ''}.",
        _ensembles(cells),
    ]
    text = _ensemble_differences(cells, resamples)
    if text:
        rule = "; FPR at the highest threshold that reaches the rate"
        parts += [
            "RankReg - ALM of ensembles over the common seeds, points, with 95 % bootstrap "
            f"intervals ({resamples:,} resamples of the test images, paired: they say nothing "
            f"about other seeds){rule if binary else ''}.",
            text,
        ]
    return "\n\n".join([*parts, *_notes(cells)]) + "\n"


def size_note(cells: Cells) -> str:
    """At which size these runs are, and what that allows to conclude."""
    config = cells.runs[0].config
    size = ", ".join(
        words.format(config[key]) for key, words in SIZE_IN_WORDS.items() if key in config
    )
    note = f"These runs: ResNet-10, {size}."
    if cells.setting not in published.FIGURES and cells.setting not in published.BEST_FPR98:
        return f"{note} Nothing is published for this setting."
    note += (
        " The size of the published ones is not public to us; ALM's code, on CIFAR, has a ResNet-10"
        " of width 64, up to 100 epochs and 10 seeds."
    )
    full = config.get("width", 0) >= 64 and config.get("epochs", 0) >= 100
    if not full or config.get("stem_stride", 1) > 1:
        note += (
            " **These are smaller: their figures replicate nothing, and only differences within "
            "these tables can be read.**"
        )
    return note


def _by_method(cells: Cells, text: Callable[[dict[int, Run]], dict[str, str]]) -> str:
    """A row for each loss and method; beside each metric its published figure, if there are any."""
    figures = published.FIGURES.get(cells.setting, {})
    shown = {metric for row in figures.values() for metric in row}
    heads = [[metric, "publ."] if metric in shown else [metric] for metric in cells.metrics]
    rows = [["loss", "method", "seeds", *chain(*heads)]]
    for (loss, method), runs in cells.by_seed.items():
        row = [LOSSES.get(loss, loss), NAMES.get(method, method), str(len(runs))]
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
        name = " - ".join(NAMES.get(m, m).removeprefix("+ ") for m in pair)
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
    if cells.setting.startswith("cifar10-"):
        notes.append(
            "Whether the paper takes these two classes is uncertain: a slide shows car and plane."
        )
    if any(setting == cells.setting for setting, *_ in published.SUSPECT):
        notes.append("?: identical to the CIFAR-10 table, probably a slip; not to be used.")
    if cells.setting in published.BEST_FPR98:
        notes.append(
            f"Of the published table we know only the FPR@98 of its best row, whatever that is: "
            f"{published.BEST_FPR98[cells.setting]:.1f}."
        )
    if cells.metrics is MULTICLASS:
        notes.append(
            "Error@b: our reading of the paper's measure, `metrics.error_at_tpr`; critical, by our "
            f"choice: class {', '.join(map(str, CRITICAL[cells.setting]))}."
        )
    return notes


# --- sweeps, folders ------------------------------------------------------------------------------


def sweep_table(rows: list[dict[str, Any]]) -> str:
    """A sweep as Markdown: the settings that vary, the objective, mean ± std of each metric.

    Args:
        rows: each with ``settings``, ``objective``, ``mean`` and ``std`` of each metric and,
            optionally, ``chosen``, by default the lowest objective, and ``candidate``: False for
            what is only shown.
    """
    used = [_used(row["settings"]) for row in rows]
    varying = [key for key in rows[0]["settings"] if len({s[key] for s in used} - {None}) > 1]
    metrics = list(rows[0]["mean"])
    lines = [[*varying, "objective", *metrics, "chosen"]]
    for row, settings in zip(rows, used, strict=True):
        numbers = [f"{row['mean'][name]:.1f} ± {row['std'][name]:.1f}" for name in metrics]
        verdict = "" if row.get("candidate", True) else "only shown"
        verdict = "yes" if chosen(row, rows) else verdict
        cells = [_setting(settings[key]) for key in varying]
        lines.append([*cells, f"{row['objective']:.2f}", *numbers, verdict])
    return align(lines)


def chosen(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Whether a sweep chose this row."""
    if "chosen" in row:
        return row["chosen"]
    finite = [other for other in rows if not math.isnan(other["objective"])]
    return row is min(finite, key=lambda other: other["objective"], default=None)


def _used(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with None for those that mean nothing without their method."""
    unused: tuple[str, ...] = UNUSED.get(settings.get("method", ""), ())
    if settings.get("alpha") == 0:
        unused += ("lam", "power", "rankreg_from", "remembered")
    return {key: None if key in unused else value for key, value in settings.items()}


def _setting(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def of_folder(folder: Path | str) -> str:
    """All tables of a folder's runs, by setting, and of its sweeps.

    Raises:
        RunError: as :func:`load` and :func:`table`, and if there is nothing.
    """
    parts = [table(runs) for runs in by_setting(load(folder)).values()]
    for name, sweep in load_sweeps(folder).items():
        parts.append(
            f"## {name}: {sweep['question']}\n\nValidation images, %: mean ± standard deviation "
            f"over {len(sweep['seeds'])} seeds. What is chosen looks better here than it is.\n\n"
            f"{sweep_table(sweep['rows'])}\n"
        )
    if not parts:
        raise RunError(f"{folder}: no finished run and no sweep")
    return "\n".join(parts)
