"""A progress display: one line that is rewritten on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

LINES_APART = 10.0  # seconds, when the output is no terminal
BAR = 24  # characters


class Progress:
    """How much of the work is done, and how long the rest will take.

    Args:
        total: steps of work altogether.
        done: steps that an earlier, interrupted call has done; they do not count for the speed.
    """

    def __init__(self, total: int, done: int = 0, stream: TextIO | None = None) -> None:
        self._total, self._before, self._done = total, done, done
        self._stream = stream or sys.stdout
        self._rewrite = self._stream.isatty()
        self._start, self._last_line = time.monotonic(), float("-inf")

    def advance(self, steps: int, message: str) -> None:
        """Count ``steps`` more and show ``message`` beside the bar."""
        self._done += steps
        self._show(message)

    def note(self, text: str) -> None:
        """A line that stays."""
        print(f"\r\x1b[K{text}" if self._rewrite else text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the line as it stands."""
        if self._rewrite:
            print(file=self._stream, flush=True)

    def _show(self, message: str) -> None:
        now = time.monotonic()
        elapsed, fresh = now - self._start, self._done - self._before
        left = elapsed / fresh * (self._total - self._done) if fresh else float("nan")
        filled = BAR * self._done // self._total
        text = (
            f"[{'#' * filled}{'.' * (BAR - filled)}] {self._done:>4}/{self._total}  "
            f"{_clock(elapsed)} gone, {_clock(left)} left  {message}"
        )
        if self._rewrite:
            print(f"\r\x1b[K{text}", end="", file=self._stream, flush=True)
        elif now - self._last_line >= LINES_APART or self._done == self._total:
            self._last_line = now
            print(text, file=self._stream, flush=True)


def _clock(seconds: float) -> str:
    if seconds != seconds:
        return "--:--"
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"
