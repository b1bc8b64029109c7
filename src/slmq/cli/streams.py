"""The standard streams of a command, which need not be there: services, cron, ``2>&-``, pythonw."""

from __future__ import annotations

import io
import os
import sys
from typing import BinaryIO, NoReturn

__all__ = ["open_streams"]


def open_streams() -> None:
    """Make the standard streams usable, or fail with a sentence where they are used.

    Descriptors that are closed lead nowhere from now on: the next file to be opened, a model
    perhaps, would else become the standard output of whoever writes there. Text that a terminal
    cannot show must not end an answer half-way.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _lead_nowhere(number)
    if sys.stdin is None:
        sys.stdin = _Closed("stdin")
    if sys.stdout is None:
        sys.stdout = _Closed("stdout")
    if sys.stderr is None:  # notes and bars: nobody reads them
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _lead_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


class _Closed(io.TextIOBase):
    """A stream that says what is wrong with it as soon as it is needed."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def buffer(self) -> BinaryIO:
        self._fail()

    def write(self, text: str, /) -> int:
        self._fail()

    def read(self, size: int | None = -1, /) -> str:
        self._fail()

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        self._fail()

    def _fail(self) -> NoReturn:
        doing = "read" if self._name == "stdin" else "write to"
        raise OSError(f"cannot {doing} {self._name}: it is closed")
