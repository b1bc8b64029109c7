"""Typed handles on the buffers of a recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import slmq._native as _native


class _Buffer:
    """Owns a buffer of a recording while later steps may read it."""

    def __init__(self, recording: _native.Recording, number: int) -> None:
        self.recording = recording
        self.number = number

    def __del__(self) -> None:
        self.recording.release(self.number)


class Handle:
    """A value of the recording: float32[rows, width]. It has no numbers yet.

    Parameters
    ----------
    buffer : _Buffer
        The native buffer that steps write.
    offset, width : int
        The columns of the buffer that this value has.
    """

    def __init__(
        self, buffer: _Buffer, offset: int, width: int, parts: tuple[tuple[int, int], ...] = ()
    ) -> None:
        self._buffer = buffer
        self.offset = offset
        self.width = width
        self._parts = parts
        self._quantized: dict[bool, _Buffer] = {}  # by whether a row has one scale
        self._gathered: dict[bytes, Handle] = {}

    def split(self) -> tuple[Handle, ...]:
        """The results of a linear step over several weights, one handle each."""
        if not self._parts:
            raise ValueError("split() needs the result of a linear step over several weights")
        return tuple(Handle(self._buffer, offset, width) for offset, width in self._parts)

    def columns(self, first: int, width: int) -> Handle:
        """Some neighbouring columns of it: whole groups of 32, or up to the end."""
        if not 0 <= first < first + width <= self.width:
            raise ValueError(
                f"expected columns within 0..{self.width}, got {width} from {first} on"
            )
        return Handle(self._buffer, self.offset + first, width)

    @property
    def slice(self) -> tuple[int, int, int]:
        """Buffer number, first column, columns."""
        return self._buffer.number, self.offset, self.width

    def _no_value(self) -> NoReturn:
        raise TypeError(
            "a handle of a recording has no value yet: forward() must be straight-line "
            "code; after a run, RecordedPlan.values(step) reads a step's values"
        )

    def __bool__(self) -> bool:  # noqa: PLE0304 (raises)
        self._no_value()

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self._no_value()

    def __iter__(self) -> NoReturn:
        self._no_value()

    def __repr__(self) -> str:
        return f"Handle(float32[rows, {self.width}], buffer {self._buffer.number})"


@dataclass(frozen=True)
class Rope:
    """Rotation angles of every row: a handle that attention takes."""

    handle: Handle
    rotary: int
