"""Files that survive ``kill -9``: written beside, flushed to disk, then renamed into place."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

PARTIAL = ".partial"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; a crash leaves the old or the new file, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    with contextlib.suppress(OSError):  # not every system lets a folder be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def fingerprint(facts: dict[str, Any]) -> str:
    """A digest of everything that decides a run's numbers; equal facts, equal digest."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Checkpoint:
    """The last state of one run, in one file that is bound to a fingerprint.

    Args:
        path: of the file.
        fingerprint: a file with another one is never used.
        report: called with one line of text when the file is there but cannot be used.
    """

    def __init__(self, path: Path, fingerprint: str, report: Callable[[str], None] = print) -> None:
        self.path, self.fingerprint, self._report = path, fingerprint, report

    def save(self, state: dict[str, Any]) -> None:
        """Replace the last state."""
        buffer = io.BytesIO()
        torch.save({"fingerprint": self.fingerprint, "state": state}, buffer)
        write_atomically(self.path, buffer.getvalue())

    def load(self) -> dict[str, Any] | None:
        """The last state, or None if there is none that fits."""
        if not self.path.exists():
            return None
        try:
            found = torch.load(self.path, weights_only=True)
            theirs, state = found["fingerprint"], found["state"]
        except Exception as error:  # whatever a damaged file makes torch.load raise
            self._report(f"ignoring {self.path.name}: unreadable ({type(error).__name__})")
            return None
        if theirs != self.fingerprint:
            self._report(f"ignoring {self.path.name}: made with other settings or versions")
            return None
        return state


def clear(folder: Path, *, only_partial: bool = False) -> None:
    """Delete the checkpoints in ``folder``, or only what interrupted writes left behind."""
    for path in folder.glob(f"*{PARTIAL}" if only_partial else "*.pt*"):
        path.unlink(missing_ok=True)


class BusyError(RuntimeError):
    """Another process writes to the same folder."""


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; the system lets go of it even after ``kill -9``.

    Raises:
        BusyError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: no lock, and no check
        yield
        return
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError(f"another run is writing to {folder}") from error
        yield
