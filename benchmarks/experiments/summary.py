"""Means, spreads and aligned tables: what every summary of runs needs."""

from __future__ import annotations


def mean(values: list[float]) -> float:
    """The mean; values are summed in order, so that equal runs give equal bits."""
    return sum(values) / len(values)


def std(values: list[float]) -> float:
    """The standard deviation of the sample (n - 1); NaN for a single value."""
    if len(values) < 2:
        return float("nan")
    centre = mean(values)
    return (sum((value - centre) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def standard_error(values: list[float]) -> float:
    """The standard error of the mean; NaN for a single value."""
    return std(values) / len(values) ** 0.5


def align(rows: list[list[str]]) -> str:
    """A Markdown table of equally wide columns; the first row is the head."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        others = [cell.strip().rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("| " + " | ".join([first, *others]) + " |")
    dashes = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], "| " + " | ".join(dashes) + " |", *lines[1:]])
