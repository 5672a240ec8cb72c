"""Training runs spread over processes, each resumable and each on one thread.

One thread per run makes the numbers independent of how many processes there are, and two small
networks side by side train faster than one on two threads.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import torch

import rankreg_ext

from .checkpoint import Checkpoint, clear
from .progress import Progress


class Training(Protocol):
    """What a job starts: training that can stop after any epoch."""

    epoch: int

    @property
    def finished(self) -> bool: ...
    def train_epoch(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def result(self) -> dict[str, Any]:
        """What is kept of it at the end."""


class Job(Protocol):
    """One training run to do; sent to a worker process, so it is picklable.

    Attributes:
        name: of its checkpoint, and in the progress display.
        epochs: at most.
        backend: the back-end that ranks, a name for :func:`rankreg_ext.use_backend`.
    """

    name: str
    epochs: int
    backend: str

    def fingerprint(self) -> str:
        """What a checkpoint of this job is bound to."""

    def start(self) -> Training:
        """The training at its start, in a worker process."""


class WorkerError(RuntimeError):
    """A training process failed; its own traceback is on stderr."""


def default_workers() -> int:
    """The number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    jobs: Sequence[Job],
    folder: Path,
    workers: int,
    report: Callable[[str], None] = print,
    done: Callable[[Job, dict[str, Any]], None] = lambda job, state: None,
) -> list[dict[str, Any]]:
    """Do all jobs, going on from their checkpoints in ``folder``.

    Args:
        jobs: with unique names; the order is the order of work.
        folder: of the checkpoints. The caller holds it (:func:`checkpoint.exclusive`).
        workers: processes side by side.
        report: called with lines of text.
        done: called with each job that is finished, as soon as it is, and its final state.

    Returns:
        Each job's final state: what its training's ``result()`` was, and ``seconds``, the time
        spent on it.

    Raises:
        WorkerError: if a process fails.
    """
    clear(folder, only_partial=True)
    checkpoints = [Checkpoint(folder / f"{j.name}.pt", j.fingerprint(), report) for j in jobs]
    states = [checkpoint.load() for checkpoint in checkpoints]
    epochs = [state["epoch"] if state else 0 for state in states]
    waiting = [i for i, state in enumerate(states) if not state or "result" not in state]
    total = sum(job.epochs for job in jobs)
    if any(epochs):
        report(f"resuming: {sum(epochs)} of {total} epochs are done already")
    for job, state in zip(jobs, states, strict=True):
        if state and "result" in state:
            done(job, state)
    if not waiting:
        return states

    progress = Progress(total, sum(epochs))
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    crew, at_work_on = {}, {}

    def hand_out(connection: Connection) -> None:
        if waiting:
            at_work_on[connection] = waiting.pop(0)
            connection.send(jobs[at_work_on[connection]])
        else:
            connection.send(None)
            crew.pop(connection).join()

    try:
        for _ in range(min(workers, len(waiting))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, folder), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            crew[ours] = process
            hand_out(ours)
        while crew:
            for connection in wait(list(crew)):
                job = at_work_on[connection]
                try:
                    epoch = connection.recv()
                except EOFError:
                    process = crew.pop(connection)
                    process.join()
                    raise WorkerError(
                        f"training {jobs[job].name} ended with exit code {process.exitcode}"
                    ) from None
                if epoch is not None:
                    progress.advance(epoch - epochs[job], f"{jobs[job].name}, epoch {epoch}")
                    epochs[job] = epoch
                else:
                    progress.advance(jobs[job].epochs - epochs[job], f"{jobs[job].name}, done")
                    states[job] = checkpoints[job].load()
                    done(jobs[job], states[job])
                    hand_out(connection)
    finally:
        progress.close()
        for process in crew.values():
            process.terminate()
    return states


def _work(connection: Connection, folder: Path) -> None:
    """What a worker process does: jobs from the pipe until None comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    while (job := connection.recv()) is not None:
        with rankreg_ext.use_backend(job.backend):
            _do(job, folder, connection)


def _do(job: Job, folder: Path, connection: Connection) -> None:
    checkpoint = Checkpoint(folder / f"{job.name}.pt", job.fingerprint(), lambda _: None)
    run, seconds = job.start(), 0.0
    state = checkpoint.load()
    if state:
        run.load_state_dict(state["run"])
        seconds = state["seconds"]
    while not run.finished:
        start = time.perf_counter()
        run.train_epoch()
        seconds += time.perf_counter() - start
        state = {"epoch": run.epoch, "seconds": seconds}
        if run.finished:
            state["result"] = run.result()
        else:
            state["run"] = run.state_dict()
        checkpoint.save(state)
        connection.send(run.epoch)
    connection.send(None)


def _die_with_parent() -> None:
    """End this process when its parent has ended, even by ``kill -9``."""
    multiprocessing.parent_process().join()
    os._exit(1)
