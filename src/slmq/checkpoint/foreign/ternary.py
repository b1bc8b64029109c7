"""Weights of BitNet's folders: -1, 0 and 1, four rows in a byte, times one scale a matrix.

<stem>.weight        uint8[n / 4, k]   bits 2i and 2i + 1 of row r: row i * n / 4 + r, plus 1
<stem>.weight_scale  [1]               what they are multiplied by ("autobitlinear"), or divided
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.checkpoint.base import Checkpoint, TensorInfo
from slmq.checkpoint.foreign.chunks import in_chunks
from slmq.checkpoint.foreign.config import QuantConfig
from slmq.errors import CheckpointError
from slmq.formats import FORMATS, GROUP

__all__ = ["TernaryLinear", "ternary_linears"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Indices = npt.NDArray[np.intp]
U8 = npt.NDArray[np.uint8]

ROWS = 4  # of a byte
FLOATS = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}
# The longest that divides a row; the last takes rows of any length.
LONGEST = ("q2g256s", "q2g128s", "q2g64s", "q4g32s")


class TernaryLinear:
    """One weight of n rows and k columns; see `slmq.checkpoint.foreign.weight.ForeignWeight`.

    Raises
    ------
    CheckpointError
        A part is missing, or of another type or shape than the other asks for.
    """

    columns = None

    def __init__(self, checkpoint: Checkpoint, stem: str, config: QuantConfig) -> None:
        self._checkpoint = checkpoint
        self._name = f"{stem}.weight"
        self._divides = config.divides
        scale = f"{stem}.weight_scale"
        self.parts = (self._name, scale)
        codes = checkpoint.tensors[self._name]
        if len(codes.shape) != 2 or min(codes.shape) == 0:
            raise self._error(f"expected two dimensions, none empty, found {list(codes.shape)}")
        if scale not in checkpoint.tensors:
            raise self._error(f"part {scale!r} is missing")
        nbytes = codes.nbytes + checkpoint.tensors[scale].nbytes
        shape = (ROWS * codes.shape[0], codes.shape[1])
        self.info = TensorInfo(self._name, "bitnet ternary", shape, nbytes)

    @property
    def kept(self) -> str:
        """The weight format that holds the codes."""
        k = self.info.shape[1]
        return next(name for name in LONGEST if k % FORMATS[name].columns == 0)

    @property
    def change(self) -> str | None:
        """That the scale is rounded, where it is no float16."""
        exact = np.float32(np.float16(self._scale)) == self._scale
        return None if exact else "scales are rounded to float16, by at most 2^-11 of themselves"

    @cached_property
    def _scale(self) -> np.float32:
        """What the codes are multiplied by."""
        info = self._checkpoint.tensors[self.parts[1]]
        if info.dtype not in FLOATS or info.shape not in ((1,), ()):
            raise self._error(
                f"expected {self.parts[1]} to be one of f32, f16 or bf16, found {info.dtype} "
                f"{list(info.shape)}"
            )
        stored = self._checkpoint.read(info.name).view(FLOATS[info.dtype])
        if info.dtype == "bf16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        value = np.float32(float(stored.reshape(-1)[0]))
        if not np.isfinite(value) or (self._divides and value == 0):
            raise self._error(f"expected a finite {self.parts[1]} other than 0, found {value}")
        scale: np.float32 = np.float32(1) / value if self._divides else value
        return scale

    def pack(
        self, rows: Indices, order: I32 | None, arena: _native.Arena | None, threads: int
    ) -> _native.Matrix:
        """Pack these rows in the format `kept`."""
        n, k, fmt = len(rows), self.info.shape[1], FORMATS[self.kept]
        codes = np.empty((n, k), np.uint8)

        def chunk(begin: int, end: int) -> None:
            codes[begin:end] = self._codes(rows[begin:end]) + np.uint8(fmt.zero - 1)

        in_chunks(n, k, threads, chunk)
        runs = -(-k // (GROUP * fmt.run))
        scales = np.full((n, runs), self._scale, np.float16)
        return _native.Matrix.from_parts(
            fmt.name, n, k, codes, scales, order=order, arena=arena, threads=threads
        )

    def floats(self, begin: int, end: int, out: F32) -> None:
        """Write the values of rows."""
        codes = self._codes(np.arange(begin, end))
        np.multiply(codes.astype(np.float32) - np.float32(1), self._scale, out=out)

    def _codes(self, rows: Indices) -> U8:
        """-1, 0 and 1 plus 1; raises ValueError for anything else."""
        stored = self._checkpoint.tensors[self._name].shape
        packed = self._checkpoint.held(self._name).reshape(stored)
        shift = (2 * (rows // stored[0])).astype(np.uint8)
        codes: U8 = (packed[rows % stored[0]] >> shift[:, None]) & np.uint8(3)
        if codes.max(initial=0) > 2:
            raise ValueError("expected weights of -1, 0 and 1, found a code of 3")
        return codes

    def _error(self, message: str) -> CheckpointError:
        return CheckpointError(message, file=self._checkpoint.path, tensor=self._name)


def ternary_linears(checkpoint: Checkpoint, config: QuantConfig) -> dict[str, TernaryLinear]:
    """The packed weights of a folder by name; what is stored as floats is not among them."""
    names = [
        name
        for name, info in checkpoint.tensors.items()
        if info.dtype == "u8" and name.endswith(".weight")
    ]
    stems = [name.removesuffix(".weight") for name in names]
    return {f"{stem}.weight": TernaryLinear(checkpoint, stem, config) for stem in stems}
