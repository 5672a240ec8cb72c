"""The pictures of the demo, as PNG bytes."""

from __future__ import annotations

import io

import matplotlib
import torch
from torch import Tensor

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from rankreg_ext.metrics import fpr_at_tpr

from .landscape import LinearScorer, interpolation

COLOURS = {"bce": "#4c566a", "rankreg": "#d1495b"}
LOWEST_TPR = 0.85


def png(figure: Figure) -> bytes:
    """The figure's bytes; the figure is closed. No date and no version enters them."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def roc_figure(
    scores: dict[str, list[Tensor]],
    positives: Tensor,
    labels: dict[str, str],
    tprs: tuple[float, ...],
) -> bytes:
    """The corner of high TPR: a thin line per seed, a thick one for the mean.

    The mean is taken of the FPR at equal TPR, as in the table, whose columns are marked.

    Args:
        scores: for each arm, the ``(n,)`` scores of each seed's network.
        positives: ``(n,)`` bool.
        labels: the name of each arm.
        tprs: those of the table.
    """
    figure, axes = plt.subplots(figsize=(7.2, 5.0), layout="constrained")
    grid = torch.linspace(LOWEST_TPR, 1, 151, dtype=torch.float64)
    for arm, label in labels.items():
        curves = [100 * fpr_at_tpr(s, positives, grid.tolist()) for s in scores[arm]]
        for curve in curves:
            axes.step(curve, 100 * grid, where="post", color=COLOURS[arm], lw=0.7, alpha=0.35)
        average = torch.stack(curves).mean(0)
        axes.step(average, 100 * grid, where="post", color=COLOURS[arm], lw=2.4, label=label)
        marked = torch.stack([100 * fpr_at_tpr(s, positives, tprs) for s in scores[arm]]).mean(0)
        axes.plot(marked, [100 * tpr for tpr in tprs], "o", ms=5, color=COLOURS[arm])
    for tpr in tprs:
        axes.axhline(100 * tpr, color="0.75", lw=0.8, ls=":", zorder=0)
    axes.set(
        xlabel="false positive rate: T-shirts taken for shirts, %",
        ylabel="true positive rate: shirts found, %",
        xlim=(0, 100),
        ylim=(100 * LOWEST_TPR, 100.4),
        title="ROC curves on the test images, high-TPR corner",
    )
    axes.legend(
        loc="upper left",
        title=f"mean over {len(curves)} seeds (thin: each)",
        frameon=False,
    )
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def landscape_figure(lams: tuple[float, float] = (0.8, 4.0)) -> bytes:
    """A rank loss of a tiny linear scorer over its two weights, and two interpolations of it."""
    scorer = LinearScorer()
    axis = torch.linspace(-4, 4, 401, dtype=torch.float64)
    w = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    planes = [interpolation(scorer.scores(w), scorer.positives, lam) for lam in lams]
    line = torch.linspace(-4, 4, 2001, dtype=torch.float64)
    height = 0.6  # of the slice
    on_line = torch.stack([line, torch.full_like(line, height)], -1)
    slices = [interpolation(scorer.scores(on_line), scorer.positives, lam) for lam in lams]

    figure = plt.figure(figsize=(11, 7.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.1, 1))
    maps = top.subplots(1, 3, sharey=True)
    surfaces = [planes[0][0], *(plane[1] for plane in planes)]
    titles = ["$f(w)$: mean rank of the positives"]
    titles += [rf"$f_\lambda(w)$, $\lambda$ = {lam:g}" for lam in lams]
    low = min(float(s.min()) for s in surfaces)
    high = max(float(s.max()) for s in surfaces)
    for axes, surface, title in zip(maps, surfaces, titles, strict=True):
        image = axes.pcolormesh(
            axis, axis, surface, cmap="viridis", vmin=low, vmax=high, rasterized=True
        )
        axes.axhline(height, color="white", lw=1.2, ls="--")
        axes.set(title=title, xlabel="$w_1$", aspect="equal")
    maps[0].set_ylabel("$w_2$")
    top.colorbar(image, ax=maps, label="loss", shrink=0.9)

    panels = bottom.subplots(1, 2, sharey=True)
    for axes, lam, (loss, smooth, _) in zip(panels, lams, slices, strict=True):
        axes.plot(line, loss, color="0.35", lw=1.4, label="$f(w)$", drawstyle="steps-mid")
        axes.plot(line, smooth, color=COLOURS["rankreg"], lw=2, label=r"$f_\lambda(w)$")
        axes.set(
            xlabel=f"$w_1$ along the dashed line, $w_2$ = {height:g}",
            title=rf"$\lambda$ = {lam:g}",
            xlim=(-4, 4),
        )
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        if lam == lams[0]:
            axes.set_ylabel("loss")
    return png(figure)
