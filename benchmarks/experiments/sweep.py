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


def _rankreg(base: Config) -> list[Config]:
    """What the lists need, and how far and how hard to push; beside the same lists without it."""
    term = replace(
        base, method="rankreg", projection="spread", lam=3.0, alpha=1.0, extra_positives=8
    )
    return [
        base,
        replace(base, positives_per_batch=4),
        replace(base, positives_per_batch=8),
        *(replace(term, lam=lam, alpha=alpha) for lam in (1.0, 3.0, 10.0) for alpha in ALPHAS),
        replace(term, extra_positives=0),
        replace(term, extra_positives=24),
        replace(term, extra_positives=0, positives_per_batch=8),
        replace(term, remembered=256),
        replace(term, power=1),
        replace(term, power=4),
        replace(term, start=0.3),
        replace(term, gradient="two_sided"),
        replace(term, gradient="identity", projection="standardize"),
        replace(term, projection="standardize"),
    ]


ALPHAS = (0.3, 1.0, 3.0)
SWEEPS: dict[str, tuple[str, Callable[[Config], list[Config]]]] = {
    "schedule": ("learning rate and schedule of the base loss", _schedule),
    "rankreg": ("RankReg: lists, lam, alpha, and its variants", _rankreg),
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
    question, grid = SWEEPS[name]
    setting, loss = overrides.pop("setting", "cifar10-100"), overrides.pop("loss", "bce")
    candidates = grid(configure(setting, loss, "base", preset=preset, **overrides))
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
