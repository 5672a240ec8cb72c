"""Pictures of finished runs and of sweeps, as PNG bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from rankreg_ext.metrics import fpr_at_tpr

from . import published
from .plots import plt, png
from .summary import mean
from .tables import BINARY, LOSSES, METHODS, SETTINGS, TPRS, Cells, Run, RunError

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
    return SETTINGS.get(cells.setting, cells.setting)


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
    for axes in panels.flat[len(cells.losses) :]:
        axes.set_visible(False)
    figure.supxlabel("false positive rate, %")
    figure.supylabel("true positive rate, %")
    _legend(figure, handles, f"{_title(cells)}: test images, mean over seeds (thin: each)")
    return png(figure)


def _legend(figure, handles: dict[str, Any], title: str) -> None:
    """One for all panels, above them."""
    legend = figure.legend(
        handles.values(),
        [METHODS.get(method, method) for method in handles],
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

    Args:
        rows: as of :func:`tables.sweep_table`; ``settings`` has ``lam`` and ``alpha``, 0 or None
            for the base loss. No two rows may share lam and alpha.
        base: the objective of the base loss, if no row has it.
        objective: what it is.
    """
    cells: dict[tuple[float, float], dict[str, Any]] = {}
    base_chosen = False
    for row in rows:
        lam, alpha = row["settings"]["lam"], row["settings"]["alpha"]
        if not alpha:
            base, base_chosen = row["objective"], bool(row.get("chosen"))
        elif (lam, alpha) in cells:
            raise ValueError(f"sensitivity: two rows with lam {lam:g} and alpha {alpha:g}")
        else:
            cells[lam, alpha] = row
    if base is None or not cells:
        raise ValueError("sensitivity: rows must have the base loss (alpha 0) and a setting beside")
    lams, alphas = (sorted({key[k] for key in cells}) for k in (0, 1))
    gain = torch.full((len(alphas), len(lams)), math.nan)
    for (lam, alpha), row in cells.items():
        gain[alphas.index(alpha), lams.index(lam)] = row["objective"] - base
    largest = max(float(gain[~gain.isnan()].abs().max()), 0.1)

    size = (1.25 * len(lams) + 2.6, 0.85 * len(alphas) + 1.9)
    figure, axes = plt.subplots(
        figsize=(max(5.6, size[0]), max(3.4, size[1])), layout="constrained"
    )
    axes.set_facecolor("0.9")  # of what was not run
    image = axes.imshow(
        gain.tolist(), cmap="PuOr_r", vmin=-largest, vmax=largest, origin="lower", aspect="auto"
    )
    for (lam, alpha), row in cells.items():
        x, y = lams.index(lam), alphas.index(alpha)
        difference = row["objective"] - base
        dark = abs(difference) > 0.6 * largest
        axes.text(
            x,
            y,
            f"{row['objective']:.1f}\n({difference:+.1f})",
            ha="center",
            va="center",
            color="white" if dark else "black",
            weight="bold" if row.get("chosen") else "normal",
        )
        if row.get("chosen"):
            axes.add_patch(plt.Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, lw=2.5))
    axes.set_xticks(range(len(lams)), [f"{lam:g}" for lam in lams])
    axes.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    if base_chosen:
        verdict = " (chosen)"
    else:
        verdict = "; framed: chosen" if any(row.get("chosen") for row in cells.values()) else ""
    axes.set(
        xlabel="lam (perturbation of the scores)",
        ylabel="alpha (weight)",
        title=f"Validation images, %: {objective}\nbase loss alone: {base:.1f}{verdict}",
    )
    figure.colorbar(image, label="difference to the base loss, points\n(below 0: better)")
    return png(figure)


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
        axes.set_title(METHODS.get(method, method))
    for column in panels.T:  # below its last panel there may be none
        [axes for axes in column if axes.get_visible()][-1].tick_params(labelbottom=True)
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
