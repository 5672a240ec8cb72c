"""Pictures of finished runs and of sweeps, as PNG bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from rankreg_ext.metrics import fpr_at_tpr

from . import published
from .config import SETTINGS
from .finished import (
    BINARY,
    LOSSES,
    NAMES,
    Cells,
    Run,
    RunError,
    by_setting,
    load,
    load_sweeps,
    metrics_of,
)
from .plots import plt, png
from .runs import TPRS
from .summary import mean
from .tables import chosen

LOWEST_TPR = 0.85
# Okabe and Ito's colours, which colour-blind people tell apart; dashes and markers do it in grey.
STYLES = {
    "base": ("#555555", (0, (4, 1.5)), "s"),
    "alm": ("#0072B2", (0, (1, 1)), "^"),
    "rankreg": ("#D55E00", "-", "o"),
}
OTHERS = (
    ("#009E73", (0, (6, 1, 1, 1)), "D"),
    ("#CC79A7", (0, (3, 1)), "v"),
    ("#E69F00", (0, (6, 1, 1, 1, 1, 1)), "P"),
)
QUANTILES = ("best", "q25", "median", "q75", "worst")


def _styles(cells: Cells) -> dict[str, tuple]:
    others = [method for method in cells.methods if method not in STYLES]
    return {
        method: STYLES.get(method) or OTHERS[others.index(method) % len(OTHERS)]
        for method in cells.methods
    }


def _title(cells: Cells) -> str:
    return SETTINGS[cells.setting].title


def roc_corners(runs: Iterable[Run]) -> bytes:
    """The high-TPR corner of the test ROC curves of one binary setting, a panel for each loss.

    Thick: the mean over seeds of the FPR at equal TPR, as in the tables; thin: each seed.
    """
    cells = Cells(runs)
    if cells.metrics is not BINARY:
        raise RunError(f"{cells.setting} has several classes, and no ROC curve")
    columns = min(4, len(cells.losses))
    rows = math.ceil(len(cells.losses) / columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(max(5.5, 3.2 * columns), 3.1 * rows + 0.9),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    grid = torch.linspace(LOWEST_TPR, 1, 151, dtype=torch.float64)
    handles: dict[str, Any] = {}
    for axes, loss in zip(panels.flat, cells.losses, strict=False):
        for method, (colour, dashes, _) in _styles(cells).items():
            curves = [
                100 * fpr_at_tpr(run.logits["test"], cells.targets, grid.tolist())
                for run in cells.of(loss, method).values()
            ]
            if not curves:
                continue
            for curve in curves:
                axes.step(curve, 100 * grid, where="post", color=colour, lw=0.6, alpha=0.3)
            (handles[method],) = axes.step(
                torch.stack(curves).mean(0), 100 * grid, where="post", color=colour, ls=dashes, lw=2
            )
        for tpr in TPRS:
            axes.axhline(100 * tpr, color="0.8", lw=0.7, zorder=0)
        axes.set(title=LOSSES.get(loss, loss), xlim=(0, 100), ylim=(100 * LOWEST_TPR, 100.3))
        axes.spines[["top", "right"]].set_visible(False)
    _hide(panels, len(cells.losses))
    figure.supxlabel("false positive rate, %")
    figure.supylabel("true positive rate, %")
    _legend(figure, handles, f"{_title(cells)}: test images, mean over seeds (thin: each)")
    return png(figure)


def _hide(panels, used: int) -> None:
    for axes in panels.flat[used:]:
        axes.set_visible(False)
    _label_last(panels)


def _label_last(panels) -> None:
    """Label the epochs or rates of the last panel of each column, below which there may be none."""
    for column in panels.T:
        [axes for axes in column if axes.get_visible()][-1].tick_params(labelbottom=True)


def _legend(figure, handles: dict[str, Any], title: str) -> None:
    """One for all panels, above them."""
    legend = figure.legend(
        handles.values(),
        [NAMES.get(method, method) for method in handles],
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
        title=title,
        title_fontsize="large",
        handlelength=2.8,
    )
    legend.get_title().set_multialignment("center")


def sensitivity(
    rows: list[dict[str, Any]],
    base: float | None = None,
    objective: str = "mean of FPR@98, 95 and 92",
) -> bytes:
    """The objective of a sweep over lam and alpha, as a difference to the base loss.

    A panel for each combination of what else varies.

    Args:
        rows: as of :func:`tables.sweep_table`. Those of method "base", or without alpha, are the
            base loss; the best of them counts.
        base: the objective of the base loss, if no row has it.
        objective: what it is.
    """
    base_rows = [row for row in rows if _is_base(row)]
    grid = [row for row in rows if not _is_base(row)]
    base = min((row["objective"] for row in base_rows if _is_finite(row)), default=base)
    if base is None or not grid:
        raise ValueError("sensitivity: rows must have the base loss and a setting beside it")
    panels = _panels(grid)
    lams, alphas = (sorted({row["settings"][key] for row in grid}) for key in ("lam", "alpha"))
    largest = max([0.1, *(abs(row["objective"] - base) for row in grid if _is_finite(row))])

    across = len(panels) if len(panels) < 4 else 2
    down = math.ceil(len(panels) / across)
    size = (max(5.0, 1.15 * len(lams) + 1.0), max(2.6, 0.85 * len(alphas) + 0.5))
    figure, places = plt.subplots(
        down,
        across,
        figsize=(across * size[0] + 1.6, down * size[1] + 1.2),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axes, (title, cells) in zip(places.flat, panels.items(), strict=False):
        gain = [
            [
                cells[lam, alpha]["objective"] - base if (lam, alpha) in cells else math.nan
                for lam in lams
            ]
            for alpha in alphas
        ]
        image = axes.imshow(
            gain,
            cmap="PuOr_r",
            vmin=-largest,
            vmax=largest,
            origin="lower",
            aspect="auto",
        )
        axes.set_facecolor("0.9")  # of what was not run
        for (lam, alpha), row in cells.items():
            framed = chosen(row, rows)
            _annotate(axes, lams.index(lam), alphas.index(alpha), row, base, largest, framed)
        axes.set_xticks(range(len(lams)), [f"{lam:g}" for lam in lams])
        axes.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        axes.set_title(title, fontsize="medium")
    _hide(places, len(panels))
    figure.supxlabel("lam (perturbation of the scores)")
    figure.supylabel("alpha (weight)")
    verdict = ""
    if any(chosen(row, rows) for row in rows):
        of_base = any(chosen(row, rows) for row in base_rows)
        verdict = " (chosen)" if of_base else "; framed: chosen"
    figure.suptitle(f"Validation images, %: {objective}\nbase loss alone: {base:.1f}{verdict}")
    figure.colorbar(
        image, ax=places, label="difference to the base loss, points\n(below 0: better)"
    )
    return png(figure)


def _is_base(row: dict[str, Any]) -> bool:
    return row["settings"].get("method") == "base" or not row["settings"]["alpha"]


def _is_finite(row: dict[str, Any]) -> bool:
    return math.isfinite(row["objective"])


def _panels(rows: list[dict[str, Any]]) -> dict[str, dict[tuple[float, float], dict[str, Any]]]:
    """The rows by what varies besides lam and alpha, in words, and by these two."""
    varying = [
        key
        for key in rows[0]["settings"]
        if key not in ("lam", "alpha") and len({row["settings"][key] for row in rows}) > 1
    ]
    panels: dict[str, dict] = {}
    for row in rows:
        settings = row["settings"]
        title = ", ".join(f"{key.replace('_', ' ')} {settings[key]}" for key in varying)
        cell = settings["lam"], settings["alpha"]
        if cell in panels.setdefault(title, {}):
            raise ValueError(f"sensitivity: two rows with lam {cell[0]:g} and alpha {cell[1]:g}")
        panels[title][cell] = row
    return panels


def _annotate(axes, x: int, y: int, row: dict, base: float, largest: float, framed: bool) -> None:
    difference = row["objective"] - base
    axes.text(
        x,
        y,
        f"{row['objective']:.1f}\n({difference:+.1f})",
        ha="center",
        va="center",
        color="white" if abs(difference) > 0.6 * largest else "black",
        weight="bold" if framed else "normal",
    )
    if framed:
        axes.add_patch(plt.Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, lw=2.5))


def rank_trajectories(runs: Iterable[Run]) -> bytes:
    """Where the validation positives stand in the list, over the epochs.

    A row for each loss, a column for each method: the best, the quartiles and the worst of the
    positives, each a mean over the seeds that got so far; ticks mark the epochs whose weights were
    kept.
    """
    cells = Cells(runs)
    styles = _styles(cells)
    figure, panels = plt.subplots(
        len(cells.losses),
        len(styles),
        figsize=(max(5.5, 3.1 * len(styles)), max(4.0, 2.1 * len(cells.losses) + 1.2)),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, loss in zip(panels, cells.losses, strict=True):
        for axes, (method, (colour, *_)) in zip(row, styles.items(), strict=True):
            runs_here = list(cells.of(loss, method).values())
            if not runs_here:
                axes.set_visible(False)
                continue
            _bands(axes, runs_here, colour)
        row[0].set_ylabel(LOSSES.get(loss, loss), fontsize="large")
    for axes, method in zip(panels[0], styles, strict=True):
        axes.set_title(NAMES.get(method, method))
    _label_last(panels)
    panels[0, 0].set_ylim(1, 0)
    figure.supxlabel("epoch")
    figure.supylabel("rank, share of the list (0: top)")
    figure.suptitle(
        f"{_title(cells)}: ranks of the validation positives, mean over seeds\n"
        "line: median; bands: quartiles, best and worst;\n"
        "dotted: worst of a perfect ranking; triangles: epochs kept",
        fontsize="medium",
    )
    return png(figure)


def _bands(axes, runs: list[Run], colour: str) -> None:
    by_epoch: dict[int, list[dict[str, float]]] = {}
    for run in runs:
        for epoch in run.epochs:
            if "ranks" not in epoch:
                raise RunError(f"{run.path}: no ranks of the positives in epoch {epoch['epoch']}")
            by_epoch.setdefault(epoch["epoch"], []).append(epoch["ranks"])
    epochs = sorted(by_epoch)
    lines = {q: [mean([ranks[q] for ranks in by_epoch[e]]) for e in epochs] for q in QUANTILES}
    axes.fill_between(epochs, lines["best"], lines["worst"], color=colour, alpha=0.18, lw=0)
    axes.fill_between(epochs, lines["q25"], lines["q75"], color=colour, alpha=0.35, lw=0)
    axes.plot(epochs, lines["median"], color=colour, lw=1.8)
    axes.plot(epochs, lines["worst"], color=colour, lw=0.8)
    targets = runs[0].logits["validation_targets"]
    if targets.dtype == torch.bool:
        axes.axhline(targets.double().mean().item(), color="black", lw=0.9, ls=":")
    kept = [run.best_epoch for run in runs]
    axes.plot(kept, [0.965] * len(kept), "^", color="black", ms=4, mew=0, alpha=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def dots(runs: Iterable[Run], metric: str = "FPR@95") -> bytes:
    """A metric of each loss and method: each seed, the mean, and what is published."""
    cells = Cells(runs)
    if metric not in cells.metrics:
        raise ValueError(f"dots: metric must be one of {cells.metrics}, got {metric!r}")
    styles = _styles(cells)
    figure, axes = plt.subplots(figsize=(7.5, 0.62 * len(cells.losses) + 1.9), layout="constrained")
    step = 0.72 / len(styles)
    handles: dict[str, Any] = {}
    hollow = None
    for y, loss in enumerate(cells.losses):
        for k, (method, (colour, _, marker)) in enumerate(styles.items()):
            height = y + (k - (len(styles) - 1) / 2) * step
            values = [run.test[metric] for run in cells.of(loss, method).values()]
            target = published.figure(cells.setting, loss, method, metric)
            if (cells.setting, loss, method, metric) in published.SUSPECT:
                target = None
            if values:
                (handles[method],) = axes.plot(
                    mean(values), height, marker, color=colour, ms=8, ls=""
                )
                axes.plot(
                    values, [height] * len(values), "o", color=colour, ms=4, mec="white", mew=0.6
                )
            if values and target is not None:
                (hollow,) = axes.plot(target, height, marker, mec=colour, mfc="white", ms=6.5)
        axes.axhline(y + 0.5, color="0.9", lw=0.8, zorder=0)
    axes.set_yticks(range(len(cells.losses)), [LOSSES.get(loss, loss) for loss in cells.losses])
    axes.set_ylim(len(cells.losses) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{metric} on test images, %")
    axes.grid(axis="x", color="0.92", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    about = "large: mean over seeds, small: each seed" + (", hollow: published" if hollow else "")
    _legend(figure, handles, f"{_title(cells)}\n{about}")
    return png(figure)


def of_folder(folder: Path | str) -> dict[str, bytes]:
    """All pictures of a folder's runs, by setting, and of its sweeps over lam and alpha."""
    pictures = {}
    for setting, runs in by_setting(load(folder)).items():
        binary = metrics_of(setting) is BINARY
        if binary:
            pictures[f"{setting}-roc"] = roc_corners(runs)
        pictures[f"{setting}-dots"] = dots(runs, "FPR@95" if binary else "Error@90")
        pictures[f"{setting}-ranks"] = rank_trajectories(runs)
    for name, sweep in load_sweeps(folder).items():
        grid = [row for row in sweep["rows"] if not _is_base(row)]
        pairs = {(row["settings"]["lam"], row["settings"]["alpha"]) for row in grid}
        if len(pairs) > 1 and len(grid) < len(sweep["rows"]):
            pictures[f"{name}-sensitivity"] = sensitivity(sweep["rows"])
    return pictures
