"""The main job: shirts among T-shirts at 1 : 100, with and without RankReg.

    python -m benchmarks.experiments.demo

trains both for several seeds, prints the table and writes ``results.json``, ``table.md``,
``roc.png`` and ``landscape.png``. Interrupted at any moment, also by ``kill -9``, the same command
goes on from the last complete epoch of each run and ends with the same numbers.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rankreg_ext

from . import dataset
from .checkpoint import BusyError, clear, exclusive, write_atomically, write_json
from .dataset import CorruptDataError
from .pool import WorkerError, default_workers, run_all
from .summary import align, mean, standard_error, std
from .train import Job, Settings

# Both arms: what the base loss alone did best with on validation images. RankReg's own settings:
# likewise, with these fixed. See results/tuning.md, written by tune.py; no test image was used.
BASE = Settings(epochs=20, learning_rate=0.2, weight_decay=5e-4, positives_per_batch=2)
RANKREG = replace(BASE, alpha=0.1, lam=1.0, power=2)

ARMS = {"bce": "BCE", "rankreg": "BCE + RankReg"}
TPRS = (0.98, 0.95, 0.92, 0.90)
METRICS = (*(f"FPR@{100 * tpr:.0f}" for tpr in TPRS), "AUC")


class UnusableBackendError(RuntimeError):
    """The back-end that was asked for cannot be used here."""


def metrics(scores: Tensor, positives: Tensor) -> dict[str, float]:
    """The five numbers of one run, in percent."""
    fpr = rankreg_ext.metrics.fpr_at_tpr(scores, positives, TPRS)
    values = [*fpr.tolist(), rankreg_ext.metrics.roc_auc(scores, positives).item()]
    return {name: 100 * value for name, value in zip(METRICS, values, strict=True)}


def summarise(per_seed: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Mean and spread of each arm, and of the paired differences RankReg - BCE.

    Args:
        per_seed: for each arm, the metrics of its runs in the order of the seeds.
    """

    def of(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
        columns = {name: [row[name] for row in rows] for name in METRICS}
        return {
            name: {
                "mean": mean(column),
                "std": std(column),
                "standard_error": standard_error(column),
            }
            for name, column in columns.items()
        }

    differences = [
        {name: with_it[name] - without[name] for name in METRICS}
        for without, with_it in zip(per_seed["bce"], per_seed["rankreg"], strict=True)
    ]
    return {
        **{arm: of(rows) for arm, rows in per_seed.items()},
        "difference": of(differences),
        "difference_per_seed": differences,
    }


def table(summary: dict[str, Any], seeds: list[int]) -> str:
    """The summary as a Markdown table that is aligned for a terminal, too."""
    count = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    rows = [[f"test images, %, {count}", *METRICS]]
    for arm, label in ARMS.items():
        cells = [summary[arm][name] for name in METRICS]
        rows.append([f"{label}: mean ± std", *(f"{c['mean']:.1f} ± {c['std']:.1f}" for c in cells)])
    for seed, difference in zip(seeds, summary["difference_per_seed"], strict=True):
        rows.append([f"difference, seed {seed}", *(f"{difference[m]:+.1f}" for m in METRICS)])
    cells = [summary["difference"][name] for name in METRICS]
    numbers = [f"{c['mean']:+.1f} ± {c['standard_error']:.1f}" for c in cells]
    rows.append(["difference: mean ± s.e.", *numbers])
    return align(rows)


def ranking_backend() -> tuple[str, str]:
    """The back-end for ranks of CPU tensors: the name to ask for, and a line about it.

    ``RANKREG_BACKEND`` decides if it is set; otherwise the C++ kernels, if they were built.

    Raises:
        UnusableBackendError: if what ``RANKREG_BACKEND`` asks for cannot be had.
    """
    asked = os.environ.get("RANKREG_BACKEND") or "auto"
    try:
        with rankreg_ext.use_backend("cpu" if asked == "auto" else asked):
            pass
    except (RuntimeError, ValueError) as error:
        if asked == "auto":
            return "reference", f"reference (plain torch), because {error}"
        raise UnusableBackendError(f"RANKREG_BACKEND={asked}: {error}") from error
    if asked == "auto":
        return "cpu", "cpu (C++ kernels)"
    return asked, f"{asked} (RANKREG_BACKEND)"


def environment(backend: str, workers: int) -> dict[str, Any]:
    """What may differ between two runs of equal results, for the record."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rankreg_ext": rankreg_ext.__version__,
        "platform": platform.platform(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": default_workers(),
        "workers": workers,
        "backend": backend,
        "show_config": rankreg_ext.show_config().splitlines(),
    }


def plot(out: Path, positives: Tensor, scores: dict[str, list[Tensor]]) -> None:
    """Both pictures, if matplotlib is there."""
    if find_spec("matplotlib") is None:
        print("no pictures: matplotlib is not installed (pip install matplotlib)")
        return
    from . import plots

    write_atomically(out / "roc.png", plots.roc_figure(scores, positives, ARMS, TPRS))
    write_atomically(out / "landscape.png", plots.landscape_figure())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.experiments.demo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    out, cores = Path("runs/demo"), default_workers()
    parser.add_argument("--out", type=Path, default=out, help="folder to write to (%(default)s)")
    parser.add_argument("--seeds", type=int, default=6, help="number of seeds (%(default)s)")
    parser.add_argument("--workers", type=int, default=cores, help="processes (one per core)")
    parser.add_argument("--fresh", action="store_true", help="forget what is done and start anew")
    parser.add_argument("--no-plots", action="store_true", help="write no pictures")
    quick = parser.add_argument_group("for quick trials, whose numbers mean nothing")
    quick.add_argument("--epochs", type=int, default=BASE.epochs, help="(%(default)s)")
    quick.add_argument("--width", type=int, default=BASE.width, help="of the network (%(default)s)")
    quick.add_argument("--limit", type=int, default=1, help="use every LIMIT-th image only")
    args = parser.parse_args(arguments)
    for name in ("seeds", "workers", "epochs", "width", "limit"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def run(args: argparse.Namespace) -> None:
    """Train what is not yet trained, then evaluate, print and save."""
    start = time.perf_counter()
    backend, about_backend = ranking_backend()
    size = {"epochs": args.epochs, "width": args.width, "limit": args.limit}
    arms = {"bce": replace(BASE, **size), "rankreg": replace(RANKREG, **size)}
    seeds = list(range(args.seeds))
    jobs = [
        Job(f"{arm}-seed{seed}", settings, seed, backend)
        for seed in seeds
        for arm, settings in arms.items()
    ]
    data = dataset.load(limit=args.limit)
    print(
        f"Fashion-MNIST: {int(data.train.positives.sum())} shirts among "
        f"{int((~data.train.positives).sum()):,} T-shirts; {len(seeds)} seeds x {len(arms)} losses "
        f"x {args.epochs} epochs on {args.workers} processes\nranks by: {about_backend}",
        flush=True,
    )
    if args.fresh:
        clear(args.out / "checkpoints")
    states = run_all(jobs, args.out / "checkpoints", args.workers)

    by_arm = {arm: states[k :: len(arms)] for k, arm in enumerate(arms)}
    splits = {"validation": data.validation.positives, "test": data.test.positives}
    per_seed = {
        split: {arm: [metrics(s["result"][split], positives) for s in by_arm[arm]] for arm in arms}
        for split, positives in splits.items()
    }
    summary = summarise(per_seed["test"])
    text = table(summary, seeds)
    if not args.no_plots:
        scores = {arm: [state["result"]["test"] for state in by_arm[arm]] for arm in arms}
        plot(args.out, data.test.positives, scores)
    write_atomically(args.out / "table.md", (text + "\n").encode())
    write_json(
        args.out / "results.json",
        {
            "settings": {arm: asdict(settings) for arm, settings in arms.items()},
            "seeds": seeds,
            "images_sha256": dataset.SUBSET_SHA256,
            "unit": "percent",
            "summary": summary,
            "per_seed": per_seed,
            # Below, what differs from run to run.
            "environment": environment(about_backend, args.workers),
            "timing": {
                "this_call_seconds": round(time.perf_counter() - start, 1),
                "training_seconds": {
                    job.name: round(state["seconds"], 1)
                    for job, state in zip(jobs, states, strict=True)
                },
            },
        },
    )
    print(
        f"\n{text}\n\n"
        "FPR@b: false positives at the highest threshold that finds b % of the shirts (lower is\n"
        "better); AUC: higher is better. A difference is BCE + RankReg minus BCE.\n"
        f"ranks by: {about_backend}\nresults in {args.out}/"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; the exit status."""
    args = parse(arguments)
    try:
        with exclusive(args.out):
            run(args)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here; --fresh starts anew.")
        return 130
    except (BusyError, CorruptDataError, UnusableBackendError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
