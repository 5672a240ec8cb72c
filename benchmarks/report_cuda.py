"""Markdown from the results of a CUDA device; nothing is measured here."""

from __future__ import annotations

from pathlib import Path

from .cases import CUDA_TARGETS, Case, CudaTarget
from .compare import geometric_mean
from .providers import COMPILED, OURS, OURS_TRITON
from .report import Results, Row, is_peer, number, short, table

# Columns of the tables; those compiled are taken together, since either may be the better one.
RIVALS = {
    "double argsort": ("double_argsort",),
    "argsort + scatter": ("argsort_scatter",),
    "either, compiled": ("double_argsort" + COMPILED, "argsort_scatter" + COMPILED),
    "searchsorted": ("searchsorted",),
}


def devices(results: Results) -> list[str]:
    return list(dict.fromkeys(row["device"] for row in results.rows))


def copy_of(results: Results, row: Row) -> float:
    """GB/s of a copy, in the run that the row is of."""
    return results.runs[row["run"]]["copy_gb_per_s"]


def share_of_copy(results: Results, row: Row) -> float:
    """Bytes that must be moved, over those that a copy would have moved in the same time."""
    return row["floor_bytes"] / row["ns_p50"] / copy_of(results, row)


def on_device(found: dict[str, Row]) -> Row | None:
    """Of the rows of one provider by mode, that which tells the device's time best.

    Replayed from a graph; where there is none, eager calls, in which the host's waiting counts.
    """
    return found.get("graph") or found.get("call")


def modes(results: Results, case: Case | str, device: str, provider: str = OURS) -> dict[str, Row]:
    found = {mode: results.get(case, device, mode, provider) for mode in ("call", "graph")}
    return {mode: row for mode, row in found.items() if row is not None}


# ---------------------------------------------------------------------------------------- targets


def measured(target: CudaTarget, results: Results, device: str) -> list[tuple[str, float, Row]]:
    """Label, value and row of each of the target's cases that was measured."""
    values = []
    for case in target.cases:
        found = modes(results, case, device)
        row = found.get("call") if target.eager else on_device(found)
        if row is None:
            continue
        time = row["ns_p50"]
        if target.unit == "us":
            value = time / 1e3
        elif target.unit == "Gelem/s":
            value = case.elements / time
        elif target.unit == "of copy":
            value = share_of_copy(results, row)
        else:
            ranking = Case("rank", case.batch, case.n, case.dtype)
            forward = on_device(modes(results, ranking, device))
            if forward is None:
                continue
            value = forward["ns_p50"] / time
        values.append((short(case), value, row))
    return values


def targets_table(results: Results, device: str) -> str:
    header = ["target", "case", "unit", "limit", "measured", "met", "of copy", "timed"]
    lines = []
    for target in CUDA_TARGETS:
        limit = f"{'<=' if target.unit == 'us' else '>='} {target.limit:g}"
        found = measured(target, results, device)
        if not found:
            lines.append([target.name, "not measured", target.unit, limit, "", "", "", ""])
        for label, value, row in found:
            met = "met" if target.met(value) else "**missed**"
            share = f"{share_of_copy(results, row):.0%}"
            cells = [target.name, label, target.unit, limit, number(value), met, share]
            lines.append([*cells, row["mode"]])
    return table(header, lines)


# ----------------------------------------------------------------------------------------- tables


def _times(results: Results, device: str, *, eager: bool = False) -> dict[str, dict[str, Row]]:
    """By case and provider, the row of the device's time or of eager calls; cases that we have."""
    by_mode: dict[str, dict[str, dict[str, Row]]] = {}
    for row in _rows(results, device):
        by_provider = by_mode.setdefault(row["case"], {})
        by_provider.setdefault(row["provider"], {})[row["mode"]] = row
    chosen = {}
    for case, by_provider in by_mode.items():
        picked = {
            provider: found.get("call") if eager else on_device(found)
            for provider, found in by_provider.items()
        }
        if picked.get(OURS):
            chosen[case] = {provider: row for provider, row in picked.items() if row}
    return chosen


def _ratios(found: dict[str, Row]) -> dict[str, tuple[float, Row]]:
    """The rivals' time over ours, and that of the best that makes the op's whole answer."""
    ours = found[OURS]["ns_p50"]
    ratios = {}
    for label, names in RIVALS.items():
        rows = [found[name] for name in names if name in found]
        if rows:
            best = min(rows, key=lambda row: row["ns_p50"])
            ratios[label] = (best["ns_p50"] / ours, best)
    peers = [row for row in found.values() if is_peer(row)]
    if peers:
        best = min(peers, key=lambda row: row["ns_p50"])
        ratios["best other"] = (best["ns_p50"] / ours, best)
    return ratios


def _cells(ratios: dict[str, tuple[float, Row]], star: str = "") -> list[str]:
    """Bold where the other is faster; ``star`` marks the time of eager calls."""
    cells = []
    for label in (*RIVALS, "best other"):
        if label not in ratios:
            cells.append("")
            continue
        value, row = ratios[label]
        text = f"{number(value)}x{star if row['mode'] == 'call' else ''}"
        cells.append(text if value >= 1 else f"**{text}**")
    return [*cells, ratios["best other"][1]["provider"] if "best other" in ratios else ""]


def device_table(results: Results, device: str) -> str:
    header = ["case", "ours, us", "p10 - p90", "Gelem/s", "of copy", *RIVALS, "best other", "who"]
    lines = []
    for case, found in _times(results, device).items():
        row = found[OURS]
        star = "*" if row["mode"] == "call" else ""
        spread = f"{number(row['ns_p10'] / 1e3)} - {number(row['ns_p90'] / 1e3)}"
        line = [f"`{case}`", number(row["ns_p50"] / 1e3) + star, spread]
        line += [number(row["batch"] * row["n"] / row["ns_p50"])]
        line += [f"{share_of_copy(results, row):.0%}", *_cells(_ratios(found), "*")]
        lines.append(line)
    return table(header, lines)


def eager_table(results: Results, device: str) -> str:
    header = ["case", "ours, us", "host, us", "scratch, B/element", *RIVALS, "best other", "who"]
    lines = []
    for case, found in _times(results, device, eager=True).items():
        row, scratch = found[OURS], ""
        if row["peak_bytes"] is not None:
            beyond = max(0, row["peak_bytes"] - row["output_bytes"])
            scratch = number(beyond / (row["batch"] * row["n"]))
        line = [f"`{case}`", number(row["ns_p50"] / 1e3), number(row["host_ns_p50"] / 1e3)]
        lines.append([*line, scratch, *_cells(_ratios(found))])
    return table(header, lines)


def forms_table(results: Results, device: str) -> str:
    """Our kernels in CUDA C++ and in Triton: device time, eager calls, and steps under compile."""

    def us(found: dict[str, Row], mode: str, key: str = "ns_p50") -> str:
        return number(found[mode][key] / 1e3) if mode in found else ""

    header = ["case", "device, us", "in Triton", "ratio", "eager, us", "in Triton", "host, us"]
    header += ["in Triton", "compiled, us", "in Triton"]
    lines = []
    for case in dict.fromkeys(row["case"] for row in _rows(results, device)):
        native, triton = (modes(results, case, device, name) for name in (OURS, OURS_TRITON))
        if not native or not triton:
            continue
        ratio = ""
        if "graph" in native and "graph" in triton:
            value = triton["graph"]["ns_p50"] / native["graph"]["ns_p50"]
            ratio = f"{number(value)}x" if value >= 1 else f"**{number(value)}x**"
        compiled = [
            us(modes(results, case, device, name + COMPILED), "call")
            for name in (OURS, OURS_TRITON)
        ]
        both = [
            us(found, *key)
            for key in (("call",), ("call", "host_ns_p50"))
            for found in (native, triton)
        ]
        line = [f"`{case}`", us(native, "graph"), us(triton, "graph"), ratio, *both, *compiled]
        lines.append(line)
    return table(header, lines)


def summary_table(results: Results, device: str) -> str:
    """Per op: geometric mean, and range, of the rivals' device time over ours."""
    by_op: dict[str, dict[str, list[float]]] = {}
    for found in _times(results, device).values():
        of_op = by_op.setdefault(found[OURS]["op"], {})
        for label, (value, _) in _ratios(found).items():
            of_op.setdefault(label, []).append(value)
    lines = []
    for op, ratios in by_op.items():
        cells = [f"`{op}`"]
        for label in (*RIVALS, "best other"):
            values = ratios.get(label)
            mean = number(geometric_mean(values)) if values else ""
            cells.append(
                f"{mean}x ({number(min(values))} - {number(max(values))})" if values else ""
            )
        lines.append([*cells, str(sum(value < 1 for value in ratios.get("best other", [])))])
    return table(["op", *(f"over {label}" for label in (*RIVALS, "best other")), "lost"], lines)


def _rows(results: Results, device: str) -> list[Row]:
    return [row for row in results.rows if row["device"] == device]


# ----------------------------------------------------------------------------------------- report


def facts(run: Row) -> str:
    """One paragraph about where a run was made."""
    libraries = ", ".join(
        f"{name} {version or 'absent'}" for name, version in run["libraries"].items()
    )
    commit = (run["commit"] or "unknown")[:12] + (" with local changes" if run["dirty"] else "")
    reading = ", ".join(f"{name} {value}" for name, value in run["reading"].items()) or "none"
    return f"""\
- {run["device"]}, compute capability {run["capability"]}, {run["multiprocessors"]}
  multiprocessors, L2 {run["l2_bytes"] / 2**20:.0f} MiB, {run["memory_gib"]} GiB; driver
  {run["driver"] or "unknown"}; nvidia-smi at the start: {reading}
- measured: a copy within device memory reads and writes {run["copy_gb_per_s"]:,.0f} GB/s together
- rankreg_ext {run["rankreg_ext"]}, commit {commit}, back-end {run["backend"]}; {run["compiler"]};
  `{run["flags"]}`
- Python {run["python"]}; {libraries}, CUDA {run["cuda"]}; {run["cpu"]}, {run["system"]};
  {run["date"]}"""


FORMS = """\
Of each pair of columns the first is CUDA C++. A ratio below 1, bold: Triton is faster. Eager times
are those of one call after another, device and host at once; the host's share stands beside them.
Compiled: the whole step, forward and backward, by inductor."""

NOTES = """\
Times are medians; a ratio is the other's time over ours: above 1 we are faster; bold, we are not.
Device time is that of calls replayed from a CUDA graph. With a star: no graph can be made, since
the host must wait for the device within the call, and the time is that of eager calls. "Of copy":
the bytes that any method must read and write, over those that a copy within device memory reads and
writes in the same time."""


def write_report(results: Results, out: Path) -> str:
    """Write ``report.md`` into ``out``; what was written, in words."""
    out.mkdir(parents=True, exist_ok=True)
    parts = ["# Benchmark results on CUDA", "", "Made by `python -m benchmarks report`.", NOTES, ""]
    for device in devices(results):
        found = _rows(results, device)
        parts += [f"## {device}", "", facts(results.runs[found[-1]["run"]]), ""]
        parts += ["### Targets", "", targets_table(results, device), ""]
        parts += ["### Device time, by op", "", summary_table(results, device), ""]
        parts += ["### Device time", "", device_table(results, device), ""]
        parts += ["### Eager calls", "", eager_table(results, device), ""]
        if any(row["provider"] == OURS_TRITON for row in found):
            parts += ["### CUDA C++ and Triton", "", FORMS, "", forms_table(results, device), ""]
    reasons = {(r["provider"], r["op"], r["why_no_graph"]) for r in results.rows}
    reasons = sorted(reason for reason in reasons if reason[2])
    if reasons:
        parts += ["## Why there is no graph", ""]
        parts += [f"- {provider}, {op}: {why}" for provider, op, why in reasons] + [""]
    notes = {(r["provider"], r["op"], r["note"]) for r in results.rows if r["note"]}
    if notes:
        parts += ["## Notes on providers", ""]
        parts += [f"- {provider}, {op}: {note}" for provider, op, note in sorted(notes)] + [""]
    (out / "report.md").write_text("\n".join(parts), encoding="utf-8")
    return f"{out / 'report.md'}: {len(results.rows)} rows"
