"""The grids that weights are rounded to, and rounded weights as packed matrices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.formats import FORMATS, GROUP, NORMAL4, Parts

__all__ = ["GRIDS", "MIXED", "Grid", "Rounded", "fits", "pack_rounded"]

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

HALVES, MULTIPLES, ZERO_POINT = "halves", "multiples", "zero_point"  # as in quantizer/rounding.h
LARGEST_ZERO = 15
MANY = 1 << 24  # groups: more than a row has
LARGEST_SCALE = 127  # of two-level scales and mins, in units of d and dmin
LARGEST_LIFTED = 63  # the same where a bit of the scale's byte says which table


@dataclass(frozen=True)
class Grid:
    """A weight is scale * (code - zero) + min, a scale and a min for so many columns of a row; or
    scale * (values[code] + lift), where each group has a lift or 0.

    Attributes
    ----------
    low, high : int
        Least and largest code - zero.
    zero : int
    has_min : bool
    columns : int
    stored : str
        HALVES: scales and mins are float16. MULTIPLES: whole numbers times d and -dmin, float16
        that 256 columns share, or a row. ZERO_POINT: a min is a whole number times -scale.
    values : tuple of int
        What codes stand for, ascending; empty: themselves, less `zero`.
    lift : int
    whole_rows : bool
        Whether a row shares d.
    """

    low: int
    high: int
    zero: int
    has_min: bool
    columns: int = GROUP
    stored: str = HALVES
    values: tuple[int, ...] = ()
    lift: int = 0
    whole_rows: bool = False

    @cached_property
    def groups(self) -> _native.Groups:
        """The same, as the native functions take it."""
        least, most = 0, LARGEST_ZERO
        if self.stored == MULTIPLES:
            most = self.largest_scale
            least = 0 if self.has_min else -most
        return _native.Groups(
            columns=self.columns,
            low=self.low,
            high=self.high,
            zero=self.zero,
            has_min=self.has_min,
            stored=self.stored,
            scale_low=least,
            scale_high=most,
            per_unit=self.per_unit(MANY) if self.stored == MULTIPLES else 1,
            values=self.values,
            lift=self.lift,
        )

    @property
    def largest_scale(self) -> int:
        """Of scales in units of d."""
        return LARGEST_LIFTED if self.lift else LARGEST_SCALE

    def per_unit(self, groups: int) -> int:
        """Groups that share a d and dmin, in rows of `groups`."""
        return groups if self.whole_rows else 8 * GROUP // self.columns


def _normal(stored: str, lift: int = 0, whole_rows: bool = False) -> Grid:
    """The grid of a format whose codes are places of `NORMAL4`."""
    low, high = NORMAL4[0], NORMAL4[-1]
    return Grid(low, high, -low, False, GROUP, stored, NORMAL4, lift, whole_rows)


GRIDS = {
    "q2k": Grid(0, 3, 0, True, 16, MULTIPLES),
    "q4g128s": Grid(-8, 7, 8, False, 128),
    "q4g64s": Grid(-8, 7, 8, False, 64),
    "q4g128z": Grid(0, 15, 0, True, 128, ZERO_POINT),
    "n4g32": _normal(MULTIPLES, 4, whole_rows=True),
    "n4k": _normal(MULTIPLES, 4),
    "q4g32s": Grid(-8, 7, 8, False),
    "n4g32s": _normal(HALVES),
    "q4g64z": Grid(0, 15, 0, True, 64, ZERO_POINT),
    "q4k": Grid(0, 15, 0, True, GROUP, MULTIPLES),
    "q4g32a": Grid(0, 15, 0, True),
    "q5g32s": Grid(-16, 15, 16, False),
    "q5k": Grid(0, 31, 0, True, GROUP, MULTIPLES),
    "q5g32a": Grid(0, 31, 0, True),
    "q6g32s": Grid(-32, 31, 32, False),
    "q6k": Grid(-32, 31, 32, False, 16, MULTIPLES),
    "q8g32s": Grid(-127, 127, 128, False),
}

# What a mix takes its formats from.
MIXED = (
    *("q4g64s", "n4g32", "q4g32s", "q4g64z", "q4k", "q4g32a", "q5g32s", "q5k", "q5g32a"),
    *("q6g32s", "q6k", "q8g32s"),
)


def fits(fmt: str, k: int) -> bool:
    """Whether rows of k columns can have a format."""
    return k % FORMATS[fmt].columns == 0


@dataclass(frozen=True)
class Rounded:
    """A matrix on a grid.

    Attributes
    ----------
    format : str
    codes : uint8[n, k]
    scales, mins : float32[n, groups]
        On grids with values, mins are what is added to those of a group.
    units : _native.Units, optional
        What groups share: d and dmin, float32[n, k / 256].
    """

    format: str
    codes: U8
    scales: F32
    mins: F32
    units: _native.Units | None = None

    def values(self) -> F32:
        """The weights that kernels see: float32[n, k]."""
        grid = GRIDS[self.format]
        k = self.codes.shape[1]
        scales = np.repeat(self.scales, grid.columns, axis=1)[:, :k]
        if grid.values:
            lifts = np.repeat(self.mins, grid.columns, axis=1)[:, :k]
            lifted: F32 = scales * (np.array(grid.values, np.float32)[self.codes] + lifts)
            return lifted
        values: F32 = scales * (self.codes.astype(np.float32) - np.float32(grid.zero))
        if grid.has_min:
            values += np.repeat(self.mins, grid.columns, axis=1)[:, :k]
        return values

    def parts(self) -> Parts:
        """What is stored."""
        grid = GRIDS[self.format]
        if self.units is not None:
            d, dmin = self.units.d, self.units.dmin
            per_unit = grid.per_unit(self.scales.shape[1])
            scales = _times(self.scales, np.repeat(d, per_unit, axis=1)).astype(np.int8)
            if grid.lift:
                scales = 2 * scales + (self.mins != 0)
            if not grid.has_min:
                return Parts(self.codes, scales, None, d.astype(np.float16))
            lows = _times(-self.mins, np.repeat(dmin, per_unit, axis=1)).astype(np.int8)
            return Parts(self.codes, scales, lows, d.astype(np.float16), dmin.astype(np.float16))
        mins: npt.NDArray[np.uint8] | npt.NDArray[np.float16] | None = None
        if grid.stored == ZERO_POINT:
            mins = _times(-self.mins, self.scales).astype(np.uint8)
        elif grid.has_min:
            mins = self.mins.astype(np.float16)
        return Parts(self.codes, self.scales.astype(np.float16), mins)


def _times(values: F32, unit: F32) -> F32:
    """Whole numbers: values over their unit, 0 where that is 0."""
    some = unit != 0
    result: F32 = np.rint(np.where(some, values, 0) / np.where(some, unit, 1))
    return result


def pack_rounded(rounded: Rounded, threads: int = 1) -> _native.Matrix:
    """The matrix as its kernels read it."""
    n, k = rounded.codes.shape
    p = rounded.parts()
    return _native.Matrix.from_parts(
        rounded.format, n, k, p.codes, p.scales, p.mins, p.d, p.dmin, None, None, threads
    )
