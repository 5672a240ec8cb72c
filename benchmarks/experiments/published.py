"""The published figures of RankReg, as data: to be set beside runs, never to be computed with.

Source: the slides of "Ranking Regularization for Critical Rare Classes: Minimizing False Positives
at a High True Positive Rate" (CVPR 2023, pp. 15783-15792; arXiv 2304.00049). All are percent of
test images. How the paper combines its seeds, and by which rule it reads a rate off a curve, is
not public to us; neither are its network, its epochs and its lam and alpha.

- AUC is published for the base losses and ALM only.
- The figures of W-BCE without and with ALM for melanoma (98, 95, 92 %, AUC) are those of the
  CIFAR-10 table, to the digit: probably a slip in copying. See :data:`SUSPECT`.
"""

from __future__ import annotations

from .summary import mean

METHODS = ("base", "alm", "rankreg")

# Base loss / + ALM / + RankReg; a dash where nothing is published.
_TABLES = {
    "cifar10-100": """
        loss    FPR@98          FPR@95          FPR@92          AUC
        bce     56.0/52.0/47.1  45.0/34.0/26.2  29.0/21.0/20.6  91.2/93.1/-
        s-ml    59.0/50.0/45.6  40.0/37.0/31.4  26.0/24.0/29.7  91.7/92.5/-
        s-fl    59.0/55.0/53.3  40.0/39.0/35.4  27.0/25.0/20.7  91.7/91.5/-
        a-ml    54.0/45.0/47.8  36.0/35.0/28.9  23.0/23.0/21.4  92.4/92.8/-
        a-fl    50.0/49.0/50.5  38.0/37.0/28.7  24.0/23.0/20.9  92.3/92.8/-
        cb-bce  89.0/67.0/48.8  72.0/51.0/29.9  59.0/36.0/24.6  78.0/88.1/-
        w-bce   69.0/66.0/60.0  52.0/48.0/39.4  37.0/31.0/29.6  87.4/89.3/-
        ldam    65.0/60.0/42.8  48.0/42.0/25.6  34.0/31.0/23.8  89.0/91.0/-
    """,
    "melanoma-170": """
        loss    FPR@98          FPR@95          FPR@92          FPR@90          AUC
        bce     49.8/49.9/49.4  45.9/41.8/37.9  38.6/40.0/33.9  35.5/37.7/31.6  85.7/85.6/-
        s-ml    46.6/51.3/54.6  42.8/40.5/42.4  38.4/39.8/36.1  37.4/36.2/34.4  85.3/83.5/-
        s-fl    59.0/47.8/56.6  47.3/42.7/37.8  44.4/39.2/31.2  39.5/38.1/29.8  83.8/84.0/-
        a-ml    47.5/51.0/58.3  42.9/41.5/40.8  40.4/37.5/36.7  36.6/37.1/33.9  85.4/83.7/-
        a-fl    55.6/49.0/48.0  45.0/42.4/36.2  42.7/40.1/30.7  41.2/38.1/28.8  84.4/83.6/-
        w-bce   69.0/66.0/56.4  52.0/48.0/41.1  37.0/31.0/33.0  32.1/30.7/30.5  87.4/89.3/-
        ldam    59.7/62.7/65.6  48.2/47.7/47.5  46.2/43.3/45.7  39.0/40.7/43.9  -/81.5/-
    """,
    "lt-cifar10-100": """
        loss    Error@80        Error@90        accuracy
        ce      29.8/28.9/26.7  34.7/33.9/29.3  70.4/70.9/71.6
    """,
    "lt-cifar10-200": """
        loss    Error@80        Error@90        accuracy
        ce      37.8/36.1/36.7  42.4/39.9/37.8  64.0/65.1/65.0
    """,
}


def _parsed(text: str) -> dict[str, dict[str, tuple[float | None, ...]]]:
    (_, *metrics), *rows = (line.split() for line in text.split("\n") if line.strip())
    return {
        loss: {
            metric: tuple(None if value == "-" else float(value) for value in cell.split("/"))
            for metric, cell in zip(metrics, cells, strict=True)
        }
        for loss, *cells in rows
    }


#: ``FIGURES[setting][loss][metric]``: base, + ALM, + RankReg.
FIGURES = {setting: _parsed(text) for setting, text in _TABLES.items()}

#: Figures that were probably copied from another table by mistake: setting, loss, method, metric.
SUSPECT = {
    ("melanoma-170", "w-bce", method, metric)
    for method in ("base", "alm")
    for metric in ("FPR@98", "FPR@95", "FPR@92", "AUC")
}

#: FPR@98 of the best row of a table that we do not have, whichever its loss and method; from a
#: collection of published results (wizwand.com), not from the paper.
BEST_FPR98 = {"cifar10-200": 64.9, "cifar100-100": 64.0, "cifar100-200": 69.9}


def figure(setting: str, loss: str, method: str, metric: str) -> float | None:
    """One published figure in percent, or None."""
    row = FIGURES.get(setting, {}).get(loss, {}).get(metric)
    return row[METHODS.index(method)] if row and method in METHODS else None


def mean_difference(
    setting: str, metric: str, first: str, second: str, losses: list[str] | None = None
) -> float | None:
    """The mean over losses of ``first - second`` (methods), in points; None if there is none.

    Args:
        losses: those that have both figures count; None for all of the published table.
    """
    pairs = [
        (figure(setting, loss, first, metric), figure(setting, loss, second, metric))
        for loss in (FIGURES.get(setting, {}) if losses is None else losses)
    ]
    both = [a - b for a, b in pairs if a is not None and b is not None]
    return mean(both) if both else None
