"""``python -m benchmarks``: ``run`` measures, ``report`` draws, ``compare`` judges a change."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import cases, rows

DEFAULT_OUT = Path("runs/bench")
IN_WORKER = "RANKREG_BENCH_WORKER"


def parser() -> argparse.ArgumentParser:
    """Its subcommands and their options."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="measure; rows are appended to OUT/results.jsonl")
    run.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR")
    run.add_argument(
        "--resume", action="store_true",
        help="go on with the results in DIR; otherwise older ones are renamed and kept",
    )  # fmt: skip
    run.add_argument("--device", choices=sorted(cases.SELECTIONS), default="cpu")
    run.add_argument(
        "--seconds", type=float, default=float("inf"),
        help="begin no further case after so long; those not measured are named",
    )  # fmt: skip
    run.add_argument("--isa", default="best", help="names, comma-separated; best; or all")
    run.add_argument("--threads", default="1", help="numbers, comma-separated; or all")
    run.add_argument("--provider", type=_names, default=(), metavar="NAMES")
    _add_selection(run)

    profile = commands.add_parser(
        "profile", help="one call of ours in every case, for a CUDA profiler that is told to wait"
    )
    profile.set_defaults(device="cuda")
    _add_selection(profile)

    report = commands.add_parser("report", help="table and plots from result files")
    report.add_argument("results", type=Path, nargs="*", default=[DEFAULT_OUT], metavar="DIR")
    report.add_argument("--out", type=Path, metavar="DIR", help="default: the first DIR")

    compare = commands.add_parser("compare", help="two commits, interleaved; ratios B / A")
    compare.add_argument("a", help="a commit, or . for the working tree as it is built")
    compare.add_argument("b")
    compare.set_defaults(device="cpu")
    compare.add_argument("--isa", default="best", help="a name, or best")
    compare.add_argument("--threads", type=int, default=1)
    compare.add_argument("--processes", type=int, default=3, help="pairs of processes")
    compare.add_argument("--rounds", type=int, default=10, help="per pair of processes")
    compare.add_argument("--threshold", type=float, default=1.05, help="ratio that fails")
    _add_selection(compare)
    return top


def _add_selection(command: argparse.ArgumentParser) -> None:
    which = command.add_mutually_exclusive_group()
    which.add_argument("--quick", dest="selection", action="store_const", const="quick")
    which.add_argument("--full", dest="selection", action="store_const", const="full")
    command.set_defaults(selection="standard")
    command.add_argument("--op", type=_names, default=(), metavar="NAMES")
    command.add_argument("--dtype", type=_names, default=(), metavar="NAMES")
    command.add_argument("--shape", type=_names, default=(), metavar="BxN,...")
    command.add_argument("--match", metavar="REGEX", help="on the case's name")
    command.add_argument("--list", action="store_true", help="name the cases and stop")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def selected(options: argparse.Namespace) -> list[cases.Case]:
    return cases.select(
        cases.SELECTIONS[options.device][options.selection](),
        ops=options.op,
        dtypes=options.dtype,
        shapes=options.shape,
        match=options.match,
    )


def run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """A process for each instruction set and number of threads: libraries read both once."""
    from . import machine

    isas = {"best": machine.isas()[-1:], "all": machine.isas()[::-1]}.get(options.isa)
    isas = _names(options.isa) if isas is None else isas
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    threads = str(available) if options.threads == "all" else options.threads
    if unknown := set(isas) - set(machine.isas()):
        raise ValueError(f"--isa: {sorted(unknown)} not usable here; there are {machine.isas()}")
    _set_aside(options)
    status = 0
    for isa in isas:
        off = machine.numpy_features_to_disable() if isa == "avx512" else None
        for count in map(int, _names(threads)):
            command = [sys.executable, "-m", "benchmarks", *arguments]
            command += ["--isa", isa, "--threads", str(count)]
            environment = {**os.environ, **machine.environment_of(isa, count, off), IN_WORKER: "1"}
            status |= subprocess.run(command, env=environment).returncode
    return status


def _set_aside(options: argparse.Namespace) -> None:
    """Older results are kept under another name, unless they are to be gone on with."""
    path = options.out / "results.jsonl"
    if path.exists() and not options.resume:
        stamp = datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y%m%dT%H%M%S")
        path.rename(path.with_name(f"results.{stamp}.jsonl"))


def run_here(options: argparse.Namespace) -> int:
    """The cases, one after another, under one instruction set and number of threads."""
    from . import harness, machine

    isa, threads = options.isa, int(options.threads)
    cores = machine.pin(threads)
    machine.use_isa(isa)
    facts = machine.record(threads, cores)
    label = f"{isa}, {threads} thread{'s' * (threads > 1)}"
    print(
        f"{label}: clock {facts['clock_ghz'] or float('nan'):.2f} GHz, "
        f"copy {facts['copy_gb_per_s']:.1f} GB/s",
        flush=True,
    )
    same = {"kind": "row", "isa": isa, "threads": threads}
    return _measure_all(
        options, harness.CPU, label, {"kind": "run", **facts}, same, (isa, threads),
        lambda: {"clock_ghz": machine.clock_ghz()},
    )  # fmt: skip


def run_on_cuda(options: argparse.Namespace) -> int:
    """The cases, one after another, on the current CUDA device."""
    from . import cuda

    cuda.usable()
    _set_aside(options)
    device = cuda.Cuda()
    facts = device.record()
    label = facts["device"]
    print(f"{label}: copy {facts['copy_gb_per_s']:.0f} GB/s", flush=True)
    same = {"kind": "cuda_row", "device": label}
    return _measure_all(
        options, device, label, {"kind": "cuda_run", **facts}, same, (label, "call"), dict
    )


def _measure_all(
    options: argparse.Namespace,
    device: Any,
    label: str,
    facts: dict[str, Any],
    same: dict[str, Any],
    setting: tuple,
    before: Callable[[], dict[str, Any]],
) -> int:
    """Rows appended case by case.

    Args:
        facts: the environment record.
        same: what all rows share.
        setting: the end of the rows' keys, by which those already there are known.
        before: asked before every case for what its rows share.
    """
    from . import harness

    todo, path = selected(options), options.out / "results.jsonl"
    done = _already(path, facts)
    name = uuid.uuid4().hex[:12]
    date = datetime.now(UTC).isoformat(timespec="seconds")
    header = [{**facts, "run": name, "date": date, "selection": options.selection}]
    failures, began = 0, time.monotonic()
    for index, case in enumerate(todo):
        if time.monotonic() - began > options.seconds:
            left = ", ".join(case.name for case in todo[index:])
            print(f"\nnot measured, since {options.seconds:.0f} s were over: {left}", flush=True)
            break
        _progress(label, index, len(todo), began, case.name)
        wanted = tuple(
            provider.name
            for provider in harness.providers_of(case, options.provider, device.name)
            if (case.name, provider.name, *setting) not in done
        )
        if not wanted:
            continue
        shared = {**same, "run": name, **before()}
        try:
            measured = harness.measure(case, wanted, device=device)
        except (harness.GateError, RuntimeError) as error:
            failures += 1
            print(f"\nFAILED: {error}", flush=True)
            continue
        rows.append(path, header + [{**shared, **row} for row in measured])
        header = []
    else:
        _progress(label, len(todo), len(todo), began, "")
    print(flush=True)
    return 1 if failures else 0


def _already(path: Path, facts: dict) -> set[tuple]:
    """Keys of the rows in the file, which must be of the same code on the same machine."""
    if not path.exists():
        return set()
    runs, found = rows.read(path)
    for name in ("commit", "dirty", "cpu", "device"):
        if different := {run.get(name) for run in runs} - {facts.get(name)}:
            now = facts.get(name)
            raise ValueError(f"{path}: {name} is {different}, now {now}; use another --out")
    return {rows.key(row) for row in found}


def _progress(label: str, done: int, of: int, began: float, what: str) -> None:
    spent = time.monotonic() - began
    left = f"{spent / done * (of - done):.0f} s left" if done else "..."
    line = f"[{label}] {done}/{of}, {spent:.0f} s, {left}  {what}"
    end = "" if sys.stdout.isatty() else "\n"
    print(("\r\x1b[K" if sys.stdout.isatty() else "") + line, end=end, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 if a provider was wrong, or a commit slower; 2 if it cannot be run."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(arguments)
    try:
        if options.command == "report":
            from .report import write_report

            print(write_report(options.results, options.out or options.results[0]))
            return 0
        if options.list:
            print(*(case.name for case in selected(options)), sep="\n")
            return 0
        if options.command == "profile":
            from . import cuda

            cuda.usable()
            for case in selected(options):
                cuda.profile(case)
            return 0
        if options.command == "compare":
            from .compare import compare

            return compare(options, selected(options))
        selected(options)  # a misspelt filter is told before any process starts
        if options.device == "cuda":
            return run_on_cuda(options)
        if os.environ.get(IN_WORKER):
            return run_here(options)
        return run(options, arguments)
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
