"""Progress in Python sessions: one line on stderr that is written over, in notebooks, too."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["LineBar", "Report", "prompt_bar", "reported", "visible"]

Report = Callable[[int, "int | None"], None]
PAUSE_S = 0.1  # between two writes: notebooks keep every one
WIDTH = 20


def visible() -> bool:
    """Whether stderr shows a line that is written over: a terminal, or a cell of a notebook."""
    notebook = type(sys.stderr).__module__.partition(".")[0] == "ipykernel"
    return sys.stderr is not None and (notebook or sys.stderr.isatty())


class LineBar:
    """A bar on stderr, without a trace at its end; a `slmq.hub.Progress`, too.

    Parameters
    ----------
    unit : {"count", "bytes"}
    """

    def __init__(self, unit: str = "count") -> None:
        self._unit = unit
        self._label = ""
        self._began_s = self._written_s = 0.0
        self._width = 0  # of what is on the line

    def update(self, label: str, done: int, total: int | None) -> None:
        """`done` of `total` of the job `label`; a new label is a new job."""
        now_s = time.monotonic()
        if label != self._label:
            self._label, self._began_s = label, now_s
        elif now_s - self._written_s < PAUSE_S:
            return
        self._written_s = now_s
        self._write(" ".join([label, *self._parts(done, total, now_s - self._began_s)]))

    def message(self, text: str) -> None:
        """A line that stays."""
        self.close()
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Remove the bar."""
        if self._width:
            self._write("")
            sys.stderr.write("\r")
            sys.stderr.flush()
        self._label = ""

    def _parts(self, done: int, total: int | None, spent_s: float) -> list[str]:
        parts = []
        if total:
            full = min(WIDTH, WIDTH * done // total)
            parts += ["|" + "#" * full + " " * (WIDTH - full) + "|", f"{100 * done // total} %"]
        if self._unit == "bytes" and done:
            parts.append(f"{done / 1e6:.1f} MB" + (f" of {total / 1e6:.1f} MB" if total else ""))
        elif total:
            parts.append(f"{done:,} of {total:,}")
        elif done:
            parts.append(f"{done:,}")
        if total and 0 < done < total and spent_s > 1:
            parts.append(f"{spent_s / done * (total - done):.0f} s left")
        return parts

    def _write(self, line: str) -> None:
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()
        self._width = len(line)


@contextmanager
def reported(progress: bool | Report | None, label: str) -> Iterator[Report]:
    """A function to report to: the caller's own, a bar for True where one can be seen, or none."""
    if callable(progress):
        yield progress
        return
    if not progress or not visible():
        yield lambda _done, _total: None
        return
    bar = LineBar()
    try:
        yield lambda done, total: bar.update(label, done, total)
    finally:
        bar.close()


def prompt_bar() -> Callable[[int, int], None] | None:
    """What shows how far a prompt was read, and goes when it is; None where nobody would see it."""
    if not visible():
        return None
    bar = LineBar()

    def report(done: int, total: int) -> None:
        if done < total:
            bar.update("reading the prompt", done, total)
        else:
            bar.close()

    return report
