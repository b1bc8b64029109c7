"""Experts of gpt-oss in MXFP4, as its folders hold them.

A stack "NAME" of matrices [n, k] is two tensors, which are cut by expert when a folder is opened::

    NAME_blocks[i]  uint8[n, k / 32, 16]   two codes a byte, the lower bits first
    NAME_scales[i]  uint8[n, k / 32]       powers of two, plus 127

A code is a number of E2M1: a sign and one of 0, 0.5, 1, 1.5, 2, 3, 4, 6. The table of f4g32s holds
twice these, and half a scale is a float16 if it is 2^-24 to 2^15, so f4g32s holds every value.
Matrices with other scales become float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.checkpoint.base import Checkpoint, TensorInfo
from slmq.checkpoint.foreign.chunks import in_chunks
from slmq.checkpoint.foreign.ggml_codebooks import E2M1_DOUBLED
from slmq.errors import CheckpointError
from slmq.formats import GROUP

__all__ = ["MXFP4", "Mxfp4Matrix", "held_mxfp4", "mxfp4_matrices"]

MXFP4 = "mxfp4"
BLOCKS, SCALES = "_blocks", "_scales"
BIAS = 128  # of the exponents of scales that are half as large
FIRST, LAST = BIAS - 24, BIAS + 15  # exponents whose scales are float16
NAN = 255  # of E8M0

HELD = ("f4g32s", "no value changes")
WIDE = ("f32", "no value changes, but some of their scales are no float16")

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Indices = npt.NDArray[np.intp]
U8 = npt.NDArray[np.uint8]


class Mxfp4Matrix:
    """The matrix of an expert; see `ForeignWeight`."""

    columns: I32 | None = None
    kept: str
    change: str

    def __init__(self, checkpoint: Checkpoint, blocks: TensorInfo) -> None:
        name = blocks.name.replace(BLOCKS, "", 1)
        scales = checkpoint.tensors.get(blocks.name.replace(BLOCKS, SCALES, 1))
        shape = blocks.shape
        if len(shape) != 3 or shape[2] != GROUP // 2 or blocks.dtype != "u8":
            raise CheckpointError(
                f"expected uint8 [rows, groups, 16], found {blocks.dtype} {list(shape)}",
                file=checkpoint.path,
                tensor=blocks.name,
            )
        if scales is None or scales.shape != shape[:2] or scales.dtype != "u8":
            found = "none" if scales is None else f"{scales.dtype} {list(scales.shape)}"
            raise CheckpointError(
                f"expected scales of uint8 {list(shape[:2])} beside it, found {found}",
                file=checkpoint.path,
                tensor=blocks.name,
            )
        self._checkpoint = checkpoint
        self.parts = (blocks.name, scales.name)
        n, k = shape[0], shape[1] * GROUP
        self.info = TensorInfo(name, MXFP4, (n, k), blocks.nbytes + scales.nbytes)
        self.kept, self.change = held_mxfp4(
            checkpoint,
            scales.name,
            checkpoint.read(scales.name).reshape(-1),
            lambda: checkpoint.read(blocks.name).reshape(-1, GROUP // 2),
        )

    def pack(
        self, rows: Indices, order: I32 | None, arena: _native.Arena | None, threads: int
    ) -> _native.Matrix:
        """Pack these rows in the format `kept`: codes change places."""
        n, k = len(rows), self.info.shape[1]
        if self.kept == "f32":
            whole = np.empty(self.info.shape, np.float32)
            in_chunks(len(whole), k, threads, lambda i, j: self.floats(i, j, whole[i:j]))
            raw = whole[rows].reshape(-1).view(np.uint8)
            return _native.Matrix.pack("f32", raw, n, k, "f32", order, arena, threads)
        stored = self._checkpoint.read(self.parts[0]).reshape(-1, k // 2)
        exponents = self._exponents()[rows].clip(FIRST - BIAS, LAST - BIAS)  # others are of zeros
        codes = np.empty((n, k), np.uint8)

        def chunk(begin: int, end: int) -> None:
            _decode(stored[rows[begin:end]], codes[begin:end])

        in_chunks(n, k, threads, chunk)
        scales = np.ldexp(np.float32(1), exponents).astype(np.float16)
        return _native.Matrix.from_parts(
            self.kept, n, k, codes, scales, order=order, arena=arena, threads=threads
        )

    def floats(self, begin: int, end: int, out: F32) -> None:
        """Write the values of rows."""
        stored = self._checkpoint.read(self.parts[0], begin, end).reshape(end - begin, -1)
        codes = np.empty(out.shape, np.uint8)
        _decode(stored, codes)
        values = E2M1_DOUBLED[codes].astype(np.float32)
        exponents = np.repeat(self._exponents()[begin:end], GROUP, axis=1)
        with np.errstate(over="ignore"):  # infinities are refused when it is packed
            np.ldexp(values, exponents, out=out)

    def _exponents(self) -> I32:
        n, k = self.info.shape
        stored = self._checkpoint.read(self.parts[1]).reshape(n, k // GROUP)
        exponents: I32 = stored.astype(np.int32) - BIAS
        return exponents


def held_mxfp4(
    checkpoint: Checkpoint, name: str, exponents: U8, read: Callable[[], U8]
) -> tuple[str, str]:
    """The format that holds every value of a matrix, and what becomes of them, for people.

    Parameters
    ----------
    checkpoint : Checkpoint
    name : str
        The tensor of the scales, for an error.
    exponents : uint8[groups]
    read : callable
        Returns the codes, two a byte: uint8[groups, 16].

    Raises
    ------
    CheckpointError
        If a scale is NaN.
    """
    smallest, largest = int(exponents.min()), int(exponents.max())
    if largest == NAN:
        raise CheckpointError(
            f"expected powers of two as scales, found NaN (255) in group {exponents.argmax()}",
            file=checkpoint.path,
            tensor=name,
        )
    if smallest >= FIRST and largest <= LAST:
        return HELD
    # Zeros may have any scale.
    others = read()[(exponents < FIRST) | (exponents > LAST)]
    return WIDE if (others & np.uint8(0x77)).any() else HELD


def _decode(stored: U8, codes: U8) -> None:
    codes[:, 0::2] = stored & np.uint8(15)
    codes[:, 1::2] = stored >> 4


def mxfp4_matrices(checkpoint: Checkpoint) -> dict[str, Mxfp4Matrix]:
    """The matrices of a folder that are stored so, by the names of what they stand for.

    Raises
    ------
    CheckpointError
        If scales are missing, or a part has another type or shape.
    """
    found = [
        Mxfp4Matrix(checkpoint, info)
        for name, info in checkpoint.tensors.items()
        if name.partition("[")[0].endswith(BLOCKS) and math.prod(info.shape) > 0
    ]
    return {matrix.info.name: matrix for matrix in found}
