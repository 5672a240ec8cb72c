"""The pictures of a report, as PNG bytes.

Colours are Okabe and Ito's, which readers with any colour vision tell apart; ours is black and
thick everywhere, and every provider keeps its colour and marker in all pictures.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from PIL import Image

if TYPE_CHECKING:
    from .report import Results

from .providers import OURS, OURS_NUMPY

Row = dict[str, Any]
MOST_BYTES = 120_000

# name: label, colour, marker, line
STYLE: dict[str, tuple[str, str, str, str]] = {
    OURS: ("rankreg_ext", "#000000", "o", "-"),
    OURS_NUMPY: ("rankreg_ext, from NumPy", "#000000", "", ":"),
    "double_argsort": ("torch, argsort twice", "#D55E00", "s", "-"),
    "argsort_scatter": ("torch, argsort + scatter", "#E69F00", "D", "-"),
    "torch.sort": ("torch.sort alone", "#E69F00", "", ":"),
    "searchsorted": ("torch, searchsorted + bincount", "#0072B2", "^", "-"),
    "numpy.argsort": ("NumPy, argsort + scatter", "#56B4E9", "v", "-"),
    "packed_sort": ("NumPy, SIMD sort of packed keys + scatter", "#009E73", "P", "-"),
    "packed_sort_alone": ("NumPy, SIMD sort of packed keys alone", "#009E73", "", ":"),
    "scipy": ("SciPy rankdata", "#CC79A7", "X", "-"),
    "bottleneck": ("bottleneck rankdata", "#0072B2", "<", "-"),
    "torchsort": ("torchsort (another function)", "#999999", "d", "--"),
    "no_rank_loss": ("no rank loss", "#999999", "", "-"),
    "plain_argsort": ("rank loss by argsort twice", "#D55E00", "s", "-"),
}

plt.rcParams.update(
    {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "0.9",
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
    }
)


def png(figure: Figure) -> bytes:
    """The figure's bytes, with a palette of 256 colours if they are many; the figure is closed."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    if full.tell() < MOST_BYTES:
        return full.getvalue()
    Image.open(full).convert("RGB").quantize(256).save(small, format="png", optimize=True)
    return small.getvalue()


def plain(value: float, _: Any = None) -> str:
    """1, 10, 100, 1k, 10k, 1M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _log_axes(panels: Sequence[Axes], x: str, y: str) -> None:
    """Both axes logarithmic; panels share their y axis, which shows all lines and cuts bands."""
    values = [v for axes in panels for line in axes.lines for v in line.get_ydata()]
    low, high = min(values) / 1.5, max(values) * 1.5
    for axes in panels:
        axes.set(xscale="log", yscale="log", xlabel=x, ylim=(low, high))
        axes.xaxis.set_major_formatter(FuncFormatter(_power))
        axes.yaxis.set_major_formatter(FuncFormatter(plain))
        axes.xaxis.set_major_locator(LogLocator(10, numticks=12))
        subs = (1, 2, 5) if high / low < 1000 else (1,)
        axes.yaxis.set_major_locator(LogLocator(10, subs=subs, numticks=20))
        axes.minorticks_off()
    panels[0].set_ylabel(y)


def _power(value: float, _: Any = None) -> str:
    exponent = round(np.log10(value))
    return f"{value:g}" if exponent < 4 else f"$10^{exponent}$"


def _line(axes: Axes, provider: str, points: list[tuple[float, Row]], per: str) -> None:
    """Medians joined, the 10th to 90th percentile as a band. ``per``: element or call."""
    points = sorted(points, key=lambda point: point[0])
    label, colour, marker, line = STYLE.get(provider, (provider, "#999999", ".", "-"))
    x = [place for place, _ in points]
    scale = [row["batch"] * row["n"] if per == "element" else 1e3 for _, row in points]
    low, middle, high = (
        [row[f"ns_p{q}"] / s for (_, row), s in zip(points, scale, strict=True)]
        for q in (10, 50, 90)
    )
    ours = provider == OURS
    axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    axes.plot(
        x, middle, line, color=colour, marker=marker, label=label, zorder=5 if ours else 3,
        lw=2.4 if ours else 1.4, ms=5.5 if ours else 4.5, markeredgecolor="white", mew=0.5,
    )  # fmt: skip


def _series(found: list[Row], x: str, **fixed: Any) -> dict[str, list[tuple[float, Row]]]:
    """Points by provider, in the order of STYLE, of the rows that have the fixed values."""
    series: dict[str, list[tuple[float, Row]]] = {}
    for row in found:
        if all(row[name] == value for name, value in fixed.items()):
            series.setdefault(row["provider"], []).append((row[x], row))
    return {name: series[name] for name in [*STYLE, *(series.keys() - STYLE)] if name in series}


def _subtitle(results: Results, isa: str, threads: int) -> str:
    run = results.run_of(isa, threads)
    cores = f"{threads} core{'s' * (threads > 1)}"
    return f"{run['cpu']} (family/model {run['cpu_family_model']}), {isa}, {cores}"


def _shared_legend(figure: Figure, panels: list[Axes], columns: int) -> None:
    entries: dict[str, Any] = {}
    for axes in panels:
        entries.update(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    order = [style[0] for style in STYLE.values() if style[0] in entries]
    figure.legend(
        [entries[name] for name in order],
        order,
        loc="outside lower center",
        ncols=columns if len(panels) > 1 else 2,
    )


# --------------------------------------------------------------------------------------- pictures

GROWTH_OPS = {"rankreg_loss": "loss", "rankreg_loss_backward": "its gradient"}
GROWTH_COLOURS = {8: ("#0072B2", "o"), 32: ("#E69F00", "s"), 128: ("#D55E00", "D")}


def time_against_n(results: Results, isa: str, threads: int) -> tuple[bytes, str] | None:
    """Ns per element of ``rank``: one list, and many."""
    found = [row for row in results.at(isa, threads) if row["values"] == "normal"]
    panels = [
        (title, series)
        for title, series in (
            ("one list", _series(found, "n", op="rank", dtype="float32", batch=1)),
            ("64 lists", _series(found, "n", op="rank", dtype="float32", batch=64)),
        )
        if any(len(points) > 1 for points in series.values())
    ]
    if not panels:
        return None
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 5.2), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, (title, series) in zip(all_axes[0], panels, strict=True):
        for provider, points in series.items():
            _line(axes, provider, points, "element")
        axes.set_title(title)
    _log_axes(all_axes[0], "n, scores in a list", "ns per score")
    figure.suptitle("Ranks of float32 scores: " + _subtitle(results, isa, threads), fontsize=11)
    _shared_legend(figure, list(all_axes[0]), 3)
    return png(figure), "Time per score of rank against the length of the list, all providers"


def speedup_map(results: Results, isa: str, threads: int) -> tuple[bytes, str] | None:
    """Heat maps over B x n against the three baselines that matter most."""
    rivals = ("double_argsort", "argsort_scatter", "packed_sort")
    times = {
        (row["provider"], row["batch"], row["n"]): row["ns_p50"]
        for row in results.at(isa, threads)
        if (row["op"], row["dtype"], row["values"]) == ("rank", "float32", "normal")
    }
    batches = sorted({b for p, b, _ in times if p == OURS})
    sizes = sorted({n for p, b, n in times if p == OURS and (len(batches) < 2 or n <= 1_000_000)})
    sizes = [n for n in sizes if n not in (32, 512)] or sizes
    rivals = tuple(r for r in rivals if any(key[0] == r for key in times))
    if len(batches) < 2 or not rivals:
        return None
    figure, panels = plt.subplots(
        1, len(rivals), figsize=(3.5 * len(rivals) + 0.8, 3.4), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    norm = TwoSlopeNorm(0, -np.log2(4), np.log2(64))
    for axes, rival in zip(panels[0], rivals, strict=True):
        ratios = np.full((len(batches), len(sizes)), np.nan)
        for i, batch in enumerate(batches):
            for j, n in enumerate(sizes):
                ours, other = times.get((OURS, batch, n)), times.get((rival, batch, n))
                if ours and other:
                    ratios[i, j] = other / ours
        image = axes.imshow(
            np.log2(ratios), cmap="PuOr_r", norm=norm, aspect="auto", origin="lower"
        )
        for (i, j), ratio in np.ndenumerate(ratios):
            if np.isfinite(ratio):
                shade = norm(np.log2(ratio))
                colour = "white" if abs(shade - 0.5) > 0.32 else "black"
                text = f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8.5)
        axes.set_xticks(range(len(sizes)), [plain(n) if n >= 100_000 else str(n) for n in sizes],
                        rotation=45)  # fmt: skip
        axes.set_yticks(range(len(batches)), [str(b) for b in batches])
        axes.set(
            xlabel="n",
            title="over " + STYLE[rival][0].replace("NumPy, SIMD sort of ", "SIMD-sorted "),
        )
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    panels[0, 0].set_ylabel("B, lists")
    ticks = [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64]
    bar = figure.colorbar(image, ax=panels[0], shrink=0.95, pad=0.01, extend="both")
    bar.set_ticks([np.log2(t) for t in ticks], labels=[f"{t:g}x" for t in ticks])
    bar.outline.set_visible(False)
    figure.suptitle("Speed-up of rank: " + _subtitle(results, isa, threads), fontsize=11)
    return png(figure), "Speed-up of rank over three baselines, by number and length of lists"


def scaling_with_positives(results: Results, isa: str, threads: int) -> tuple[bytes, str] | None:
    """Ns per element against P, forward and backward."""
    found = [r for r in results.at(isa, threads) if r["values"] == "normal"]
    ops = {"positive_ranks": "ranks of the positives", "positive_ranks_backward": "their gradient"}
    fixed = {"dtype": "float32", "batch": 1, "n": 1_000_000}
    panels = [(t, _series(found, "positives", op=op, **fixed)) for op, t in ops.items()]
    panels = [(t, s) for t, s in panels if any(len(points) > 1 for points in s.values())]
    if not panels:
        return None
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 4.4), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, (title, series) in zip(all_axes[0], panels, strict=True):
        for provider, points in series.items():
            _line(axes, provider, points, "element")
        axes.set_title(title)
    _log_axes(all_axes[0], "P, positives", "ns per score")
    figure.suptitle("A million scores: " + _subtitle(results, isa, threads), fontsize=11)
    _shared_legend(figure, list(all_axes[0]), 4)
    return png(figure), "Time per score against the number of positives"


def growth(results: Results, isa: str, threads: int) -> tuple[bytes, str] | None:
    """Time per score against n for rare positives: flat is linear time."""
    lines: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for row in results.at(isa, threads):
        op, positives, n = row["op"], row["positives"], row["n"]
        if row["provider"] == OURS and op in GROWTH_OPS and positives in GROWTH_COLOURS:
            if row["batch"] == 1 and row["values"] == "normal" and n >= 10_000:
                of_op = lines.setdefault(op, {})
                of_op.setdefault(positives, []).append((n, row["ns_p50"] / n))
    lines = {op: of_op for op, of_op in lines.items() if max(map(len, of_op.values())) > 1}
    if not lines:
        return None
    figure, panels = plt.subplots(
        1, len(lines), figsize=(5.2 * len(lines), 3.9), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, (op, of_op) in zip(panels[0], lines.items(), strict=True):
        for positives, points in sorted(of_op.items()):
            colour, marker = GROWTH_COLOURS[positives]
            axes.plot(*zip(*sorted(points), strict=True), color=colour, marker=marker, lw=2,
                      label=f"{positives} positives", markeredgecolor="white")  # fmt: skip
        axes.set_title(GROWTH_OPS[op])
    _log_axes(panels[0], "n, scores in the list", "ns per score")
    panels[0, 0].legend()
    figure.suptitle("Growth for rare positives: " + _subtitle(results, isa, threads), fontsize=11)
    return png(figure), "Time per score for rare positives against the length of the list"


ROOFLINE = {
    "rankreg_loss": ("loss of P positives", "#0072B2", "o"),
    "rankreg_loss_backward": ("its gradient", "#E69F00", "s"),
    "rank": ("rank, all scores", "#000000", "D"),
    "blackbox_backward": ("blackbox gradient", "#D55E00", "^"),
}


def roofline(results: Results, isa: str, threads: int) -> tuple[bytes, str] | None:
    """Bytes that must move per second, against the measured copy."""
    found = [
        r
        for r in results.at(isa, threads)
        if r["provider"] == OURS and r["dtype"] == "float32" and r["values"] == "normal"
        and r["batch"] == 1 and r["n"] >= 10_000 and r["op"] in ROOFLINE
    ]  # fmt: skip
    if not found:
        return None
    copy = results.run_of(isa, threads)["copy_gb_per_s"]
    named = set()
    figure, axes = plt.subplots(figsize=(7.6, 4.4), layout="constrained")
    for op, (label, colour, marker) in ROOFLINE.items():
        lines: dict[int, list[tuple[int, float]]] = {}
        for row in found:
            if row["op"] == op:
                rate = row["floor_bytes"] / row["ns_p50"]
                lines.setdefault(row["positives"], []).append((row["n"], rate))
        for positives in sorted(lines):
            if positives not in (0, 8, 32, 128):
                continue
            points = sorted(lines[positives])
            axes.plot(
                *zip(*points, strict=True), color=colour, marker=marker, lw=1.6, ms=5,
                markeredgecolor="white", label=None if label in named else label,
            )  # fmt: skip
            named.add(label)
            if positives:
                axes.annotate(
                    f"P={positives}", points[-1], xytext=(6, -3), textcoords="offset points",
                    fontsize=7.5, color=colour,
                )  # fmt: skip
    axes.axhline(copy, color="0.4", lw=1.2, ls="--")
    axes.annotate(
        f"copy of 256 MiB: {copy:.0f} GB/s", (0, copy), xycoords=("axes fraction", "data"),
        xytext=(5, 3), textcoords="offset points", fontsize=8.5, color="0.3",
    )  # fmt: skip
    _log_axes([axes], "n, scores in the list", "GB/s of inputs read and outputs written")
    axes.legend(loc="upper left", bbox_to_anchor=(1.04, 1))
    axes.set_title("Distance from memory: " + _subtitle(results, isa, threads))
    return png(figure), "Bytes per second that must move, against a measured copy"


def training(results: Results, isa: str, threads: int) -> tuple[bytes, str] | None:
    """Stacked bars: what a rank loss adds to a training step, before and after."""
    from .report import training_shares

    shares = training_shares(results, isa, threads)
    if not shares:
        return None
    figure, axes = plt.subplots(figsize=(7.6, 0.9 + 0.95 * len(shares)), layout="constrained")
    labels, places = [], []
    for i, (network, n, times) in enumerate(shares):
        base = times["no_rank_loss"]
        for j, (provider, colour) in enumerate((("plain_argsort", "#D55E00"), (OURS, "#000000"))):
            place = -(i * 2.6 + j)
            total = max(times[provider], base)
            share = (times[provider] - base) / times[provider]
            axes.barh(place, 100 * base / times["plain_argsort"], color="0.82", height=0.85)
            axes.barh(
                place, 100 * (total - base) / times["plain_argsort"],
                left=100 * base / times["plain_argsort"], color=colour, height=0.85,
            )  # fmt: skip
            axes.annotate(
                f"{times[provider]:.2f} ms, rank loss {100 * share:.0f} %",
                (100 * total / times["plain_argsort"], place), xytext=(5, 0),
                textcoords="offset points", va="center", fontsize=8.5,
            )  # fmt: skip
            name = "argsort twice" if provider != OURS else "rankreg_ext"
            labels.append(f"{network}, {n} items: {name}")
            places.append(place)
    axes.set_yticks(places, labels, fontsize=8.5)
    axes.set(xlim=(0, 145), xlabel="time of a training step, % of that with argsort twice")
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    figure.suptitle(
        "Rank loss in a training step (grey: the rest): " + _subtitle(results, isa, threads),
        fontsize=9.5,
    )
    return png(figure), "Share of a training step that the rank loss takes"


PICTURES = {
    "time.png": time_against_n,
    "speedup.png": speedup_map,
    "positives.png": scaling_with_positives,
    "growth.png": growth,
    "roofline.png": roofline,
    "training.png": training,
}


def all_pictures(results: Results, isa: str, threads: int) -> dict[str, tuple[bytes, str]]:
    """PNG and caption by file name; without those that the rows do not suffice for."""
    made = {name: draw(results, isa, threads) for name, draw in PICTURES.items()}
    return {name: picture for name, picture in made.items() if picture is not None}
