"""The paper's experiments: ``python -m benchmarks.experiments run|table|plot|sweep``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from .checkpoint import BusyError, clear, exclusive, write_atomically
from .config import METHODS, PRESETS, SETTINGS, Config, configure
from .datasets import DataError
from .demo import UnusableBackendError
from .pool import WorkerError, default_workers


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description=__doc__,
        epilog="Interrupted at any moment, run and sweep go on where they stopped.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="train cells: losses x methods x seeds")
    run.add_argument("--setting", choices=SETTINGS, default="cifar10-100")
    run.add_argument("--losses", nargs="+", help="all that the setting has by default")
    run.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    _common(run, Path("runs/paper"))

    sweep = commands.add_parser("sweep", help="choose settings on validation images")
    sweep.add_argument("name", help="of a sweep in benchmarks/experiments/sweep.py")
    _common(sweep, Path("runs/sweep"))

    for name, text in (("table", "print and save a table"), ("plot", "draw pictures")):
        command = commands.add_parser(name, help=f"{text} of finished runs")
        command.add_argument("folder", type=Path, help="given to run or sweep as --out")
    return parser.parse_args(arguments)


def _common(parser: argparse.ArgumentParser, out: Path) -> None:
    parser.add_argument("--preset", choices=PRESETS, default="paper", help="(%(default)s)")
    parser.add_argument("--seeds", type=_seeds, default=range(10), help="0:10 or 0,3,4 (0:10)")
    parser.add_argument("--out", type=Path, default=out, help="folder of results (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (%(default)s)")
    parser.add_argument(
        "--workers", type=int, default=default_workers(), help="runs side by side (%(default)s)"
    )
    parser.add_argument("--fresh", action="store_true", help="forget what is done")
    parser.add_argument(
        "--set",
        nargs="+",
        type=_override,
        default=[],
        metavar="NAME=VALUE",
        help="settings of config.Config, over the preset's",
    )


def _seeds(text: str) -> list[int]:
    if ":" in text:
        first, last = text.split(":")
        return list(range(int(first), int(last)))
    return [int(part) for part in text.split(",")]


def _override(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    types = {field.name: field.type for field in fields(Config)}
    if name not in types:
        raise argparse.ArgumentTypeError(f"no such setting: {name}")
    kind = {"int": int, "float": float, "int | None": int}.get(str(types[name]), str)
    return name, kind(value)


def run(args: argparse.Namespace) -> None:
    """Train what is not yet trained."""
    from . import results

    losses = args.losses or list(SETTINGS[args.setting].losses)
    configs = [
        configure(args.setting, loss, method, preset=args.preset, seed=seed, **dict(args.set))
        for seed in args.seeds  # seeds first: a table of all cells exists early
        for loss in losses
        for method in args.methods
    ]
    if args.fresh:
        clear(args.out / "checkpoints")
    results.run(configs, args.out, args.workers, args.device)


def sweep(args: argparse.Namespace) -> None:
    """Run a sweep."""
    from . import sweep as sweeps

    if args.fresh:
        clear(args.out / "checkpoints")
    sweeps.run(
        args.name,
        args.out,
        args.workers,
        args.device,
        args.preset,
        list(args.seeds),
        dict(args.set),
    )


def table(args: argparse.Namespace) -> None:
    """Print and save the table."""
    from . import tables

    text = tables.of_folder(args.folder)
    write_atomically(args.folder / "table.md", text.encode())
    print(text)


def plot(args: argparse.Namespace) -> None:
    """Draw the pictures."""
    from . import figures

    for name, content in figures.of_folder(args.folder).items():
        write_atomically(args.folder / f"{name}.png", content)
        print(args.folder / f"{name}.png")


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    args = parse(arguments)
    try:
        if args.command in ("run", "sweep"):
            with exclusive(args.out):
                {"run": run, "sweep": sweep}[args.command](args)
        else:
            {"table": table, "plot": plot}[args.command](args)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.")
        return 130
    except (BusyError, DataError, UnusableBackendError, ValueError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
