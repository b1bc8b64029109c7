"""The vectors of an index: int8 in a file, mapped, and compared by the kernels for weights.

A file is what `QuantizedMatrix.packed` gives for all rows, in pairs of 32: it grows at its end, and
nothing in it changes. Which rows count, and how many bytes are whole, stands in the database. A
score is the same bits on every CPU.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.errors import DataError
from slmq.machine.disk import sync
from slmq.weights.quantized import QuantizedMatrix

__all__ = ["PAIR_ROWS", "MappedVectors", "append_vectors", "packed_vectors", "picked_rows"]

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
FORMAT = "q8g32s"
PRECISE = "a16g32"  # of the query, which is one row: its rounding costs nothing to avoid
PAIR_ROWS = 32
GROUP, LINES, LANES = 32, 8, 16
GROUP_BYTES = PAIR_ROWS * GROUP + 2 * PAIR_ROWS  # codes, then float16 scales


def packed_vectors(rows: F32) -> bytes:
    """The bytes of some vectors, with zeros up to the next pair."""
    count, width = rows.shape
    padded = np.zeros((-(-count // PAIR_ROWS) * PAIR_ROWS, width), np.float32)
    padded[:count] = rows
    return QuantizedMatrix.quantize(padded, "int8").packed.tobytes()


def append_vectors(path: Path, at: int, data: bytes) -> None:
    """Write bytes at the end of what counts of a file, and let the disk have them.

    Raises
    ------
    OSError
    """
    new = not path.exists()
    with path.open("wb" if new else "r+b") as file:
        file.truncate(at)  # what a run that was killed left behind it
        file.seek(at)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync(path.parent)


def picked_rows(packed: U8, width: int, rows: Sequence[int]) -> bytes:
    """The bytes of some rows of a file, as they would have been packed by themselves."""
    groups = -(-width // GROUP)
    pairs = packed.reshape(-1, groups, GROUP_BYTES)
    wanted = np.zeros(-(-len(rows) // PAIR_ROWS) * PAIR_ROWS, np.int64)
    wanted[: len(rows)] = rows
    pair, row = np.divmod(wanted, PAIR_ROWS)
    tile, lane = np.divmod(row, LANES)
    # [pair, group, tile, line, lane, 4 columns] and [pair, group, row]
    codes = pairs[..., : PAIR_ROWS * GROUP].reshape(-1, groups, 2, LINES, LANES, 4)
    scales = pairs[..., PAIR_ROWS * GROUP :].reshape(-1, groups, PAIR_ROWS, 2)
    out = np.empty((len(wanted) // PAIR_ROWS, groups, GROUP_BYTES), np.uint8)
    new_codes = codes[pair, :, tile, :, lane]  # [row, group, line, 4]
    new_scales = scales[pair, :, row].copy()  # [row, group, 2]
    new_scales[len(rows) :] = 0  # what stands behind the last row is nothing
    shape = (-1, 2, LANES, groups, LINES, 4)
    out[..., : PAIR_ROWS * GROUP] = (
        new_codes.reshape(shape).transpose(0, 3, 1, 4, 2, 5).reshape(*out.shape[:2], -1)
    )
    out[..., PAIR_ROWS * GROUP :] = (
        new_scales.reshape(-1, PAIR_ROWS, groups, 2)
        .transpose(0, 2, 1, 3)
        .reshape(*out.shape[:2], -1)
    )
    return out.tobytes()


class MappedVectors:
    """The vectors of a file, mapped into memory.

    Parameters
    ----------
    path : Path
    width : int
        Numbers of a vector.
    parts : sequence of (int, int)
        Bytes and checksum of each part that was appended.

    Raises
    ------
    DataError
        If the file is missing, too short, or not what was written.
    """

    def __init__(self, path: Path, width: int, parts: Sequence[tuple[int, int]]) -> None:
        self.path = path
        self.width = width
        size = sum(count for count, _ in parts)
        self.rows = size // (-(-width // GROUP) * GROUP_BYTES) * PAIR_ROWS
        self.packed: U8 = np.empty(0, np.uint8)
        if size:
            self.packed = self._mapped(size)
        at = 0
        for count, checksum in parts:
            if zlib.crc32(self.packed[at : at + count].data) != checksum:
                raise DataError(f"{path}: damaged between the bytes {at} and {at + count}")
            at += count
        self._matrix = (
            QuantizedMatrix(_native.Matrix.from_packed(FORMAT, self.rows, width, self.packed))
            if size
            else None
        )

    def scores(self, queries: F32, threads: int) -> F32:
        """The products of queries with all rows: float32[len(queries), rows]."""
        if self._matrix is None:
            return np.zeros((len(queries), 0), np.float32)
        native = self._matrix._native
        return native.matmul(np.ascontiguousarray(queries), threads, PRECISE)

    def _mapped(self, size: int) -> U8:
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found < size:
                    raise DataError(
                        f"{self.path}: expected {size} bytes, found {found}: it was cut short"
                    )
                mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from None
        return np.frombuffer(mapped, np.uint8)
