"""Where output goes: answers and data to stdout, everything else to stderr.

Bars and spinners appear only when stderr is a terminal, and leave no trace.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID
    from typing_extensions import Self

    from slmq.generation.stream import TokenStream
    from slmq.generation.turn import ToolTurn

__all__ = [
    "Bar",
    "Downloads",
    "cancel_on_interrupt",
    "note",
    "print_json",
    "print_table",
    "spinner",
    "write",
]


WIDE = 1000


def write(text: str) -> None:
    """Text to stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def note(text: str) -> None:
    """A line for people, to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_json(data: Any) -> None:
    """Data for programs, to stdout; characters that its encoding lacks are escaped."""
    text = laid_out(data, ascii_only=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = laid_out(data, ascii_only=True)
    write(text + "\n")


def laid_out(data: Any, *, ascii_only: bool, indent: str = "") -> str:
    """JSON for people, too: an entry a line, but lists of plain values on one."""
    inner = indent + "  "

    def below(value: Any) -> str:
        return laid_out(value, ascii_only=ascii_only, indent=inner)

    if isinstance(data, dict) and data:
        parts = [f"{json.dumps(key, ensure_ascii=ascii_only)}: {below(data[key])}" for key in data]
        brackets = "{}"
    elif isinstance(data, (list, tuple)) and any(isinstance(i, (dict, list, tuple)) for i in data):
        parts, brackets = [below(item) for item in data], "[]"
    else:
        return json.dumps(data, ensure_ascii=ascii_only, allow_nan=False)
    lines = ",\n".join(inner + part for part in parts)
    return f"{brackets[0]}\n{lines}\n{indent}{brackets[1]}"


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table to stdout; headers that end in ">" are of columns flushed right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(
            header.rstrip(">"),
            justify="right" if header.endswith(">") else "left",
            no_wrap=header != headers[-1],
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row)
    # Other programs get every row on one line.
    width = None if sys.stdout.isatty() else WIDE
    Console(width=width, highlight=False, markup=False).print(table)


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Shows that something is under way."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


class Bar:
    """A progress bar on stderr while its block runs; nothing where stderr is no terminal.

    Parameters
    ----------
    unit : {"count", "bytes"}
        How numbers are written.

    Attributes
    ----------
    reached : str
        How far the job has come, in words; "" before it begins.
    """

    def __init__(self, unit: str = "count") -> None:
        self._unit = unit
        self._shown: RichProgress | None = None
        self._task: TaskID | None = None
        self._label = ""
        self.reached = ""

    def update(self, label: str, done: int, total: int | None) -> None:
        """`done` of `total` of the job `label`; a new label is a new job."""
        self.reached = label if total is None else f"{label}, {done:,} of {total:,}"
        if not sys.stderr.isatty():
            return
        if self._shown is None:
            self._shown = self._make()
            self._shown.start()
        if self._task is None or label != self._label:
            if self._task is not None and self._unit == "bytes":
                self._shown.remove_task(self._task)
                self._task = None
            self._label = label
        if self._task is None:
            self._task = self._shown.add_task(label, total=total)
        self._shown.update(self._task, description=label, completed=done, total=total)

    def close(self) -> None:
        """Removes the bar."""
        if self._shown is not None:
            self._shown.stop()
        self._shown = self._task = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _make(self) -> RichProgress:
        from rich import progress as rich_progress
        from rich.console import Console

        columns: list[rich_progress.ProgressColumn] = [
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(),
        ]
        if self._unit == "bytes":
            columns += [rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn()]
        else:
            columns.append(rich_progress.MofNCompleteColumn())
        columns.append(rich_progress.TimeRemainingColumn())
        return rich_progress.Progress(*columns, console=Console(stderr=True), transient=True)


class Downloads(Bar):
    """The `Progress` of the hub: messages are lines on stderr, bytes a bar."""

    def __init__(self) -> None:
        super().__init__("bytes")

    def message(self, text: str) -> None:
        """A line above the bar."""
        if self._shown is None:
            note(text)
        else:
            self._shown.console.print(text, markup=False, highlight=False)


@contextmanager
def cancel_on_interrupt(stream: TokenStream | ToolTurn) -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C closes the stream, which ends between two tokens or prompt chunks.

    Yields a function that tells whether that happened. A second Ctrl-C is a KeyboardInterrupt.
    """
    pressed = False
    # It may have interrupted this very thread while that holds the scheduler's lock, which another
    # thread can wait for.
    closing = threading.Thread(target=stream.close, daemon=True)

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        closing.start()

    if threading.current_thread() is not threading.main_thread():
        yield lambda: pressed
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            closing.join()  # it may hold the stream, whose result is not there before it lets go
