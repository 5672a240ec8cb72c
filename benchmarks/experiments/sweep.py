"""How settings were chosen: grids of settings, judged on validation images only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .checkpoint import write_json
from .config import Config, configure
from .demo import mean, ranking_backend, std
from .pool import run_all
from .runs import Job

OBJECTIVE = ("FPR@98", "FPR@95", "FPR@92")


def _schedule(base: Config) -> list[Config]:
    return [
        replace(base, learning_rate=rate, schedule=schedule)
        for schedule in ("constant", "cosine")
        for rate in (0.01, 0.03, 0.1)
    ]


SWEEPS: dict[str, tuple[str, str, Callable[[Config], list[Config]]]] = {
    "schedule": ("learning rate and schedule of the base loss", "base", _schedule),
}


def run(
    name: str,
    out: Path,
    workers: int,
    device: str,
    preset: str,
    seeds: list[int],
    overrides: dict[str, Any],
) -> None:
    """Run a sweep; writes ``NAME.json``."""
    question, method, grid = SWEEPS[name]
    setting, loss = overrides.pop("setting", "cifar10-100"), overrides.pop("loss", "bce")
    candidates = grid(configure(setting, loss, method, preset=preset, **overrides))
    backend, _ = ranking_backend() if device == "cpu" else ("auto", "")
    jobs = [
        Job(replace(config, seed=seed), backend, device) for seed in seeds for config in candidates
    ]
    states = run_all(jobs, out / "checkpoints", workers)
    rows = []
    for k, config in enumerate(candidates):
        of_seed = [state["result"] for state in states[k :: len(candidates)]]
        per_seed = [result["validation"] for result in of_seed]
        columns = {metric: [values[metric] for values in per_seed] for metric in per_seed[0]}
        rows.append(
            {
                "settings": asdict(config),
                "objective": mean([mean(columns[metric]) for metric in OBJECTIVE]),
                "mean": {metric: mean(column) for metric, column in columns.items()},
                "std": {metric: std(column) for metric, column in columns.items()},
                "per_seed": per_seed,
                "last": [result["log"][-1]["validation"] for result in of_seed],
            }
        )
    write_json(out / f"{name}.json", {"question": question, "seeds": seeds, "rows": rows})
    for row in sorted(rows, key=lambda row: row["objective"]):
        s = row["settings"]
        print(
            f"{row['objective']:6.2f}",
            {k: round(v, 1) for k, v in row["mean"].items()},
            {k: s[k] for k in ("learning_rate", "schedule", "alpha", "lam")},
        )
