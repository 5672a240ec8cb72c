"""How the demo's settings were chosen: a sweep that looks at validation images only.

    nice python -m benchmarks.experiments.tune

Rule, fixed beforehand: the lowest mean, over the tuning seeds, of the average of FPR@98 and FPR@95
on the validation split. In stages, each starting from what the last one chose:

1. the base loss alone: learning rate and positives per batch, then weight decay;
2. with that fixed for both losses, RankReg's power, lam and alpha on a logarithmic grid.

The seeds differ from the demo's, and no test image is looked at. Writes ``results/tuning.json`` and
``results/tuning.md``; goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import dataset
from .checkpoint import exclusive, fingerprint, write_atomically, write_json
from .demo import METRICS, metrics, ranking_backend
from .pool import default_workers, run_all
from .summary import mean, std
from .tables import sweep_table
from .train import Job, Settings

RESULTS = Path(__file__).parent / "results"
SEEDS = (1001, 1002, 1003, 1004)
START = Settings(epochs=20)

LEARNING_RATES = (0.05, 0.1, 0.2, 0.4)
POSITIVES_PER_BATCH = (0, 1, 2, 4, 8)
WEIGHT_DECAYS = (1e-4, 5e-4, 2e-3, 5e-3)
POWERS = (1, 2)
LAMS = (1.0, 3.0, 10.0, 30.0)
ALPHAS = (0.1, 0.3, 1.0, 3.0)


class Sweep:
    """Runs settings on the tuning seeds and keeps what came out.

    Args:
        folder: of the checkpoints.
        workers: processes side by side.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.workers = folder, workers
        self.positives = dataset.load().validation.positives
        self.stages: list[dict[str, Any]] = []

    def stage(
        self, question: str, candidates: list[Settings], shown: list[Settings] | None = None
    ) -> Settings:
        """The best of the candidates; those ``shown`` are reported beside them and not chosen."""
        everything = list(dict.fromkeys([*candidates, *(shown or [])]))
        print(f"\n{question} ({len(everything)} settings x {len(SEEDS)} seeds)", flush=True)
        backend, _ = ranking_backend()
        jobs = [
            Job(f"{fingerprint(asdict(settings))[:12]}-{seed}", settings, seed, backend)
            for settings in everything
            for seed in SEEDS
        ]
        states = run_all(jobs, self.folder, self.workers)
        rows = []
        for k, settings in enumerate(everything):
            of_seed = states[k * len(SEEDS) : (k + 1) * len(SEEDS)]
            per_seed = [metrics(state["result"]["validation"], self.positives) for state in of_seed]
            columns = {name: [values[name] for values in per_seed] for name in METRICS}
            rows.append(
                {
                    "settings": asdict(settings),
                    "candidate": settings in candidates,
                    "objective": (mean(columns["FPR@98"]) + mean(columns["FPR@95"])) / 2,
                    "mean": {name: mean(column) for name, column in columns.items()},
                    "std": {name: std(column) for name, column in columns.items()},
                    "per_seed": per_seed,
                }
            )
        best = min((r for r in rows if r["candidate"]), key=lambda row: row["objective"])
        for row in rows:
            row["chosen"] = row is best
        self.stages.append({"question": question, "rows": rows})
        self.save()
        print(sweep_table(rows), flush=True)
        return Settings(**best["settings"])

    def save(self) -> None:
        """Write the results so far."""
        write_json(
            RESULTS / "tuning.json",
            {
                "rule": "lowest mean over seeds of (FPR@98 + FPR@95) / 2 on validation images",
                "seeds": SEEDS,
                "unit": "percent",
                "stages": self.stages,
            },
        )
        parts = ["# Tuning on validation images", "", *__doc__.split("\n\n", 2)[2].splitlines()]
        for stage in self.stages:
            parts += ["", f"## {stage['question']}", "", sweep_table(stage["rows"])]
        write_atomically(RESULTS / "tuning.md", ("\n".join(parts).rstrip() + "\n").encode())


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/tune"), help="of checkpoints")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes")
    args = parser.parse_args()
    with exclusive(args.folder):
        sweep = Sweep(args.folder, args.workers)
        base = sweep.stage(
            "1. Base loss: learning rate and positives per batch",
            [
                replace(START, learning_rate=rate, positives_per_batch=count)
                for rate in LEARNING_RATES
                for count in POSITIVES_PER_BATCH
            ],
        )
        base = sweep.stage(
            "1b. Base loss: weight decay",
            [replace(base, weight_decay=decay) for decay in WEIGHT_DECAYS],
        )
        best = sweep.stage(
            "2. RankReg: power, lam, alpha",
            [
                replace(base, power=power, lam=lam, alpha=alpha)
                for power in POWERS
                for lam in LAMS
                for alpha in ALPHAS
            ],
            shown=[base],
        )
    print(f"\nchosen for both:  {base}\nchosen for RankReg: {best}\nsee {RESULTS}/tuning.md")


if __name__ == "__main__":
    main()
