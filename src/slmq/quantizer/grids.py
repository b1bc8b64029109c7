"""The grids that weights are rounded to, and codes as packed matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slmq import _native
from slmq.formats import FORMATS, GROUP, LANES, PAIR_ROWS, packed_bytes, padded

__all__ = ["GRIDS", "Grid", "Rounded", "pack_rounded"]

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """A weight is scale * (code - zero) + min, a scale and a min for so many columns of a row.

    Attributes
    ----------
    low, high : int
        Least and largest code - zero.
    zero : int
    has_min : bool
    columns : int
    """

    low: int
    high: int
    zero: int
    has_min: bool
    columns: int = GROUP


GRIDS = {
    "q4g32s": Grid(-8, 7, 8, False),
    "q4g32a": Grid(0, 15, 0, True),
    "q8g32s": Grid(-127, 127, 128, False),
}


@dataclass(frozen=True)
class Rounded:
    """A matrix on a grid.

    Attributes
    ----------
    format : str
    codes : uint8[n, k]
    scales, mins : float16[n, groups]
    """

    format: str
    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float16]
    mins: npt.NDArray[np.float16]

    def values(self) -> F32:
        """The weights that kernels see: float32[n, k]."""
        grid = GRIDS[self.format]
        k = self.codes.shape[1]
        scales = np.repeat(self.scales.astype(np.float32), grid.columns, axis=1)[:, :k]
        values: F32 = scales * (self.codes.astype(np.float32) - np.float32(grid.zero))
        if grid.has_min:
            values += np.repeat(self.mins.astype(np.float32), grid.columns, axis=1)[:, :k]
        return values


def pack_rounded(rounded: Rounded) -> _native.Matrix:
    """The matrix as its kernels read it; `core/formats.h` draws the bytes."""
    fmt, grid = FORMATS[rounded.format], GRIDS[rounded.format]
    n, k = rounded.codes.shape
    pairs, groups = padded(n, PAIR_ROWS) // PAIR_ROWS, padded(k, GROUP) // GROUP
    codes = np.zeros((pairs * PAIR_ROWS, groups * GROUP), np.uint8)
    codes[:n, :k] = rounded.codes
    codes[:n, k:] = grid.zero
    out = np.zeros((pairs, groups, fmt.pair_group_bytes), np.uint8)
    # [pair, tile, lane, group, column] -> lines of 16 lanes with runs of 4 columns
    tiles = codes.reshape(pairs, 2, LANES, groups, GROUP)
    if grid.zero == 128:
        lines = tiles.reshape(pairs, 2, LANES, groups, 8, 4)
    else:
        both: npt.NDArray[np.uint8] = tiles[..., :16] | (tiles[..., 16:] << np.uint8(4))
        lines = both.reshape(pairs, 2, LANES, groups, 4, 4)
    in_order = lines.transpose(0, 3, 1, 4, 2, 5)
    out[..., : 2 * fmt.tile_bytes] = in_order.reshape(pairs, groups, -1)
    halves = [rounded.scales, rounded.mins] if grid.has_min else [rounded.scales]
    for i, half in enumerate(halves):
        rows = np.zeros((pairs * PAIR_ROWS, groups), np.float16)
        rows[:n] = half
        by_pair = np.ascontiguousarray(rows.reshape(pairs, PAIR_ROWS, groups).transpose(0, 2, 1))
        begin = 2 * fmt.tile_bytes + i * 2 * PAIR_ROWS
        out[..., begin : begin + 2 * PAIR_ROWS] = by_pair.view(np.uint8)
    packed = out.reshape(-1)
    assert len(packed) == packed_bytes(fmt, n, k)
    return _native.Matrix.from_packed(fmt.name, n, k, packed)
