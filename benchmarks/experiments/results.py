"""Runs spread over processes, and the two files that each leaves: figures as JSON, and logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .checkpoint import write_atomically, write_json
from .config import Config
from .demo import environment, ranking_backend
from .pool import run_all
from .runs import Job, device_name, packed

FORMAT = 1
LOGITS = ("validation_scores", "validation_targets", "test_scores", "test_targets")


def run(configs: Sequence[Config], out: Path, workers: int, device: str = "cpu") -> None:
    """Do all runs that are not done, each with its two files in ``out`` as soon as it ends.

    Raises:
        DataError: if a data set cannot be read.
        WorkerError: if a process fails.
    """
    backend, about_backend = ranking_backend() if device == "cpu" else ("auto", "auto")
    print(f"{len(configs)} runs, {workers} side by side on {device_name(device)}, {about_backend}")
    record = environment(about_backend, workers)
    record["device"] = device_name(device)

    def done(job: Job, state: dict[str, Any]) -> None:
        save(job, state, record, out)

    jobs = [Job(config, backend, device) for config in configs]
    run_all(jobs, out / "checkpoints", workers, done=done)


def save(job: Job, state: dict[str, Any], environment: dict[str, Any], out: Path) -> None:
    """Write ``NAME.json`` and ``NAME.logits.pt`` of a finished run."""
    config, result = job.config, state["result"]
    logits = {name.removesuffix("_scores"): result[name] for name in LOGITS}
    write_atomically(out / f"{config.name}.logits.pt", packed(logits))
    write_json(
        out / f"{config.name}.json",
        {
            "format": FORMAT,
            "setting": config.setting,
            "loss": config.loss,
            "method": config.label,
            "seed": config.seed,
            "config": asdict(config),
            "fingerprint": job.fingerprint(),
            "environment": environment,
            "epochs": result["log"],
            "best_epoch": result["best_epoch"],
            "validation": result["validation"],
            "test": result["test"],
            "test_last": result["test_last"],
            "seconds": state["seconds"],
        },
    )


def load_logits(path: Path) -> dict[str, torch.Tensor]:
    """What :func:`save` wrote beside the JSON."""
    return torch.load(path, weights_only=True)
