"""Weights that are quantized in ways that Matrix.pack cannot round from.

These are GGUF's types of 5 bits and K-quants, and the weights of GPTQ, AWQ and compressed-tensors.
Most are packed into a format of ours that holds the very same values; all can be decoded to
float32, by row ranges, in threads.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.checkpoint.base import Checkpoint, TensorInfo
from slmq.checkpoint.foreign.chunks import in_chunks
from slmq.checkpoint.foreign.config import read_quant_config
from slmq.checkpoint.foreign.ggml_blocks import dequantize
from slmq.checkpoint.foreign.layouts import foreign_linears

__all__ = ["BLOCK_FORMATS", "ForeignWeight", "decode", "foreign_weights"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Indices = npt.NDArray[np.intp]
U8 = npt.NDArray[np.uint8]

# The format that holds the values of a GGUF type bit by bit; `core/pack_blocks.h` moves them.
BLOCK_FORMATS = {
    "q5_0": "q8g32s",
    "q5_1": "q8g32a",
    "iq4_nl": "q8g32s",
    "q2_k": "q2k",
    "q3_k": "q6k",
    "q4_k": "q4k",
    "q5_k": "q5k",
    "q6_k": "q6k",
}


class ForeignWeight(Protocol):
    """A weight of n rows and k columns."""

    @property
    def info(self) -> TensorInfo:
        """Name, stored type, shape (n, k) and bytes of all its parts."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The stored tensors that it is made of."""

    @property
    def kept(self) -> str | None:
        """The weight format that holds the same values, if one does."""

    @property
    def columns(self) -> I32 | None:
        """The order in which `pack` puts columns, int32[k]; None: as they are."""

    def pack(
        self, rows: Indices, order: I32 | None, arena: _native.Arena | None, threads: int
    ) -> _native.Matrix:
        """Pack these rows in the format `kept`; the rest as `Matrix.pack` takes it.

        Raises
        ------
        ValueError
            A scale is not finite.
        """

    def floats(self, begin: int, end: int, out: F32) -> None:
        """Write the values of rows to float32[end - begin, k]."""


class GgufTensor:
    """A tensor of a GGUF file; see `ForeignWeight`."""

    columns = None

    def __init__(self, checkpoint: Checkpoint, info: TensorInfo) -> None:
        self._checkpoint = checkpoint
        self.info = info
        self.parts = (info.name,)
        self.kept = BLOCK_FORMATS[info.dtype]

    def pack(
        self, rows: Indices, order: I32 | None, arena: _native.Arena | None, threads: int
    ) -> _native.Matrix:
        """Pack neighbouring rows in the format `kept`: integers change places."""
        wanted = self._checkpoint.read(self.info.name, int(rows[0]), int(rows[-1]) + 1)
        kind, n, k = self.info.dtype, len(rows), self.info.shape[1]
        return _native.Matrix.pack(kind, wanted, n, k, self.kept, order, arena, threads)

    def floats(self, begin: int, end: int, out: F32) -> None:
        """Write the values of rows."""
        raw = self._checkpoint.read(self.info.name, begin, end)
        n, k = end - begin, self.info.shape[1]
        dequantize(self.info.dtype, raw, (n, k), 0, n, out)


def foreign_weights(checkpoint: Checkpoint) -> dict[str, ForeignWeight]:
    """The weights of a checkpoint that are of these kinds, by name.

    Raises
    ------
    CheckpointError
        The folder is quantized in a way that slmq does not read, or its parts do not fit.
    """
    if checkpoint.packed:
        return {}
    if not checkpoint.layout.gguf_terms:
        config = read_quant_config(checkpoint.path, checkpoint.metadata)
        return {} if config is None else {**foreign_linears(checkpoint, config)}
    return {
        name: GgufTensor(checkpoint, info)
        for name, info in checkpoint.tensors.items()
        if info.dtype in BLOCK_FORMATS and len(info.shape) == 2
    }


def decode(tensor: ForeignWeight, threads: int = 1, rows: tuple[int, int] | None = None) -> F32:
    """The values of rows, by default all: float32[rows, k]."""
    first, last = (0, tensor.info.shape[0]) if rows is None else rows
    out = np.empty((last - first, tensor.info.shape[1]), np.float32)

    def chunk(begin: int, end: int) -> None:
        tensor.floats(first + begin, first + end, out[begin:end])

    in_chunks(*out.shape, threads, chunk)
    return out
