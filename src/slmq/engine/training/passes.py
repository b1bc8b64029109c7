"""What one piece of a batch computes on its way forward and back: values, and their gradients."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.formats import padded

__all__ = ["Arena", "Pass", "Piece"]

# Arrays of a width are made a few at a time: memory of at least 4 MB has large pages, and rows that
# lie in small ones are read more slowly.
BYTES_AT_ONCE = 6 << 20
MOST_AT_ONCE = 16

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Piece:
    """Some texts behind each other, as a model takes them: a part of a batch.

    Attributes
    ----------
    tokens : int32[rows]
    starts : int32[texts + 1]
        Text i has rows starts[i] to starts[i + 1].
    rows : int32[targets]
        The rows whose next token counts.
    targets : int32[targets]
        Those tokens.
    """

    tokens: I32
    starts: I32
    rows: I32
    targets: I32

    @cached_property
    def longest(self) -> int:
        """Rows of the longest text."""
        return int(np.diff(self.starts).max())


class Arena:
    """Rows of float32 that are used again and again.

    An array has room for `rows` rows of a width; a few are made at a time. What is behind the
    width, up to a multiple of 32, is zero when an array is made, and every operator leaves it so:
    arrays of one width may take each other's place, and no others.

    Attributes
    ----------
    nbytes : int
        Of all arrays that were ever made.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.nbytes = 0
        self._free: dict[int, list[F32]] = defaultdict(list)

    def take(self, width: int) -> F32:
        """An array with whatever numbers are in it."""
        free = self._free[width]
        if not free:
            count = max(1, min(MOST_AT_ONCE, BYTES_AT_ONCE // (4 * self.rows * padded(width, 32))))
            made = _native.zero_rows(self.rows * count, width)
            self.nbytes += made.nbytes
            free.extend(np.split(made, count))
        return free.pop()

    def give(self, width: int, array: F32) -> None:
        """Take back what `take` has given."""
        self._free[width].append(array)


class Pass:
    """Values and gradients of one piece, by number.

    Parameters
    ----------
    operators : _native.Operators
    arena : Arena
    piece : Piece
    widths : list of int
        Of every value.
    """

    def __init__(
        self, operators: _native.Operators, arena: Arena, piece: Piece, widths: list[int]
    ) -> None:
        self.operators = operators
        self.piece = piece
        self._arena = arena
        self._widths = widths
        self._values: dict[int, tuple[F32, int]] = {}
        self._slopes: dict[int, tuple[F32, int]] = {}

    def has(self, number: int) -> bool:
        """Whether this value is there."""
        return number in self._values

    def value(self, number: int) -> F32:
        """A value that is there."""
        array, rows = self._values[number]
        return array[:rows]

    def make(self, number: int, rows: int) -> F32:
        """Room for a value; what was there may be in it."""
        if number not in self._values:
            self._values[number] = self._arena.take(self._widths[number]), rows
        return self.value(number)

    def drop(self, number: int) -> None:
        """Forget a value, if it is there."""
        if number in self._values:
            self._arena.give(self._widths[number], self._values.pop(number)[0])

    def slope(self, number: int, rows: int) -> tuple[F32, bool]:
        """The gradient of a value, and whether something is in it to be added to."""
        found = number in self._slopes
        if not found:
            self._slopes[number] = self._arena.take(self._widths[number]), rows
        array, rows = self._slopes[number]
        return array[:rows], found

    def zeroed_slope(self, number: int, rows: int) -> F32:
        """The gradient of a value, to be added to."""
        array, found = self.slope(number, rows)
        if not found:
            self.operators.zero(array)
        return array

    def final_slope(self, number: int) -> F32:
        """The gradient of a value of which nothing more is added."""
        array, rows = self._slopes[number]
        return array[:rows]

    def end_slope(self, number: int, to: int | None = None) -> None:
        """Forget a gradient, or add it to that of another value of its width."""
        array, rows = self._slopes.pop(number)
        if to is not None and to not in self._slopes:
            self._slopes[to] = array, rows
            return
        if to is not None:
            self.operators.add(array[:rows], self._slopes[to][0][:rows])
        self._arena.give(self._widths[number], array)

    def spare(self, width: int, rows: int) -> tuple[F32, F32]:
        """Room for something in between: the rows, and what `Arena.give` wants back."""
        array = self._arena.take(width)
        return array[:rows], array

    def give(self, width: int, array: F32) -> None:
        """Give back what `spare` gave."""
        self._arena.give(width, array)

    def close(self) -> None:
        """Give everything back."""
        for number in list(self._values):
            self.drop(number)
        for number, (array, _) in self._slopes.items():
            self._arena.give(self._widths[number], array)
        self._slopes.clear()
