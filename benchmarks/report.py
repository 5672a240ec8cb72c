"""Markdown and pictures from result files; nothing is measured here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import plots, rows
from .cases import NETWORKS, TARGETS, Case, Target
from .compare import geometric_mean
from .providers import OURS, is_ours

ISA_ORDER = ("avx512", "avx2", "neon", "baseline", "none")

Row = dict[str, Any]


class Results:
    """The rows of some result files; where a measurement was repeated, the latest counts."""

    def __init__(self, runs: list[Row], found: list[Row]):
        self.runs = {run["run"]: run for run in runs}
        self.rows = list({rows.key(row): row for row in found}.values())
        self._by_key = {rows.key(row): row for row in self.rows}

    @classmethod
    def read(cls, folders: Sequence[Path]) -> Results:
        runs, found = [], []
        for folder in folders:
            path = folder / "results.jsonl" if folder.is_dir() else folder
            if not path.exists():
                raise ValueError(f"no results at {path}")
            more_runs, more = rows.read(path)
            runs += more_runs
            found += more
        if not found:
            raise ValueError(f"no rows in {', '.join(map(str, folders))}")
        return cls(runs, found)

    def settings(self) -> list[tuple[str, int]]:
        """The instruction sets and numbers of threads; one thread and the widest set first."""
        found = {(row["isa"], row["threads"]) for row in self.rows}
        return sorted(found, key=lambda s: (s[1], _isa_place(s[0])))

    def at(self, isa: str, threads: int) -> list[Row]:
        return [row for row in self.rows if (row["isa"], row["threads"]) == (isa, threads)]

    def get(self, case: Case | str, isa: str, threads: int, provider: str = OURS) -> Row | None:
        name = case if isinstance(case, str) else case.name
        return self._by_key.get((name, provider, isa, threads))

    def run_of(self, isa: str, threads: int) -> Row:
        """The environment of the setting's latest row."""
        return self.runs[self.at(isa, threads)[-1]["run"]]


def _isa_place(isa: str) -> int:
    return ISA_ORDER.index(isa) if isa in ISA_ORDER else len(ISA_ORDER)


def per_element(row: Row) -> float:
    """Nanoseconds, median."""
    return row["ns_p50"] / (row["batch"] * row["n"])


# ---------------------------------------------------------------------------------------- targets


def measured(target: Target, results: Results, isa: str) -> list[tuple[str, float, Row | None]]:
    """What the target speaks of, on one core: label, value, and the row if it is of one row.

    Cases that were not measured are left out; a ratio or spread needs all of its rows.
    """
    found = [(case, results.get(case, isa, 1, target.provider)) for case in target.cases]
    have = [(case, row) for case, row in found if row is not None]
    values: list[tuple[str, float, Row | None]] = []
    if target.unit == "x spread":
        times = [per_element(row) for _, row in have]
        if len(times) > 1:
            low, high = have[0][0], have[-1][0]
            label = f"{short(low)} to {short(high)}"
            if len(have) < len(found):
                label += f" ({len(have)} of {len(found)} sizes)"
            values.append((label, max(times) / min(times), None))
        return values
    for case, row in have:
        if target.unit == "ns/element":
            values.append((short(case), per_element(row), row))
        elif target.unit == "us/call":
            values.append((short(case), row["ns_p50"] / 1e3, row))
        elif target.unit == "x forward":
            forward = results.get(Case("rank", case.batch, case.n, case.dtype), isa, 1)
            if forward:
                values.append((short(case), row["ns_p50"] / forward["ns_p50"], None))
        elif target.unit == "B/element" and row["peak_bytes"] is not None:
            scratch = max(0, row["peak_bytes"] - row["output_bytes"]) / case.elements
            values.append((short(case), scratch, None))
    return values


def short(case: Case) -> str:
    """As few words as tell the cases of a target apart."""
    positives = f" P={case.positives}" if case.positives else ""
    ending = "_backward" if case.op.endswith("_backward") and case.positives else ""
    return f"{case.batch}x{_count(case.n)}{positives}{' backward' if ending else ''}"


def _count(n: int) -> str:
    return f"1e{len(str(n)) - 1}" if n >= 10_000 and n == 10 ** (len(str(n)) - 1) else str(n)


def targets_table(results: Results) -> str:
    """Every target against the measurement, one column per instruction set, on one core."""
    isas = [isa for isa, threads in results.settings() if threads == 1]
    header = ["target", "case", "unit", "limit"]
    header += [f"{isa}" for isa in isas] + ["cycles/element"] * any(isas)
    lines = []
    for target in TARGETS:
        by_isa = {isa: {m[0]: m for m in measured(target, results, isa)} for isa in isas}
        labels = dict.fromkeys(label for found in by_isa.values() for label in found)
        if not labels:
            lines.append([target.name, "not measured", target.unit, _limit(target, isas)])
            lines[-1] += [""] * (len(header) - 4)
        for label in labels:
            cells, cycles = [], []
            for isa in isas:
                entry = by_isa[isa].get(label)
                if entry is None:
                    cells.append("-")
                    continue
                _, value, row = entry
                met = value <= target.on(isa)
                cells.append(
                    f"{number(value)} {'met' if met else f'**{value / target.on(isa):.2g}x**'}"
                )
                if row is not None and row["clock_ghz"]:
                    cycles.append(number(per_element(row) * row["clock_ghz"]))
            name = target.name
            lines.append([name, label, target.unit, _limit(target, isas), *cells])
            lines[-1].append(" / ".join(cycles) if target.unit == "ns/element" else "")
    return table(header, lines)


def _limit(target: Target, isas: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(f"{target.on(isa):g}" for isa in isas))


# ----------------------------------------------------------------------------------------- tables


def number(value: float) -> str:
    """Three significant digits, without exponents."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def headline_table(results: Results, isa: str, threads: int) -> str:
    """Case by case: ours, the two honest baselines, and the best that computes the same thing."""
    header = ["case", "ours, us", "ns/element", "p10 - p90", "double argsort", "argsort + scatter"]
    header += ["best other", "who", *(["one core / all"] if threads > 1 else [])]
    lines = []
    for name, found in by_case(results.at(isa, threads)).items():
        ours = found.get(OURS)
        if ours is None or ours["op"] == "training_step":
            continue
        size, time = ours["batch"] * ours["n"], ours["ns_p50"]
        line = [f"`{name}`", number(time / 1e3), number(per_element(ours))]
        line.append(f"{number(ours['ns_p10'] / size)} - {number(ours['ns_p90'] / size)}")
        for provider in ("double_argsort", "argsort_scatter"):
            row = found.get(provider)
            line.append(f"{number(row['ns_p50'] / time)}x" if row else "")
        others = [row for row in found.values() if is_peer(row)]
        best = min(others, key=lambda row: row["ns_p50"], default=None)
        line += [_ratio(best["ns_p50"] / time), best["provider"]] if best else ["", ""]
        if threads > 1:
            single = results.get(name, isa, 1)
            line.append(f"{single['ns_p50'] / time:.2f}x" if single else "")
        lines.append(line)
    return table(header, lines)


def summary_table(results: Results, isa: str, threads: int) -> str:
    """Per op: geometric mean and range over the cases of the other's time over ours."""
    rivals = ("double_argsort", "argsort_scatter", "best other")
    ratios: dict[str, dict[str, list[float]]] = {}
    for found in by_case(results.at(isa, threads)).values():
        ours = found.get(OURS)
        others = [row for row in found.values() if is_peer(row)]
        if ours is None or not others or ours["op"] == "training_step":
            continue
        times = {row["provider"]: row["ns_p50"] for row in others}
        times["best other"] = min(times.values())
        of_op = ratios.setdefault(ours["op"], {rival: [] for rival in rivals})
        for rival in times.keys() & set(rivals):
            of_op[rival].append(times[rival] / ours["ns_p50"])
    lines = []
    for op, of_op in ratios.items():
        best = of_op["best other"]
        cells = [f"`{op}`", str(len(best))]
        for rival in rivals:
            values = of_op[rival]
            text = f"{number(geometric_mean(values))}x ({number(min(values))} - " if values else ""
            cells.append(text + f"{number(max(values))})" if values else "")
        lines.append([*cells, str(sum(ratio < 1 for ratio in best))])
    header = ["op", "cases", "over double argsort", "over argsort + scatter", "over the best other"]
    return table([*header, "cases lost"], lines)


def by_case(found: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Rows by provider by case."""
    grouped: dict[str, dict[str, Row]] = {}
    for row in found:
        grouped.setdefault(row["case"], {})[row["provider"]] = row
    return grouped


def is_peer(row: Row) -> bool:
    """Whether another makes the op's whole answer: not a lower bound, not another function."""
    compared = row["gate"] != "not compared" and not row["note"].endswith("no ranks made")
    return compared and not is_ours(row["provider"])


def _ratio(value: float) -> str:
    """Bold where the other is faster than ours."""
    return f"{number(value)}x" if value >= 1 else f"**{number(value)}x**"


def losses(results: Results, isa: str, threads: int) -> list[str]:
    """The cases where somebody else is faster, in words."""
    ours = {row["case"]: row for row in results.at(isa, threads) if row["provider"] == OURS}
    lines = []
    for row in results.at(isa, threads):
        mine = ours.get(row["case"])
        if mine and is_peer(row) and row["ns_p50"] < mine["ns_p50"]:
            if row["op"] == "training_step":
                continue
            factor = mine["ns_p50"] / row["ns_p50"]
            lines.append(f"- `{row['case']}`: {row['provider']} is {factor:.2f}x faster")
    return lines


def busy(results: Results, isa: str, threads: int) -> str:
    """A warning if other processes took the cores away; empty if not."""
    found = results.at(isa, threads)
    disturbed = sum(row["cpu_share"] < 0.9 for row in found)
    if not disturbed:
        return ""
    return (
        f"{disturbed} of {len(found)} rows were disturbed: the process had a core for less than "
        "90 % of their time, so the machine was not quiet."
    )


def training_shares(results: Results, isa: str, threads: int) -> list[tuple[str, int, dict]]:
    """For each network and list length: milliseconds of the step by provider."""
    found = []
    rows_ = [row for row in results.at(isa, threads) if row["op"] == "training_step"]
    for network in NETWORKS:
        times = {r["provider"]: r["ns_p50"] / 1e6 for r in rows_ if r["values"] == network}
        if {OURS, "no_rank_loss", "plain_argsort"} <= set(times):
            n = next(row["n"] for row in rows_ if row["values"] == network)
            found.append((network, n, times))
    return found


def training_table(results: Results, isa: str, threads: int) -> str:
    header = ["network", "batch", "step without rank loss, ms", "with double argsort", "its share"]
    header += ["with rankreg_ext", "its share"]
    lines = []
    for network, n, times in training_shares(results, isa, threads):
        base = times["no_rank_loss"]
        cells = [network, str(n), f"{base:.3f}"]
        for provider in ("plain_argsort", OURS):
            share = 100 * (times[provider] - base) / times[provider]
            cells += [f"{times[provider]:.3f}", f"{share:.1f} %"]
        lines.append(cells)
    return table(header, lines)


def machine_facts(run: Row) -> str:
    """One paragraph about where a setting was measured."""
    libraries = ", ".join(f"{k} {v or 'absent'}" for k, v in run["libraries"].items())
    clock = f"{run['clock_ghz']:.2f} GHz" if run["clock_ghz"] else "unknown"
    variables = " ".join(f"{k}={v!r}" for k, v in run["variables"].items())
    commit = (run["commit"] or "unknown")[:12] + (" with local changes" if run["dirty"] else "")
    cores = ", ".join(map(str, run["cores"])) or "any"
    return f"""\
- {run["cpu"]} (family/model {run["cpu_family_model"]}), {run["logical_cores"]} logical cores,
  L2 {run["l2_cache"]}, {run["memory_gib"]} GiB; {run["system"]}; governor {run["governor"]};
  measured: clock {clock}, copy {run["copy_gb_per_s"]:.1f} GB/s read and written
- instruction set {run["isa"]} of {", ".join(run["isas"])}; threads {run["threads"]}, core {cores};
  {variables}
- rankreg_ext {run["rankreg_ext"]}, commit {commit}; {run["compiler"]}; `{run["flags"]}`
- Python {run["python"]}; {libraries}; {run["date"]}"""


def write_report(folders: Sequence[Path], out: Path) -> str:
    """Write ``report.md`` and the pictures into ``out``; what was written, in words."""
    results = Results.read(folders)
    kinds = {row["kind"] for row in results.rows}
    if len(kinds) > 1:
        raise ValueError("results of the CPU and of CUDA are reported apart")
    if kinds == {"cuda_row"}:
        from . import report_cuda

        return report_cuda.write_report(results, out)
    out.mkdir(parents=True, exist_ok=True)
    isa, threads = results.settings()[0]
    pictures = plots.all_pictures(results, isa, threads)
    for name, (png, _) in pictures.items():
        (out / name).write_bytes(png)
    parts = ["# Benchmark results", ""]
    parts += [
        "Made by `python -m benchmarks report`. A ratio is the other's time over ours: above 1"
    ]
    parts += ["we are faster; bold, we are not.", ""]
    for name, (_, caption) in pictures.items():
        parts += [f"![{caption}]({name})", ""]
    if any(count == 1 for _, count in results.settings()):
        parts += ["## Targets, one core", ""]
        parts += [
            "After each figure: met, or how many times the limit. Cycles by the clock measured"
        ]
        parts += ["beside each case, in the order of the instruction sets.", ""]
        parts += [targets_table(results), ""]
    for isa, threads in results.settings():
        parts += [f"## {isa}, {threads} thread{'s' * (threads > 1)}", ""]
        parts += [machine_facts(results.run_of(isa, threads)), ""]
        if disturbed := busy(results, isa, threads):
            parts += [disturbed, ""]
        parts += [summary_table(results, isa, threads), ""]
        parts += [headline_table(results, isa, threads), ""]
        if lost := losses(results, isa, threads):
            parts += ["Faster than ours:", "", *lost, ""]
        if training_shares(results, isa, threads):
            parts += ["Training steps:", "", training_table(results, isa, threads), ""]
    notes = {(r["provider"], r["op"], r["note"]) for r in results.rows if r["note"]}
    if notes:
        parts += ["## Notes on providers", ""]
        parts += [f"- {p}, {op}: {note}" for p, op, note in sorted(notes)] + [""]
    (out / "report.md").write_text("\n".join(parts), encoding="utf-8")
    return f"{out / 'report.md'}, {', '.join(pictures)}: {len(results.rows)} rows"
