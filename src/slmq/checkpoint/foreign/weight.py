"""Weights that are quantized in ways that Matrix.pack cannot round from.

These are GGUF's types of 5 bits, K-quants and codebooks, and the weights of GPTQ, AWQ and
compressed-tensors. Most are packed into a format of ours that holds the very same values; all can
be decoded to float32, by row ranges, in threads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.checkpoint.base import Checkpoint, TensorInfo
from slmq.checkpoint.foreign.chunks import in_chunks
from slmq.checkpoint.foreign.config import BITNET, read_quant_config
from slmq.checkpoint.foreign.ggml_blocks import BlockIntegers, block_integers, dequantize
from slmq.checkpoint.foreign.layouts import foreign_linears
from slmq.checkpoint.foreign.mxfp4 import BIAS, FIRST, LAST, MXFP4, held_mxfp4, mxfp4_matrices
from slmq.checkpoint.foreign.ternary import ternary_linears
from slmq.errors import CheckpointError
from slmq.formats import FORMATS, GROUP

__all__ = ["BLOCK_FORMATS", "WIDENED", "ForeignWeight", "decode", "foreign_weights"]

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Indices = npt.NDArray[np.intp]
U8 = npt.NDArray[np.uint8]

# The format that holds the values of a GGUF type bit by bit; `layout/pack_blocks.h` moves them.
BLOCK_FORMATS = {
    "q5_0": "q5g32s",
    "q5_1": "q5g32a",
    "iq4_nl": "n4g32s",
    "iq4_xs": "n4k",
    "q2_k": "q2k",
    "q3_k": "q6k",
    "q4_k": "q4k",
    "q5_k": "q5k",
    "q6_k": "q6k",
}

ALL_VALUES = "no value changes"
SCALES_ROUND = "scales are rounded to float16, by at most 2^-11 of themselves"
VALUES_ROUND = "values move by at most 1/250 of the largest among 32"

# The format that a type with a codebook takes, and what becomes of its values: None where they need
# no more room. One whose values stay holds all but scales below the normal numbers of float16.
WIDENED: dict[str, tuple[str, str | None]] = {
    "tq1_0": ("q2g256s", ALL_VALUES),
    "tq2_0": ("q2g256s", None),
    "q1_0": ("q1g128a", None),
    "q2_0": ("q2g64s", None),
    "nvfp4": ("q8g32s", VALUES_ROUND),
    "iq1_s": ("q6k", ALL_VALUES),
    "iq1_m": ("q6k", ALL_VALUES),
    "iq2_xxs": ("q8g32s", SCALES_ROUND),
    "iq2_xs": ("q8g32s", VALUES_ROUND),
    "iq2_s": ("q8g32s", VALUES_ROUND),
    "iq3_xxs": ("q6k", ALL_VALUES),
    "iq3_s": ("q6k", ALL_VALUES),
    "mxfp4": ("f4g32s", ALL_VALUES),
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
        """The weight format that it takes unless another is asked for, if one fits."""

    @property
    def change(self) -> str | None:
        """What `kept` changes, for people, where it takes more bits than the stored type."""

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
    change: str | None = None

    def __init__(self, checkpoint: Checkpoint, info: TensorInfo, kept: str) -> None:
        self._checkpoint = checkpoint
        self.info = info
        self.parts: tuple[str, ...] = (info.name,)
        self.kept = kept

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


class CodebookTensor(GgufTensor):
    """A tensor of a type with a codebook, which a wider format takes; see `ForeignWeight`."""

    def __init__(self, checkpoint: Checkpoint, info: TensorInfo) -> None:
        kept, self.change = WIDENED[info.dtype]
        super().__init__(checkpoint, info, kept)
        # NVFP4's own scales span few powers of two; the rest is a number beside the tensor.
        scale = info.name.removesuffix("weight") + "scale"
        self._factor: float | None = None
        if info.dtype == "nvfp4" and scale in checkpoint.tensors:
            self._factor = _number(checkpoint, scale)
            self.parts = (info.name, scale)

    def floats(self, begin: int, end: int, out: F32) -> None:
        """Write the values of rows."""
        super().floats(begin, end, out)
        if self._factor is not None:
            out *= self._factor

    def pack(
        self, rows: Indices, order: I32 | None, arena: _native.Arena | None, threads: int
    ) -> _native.Matrix:
        """Pack neighbouring rows in the format `kept`."""
        first, n, k = int(rows[0]), len(rows), self.info.shape[1]
        if self.change == VALUES_ROUND:
            values = decode(self, threads, (first, first + n)).reshape(-1).view(np.uint8)
            return _native.Matrix.pack("f32", values, n, k, self.kept, order, arena, threads)
        if self.info.dtype == "q1_0":
            return self._pack_signs(first, n, order, arena, threads)
        codes = np.empty((n, k), np.uint8)
        d: F16 | None = None
        columns = GROUP * FORMATS[self.kept].run
        if self.kept == "q6k":
            scales: npt.NDArray[Any] = np.empty((n, k // 16), np.int8)
            d = np.empty((n, k // 256), np.float16)
        else:
            scales = np.empty((n, k // columns), np.float16)

        def chunk(begin: int, end: int) -> None:
            found = self._integers(first + begin, first + end)
            codes[begin:end] = found.codes
            if d is None:
                scales[begin:end] = half_scales(found, columns)
            else:
                assert found.scales is not None
                d[begin:end] = halves(found.d)
                scales[begin:end] = np.repeat(found.scales, found.group // 16, axis=1)

        in_chunks(n, k, threads, chunk)
        return _native.Matrix.from_parts(
            self.kept, n, k, codes, scales, d=d, order=order, arena=arena, threads=threads
        )

    def _pack_signs(
        self, first: int, n: int, order: I32 | None, arena: _native.Arena | None, threads: int
    ) -> _native.Matrix:
        """Weights of d and -d: 2 d times a bit, less d."""
        found = self._integers(first, first + n)
        doubled, k = halves(2 * found.d.astype(np.float32)), self.info.shape[1]
        mins = halves(-found.d)
        codes = found.codes >> np.uint8(1)
        return _native.Matrix.from_parts(
            self.kept, n, k, codes, doubled, mins, order=order, arena=arena, threads=threads
        )

    def _integers(self, begin: int, end: int) -> BlockIntegers:
        raw = self._checkpoint.read(self.info.name, begin, end)
        return block_integers(self.info.dtype, raw, (end - begin, self.info.shape[1]))


class Mxfp4Tensor(CodebookTensor):
    """A tensor of MXFP4, whose scales float16 may not hold; see `ForeignWeight`."""

    def __init__(self, checkpoint: Checkpoint, info: TensorInfo) -> None:
        super().__init__(checkpoint, info)
        blocks = checkpoint.read(info.name).reshape(-1, 17)
        self.kept, self.change = held_mxfp4(
            checkpoint, info.name, blocks[:, 0], lambda: blocks[:, 1:]
        )
        checkpoint.release(info.name)

    def pack(
        self, rows: Indices, order: I32 | None, arena: _native.Arena | None, threads: int
    ) -> _native.Matrix:
        """Pack neighbouring rows in the format `kept`."""
        if self.kept != "f32":
            return super().pack(rows, order, arena, threads)
        first, n, k = int(rows[0]), len(rows), self.info.shape[1]
        values = decode(self, threads, (first, first + n)).reshape(-1).view(np.uint8)
        return _native.Matrix.pack("f32", values, n, k, "f32", order, arena, threads)

    def _integers(self, begin: int, end: int) -> BlockIntegers:
        found = super()._integers(begin, end)
        return replace(found, d=found.d.clip(2.0 ** (FIRST - BIAS), 2.0 ** (LAST - BIAS)))


def _number(checkpoint: Checkpoint, name: str) -> float:
    """A tensor of one float32; raises CheckpointError if it is anything else."""
    info = checkpoint.tensors[name]
    none = np.empty(0, np.float32)
    value: F32 = checkpoint.read(name).view("<f4") if info.dtype == "f32" else none
    if value.size != 1 or not np.isfinite(value[0]):
        raise CheckpointError(
            f"expected a finite float32, found {info.dtype} {list(info.shape)}",
            file=checkpoint.path,
            tensor=name,
        )
    return float(value[0])  # a Python float takes the type of what it multiplies


def halves(values: F32 | F16) -> F16:
    """Numbers as float16; what is too large becomes infinite, which packing refuses."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def half_scales(found: BlockIntegers, columns: int = GROUP) -> F16:
    """The scale of every so many columns: float16[n, k / columns]."""
    wide = found.by_group(found.d, found.scales)
    return halves(np.repeat(wide, found.group // columns, axis=1))


def foreign_weights(checkpoint: Checkpoint) -> dict[str, ForeignWeight]:
    """The weights of a checkpoint that are of these kinds, by name.

    Raises
    ------
    CheckpointError
        The folder is quantized in a way that slmq does not read, or its parts do not fit.
    """
    if checkpoint.packed:
        return {}
    found: dict[str, ForeignWeight] = {}
    if not checkpoint.layout.gguf_terms:
        quantization = checkpoint.metadata.get("quantization_config")
        if isinstance(quantization, dict) and quantization.get("quant_method") == MXFP4:
            return {**mxfp4_matrices(checkpoint)}
        config = read_quant_config(checkpoint.path, checkpoint.metadata)
        if config is not None:
            read = ternary_linears if config.method == BITNET else foreign_linears
            found.update(read(checkpoint, config))
        return found
    for name, info in checkpoint.tensors.items():
        if len(info.shape) == 2 and info.dtype in BLOCK_FORMATS:
            found[name] = GgufTensor(checkpoint, info, BLOCK_FORMATS[info.dtype])
        elif len(info.shape) == 2 and info.dtype in WIDENED:
            kind = Mxfp4Tensor if info.dtype == MXFP4 else CodebookTensor
            found[name] = kind(checkpoint, info)
    return found


def decode(tensor: ForeignWeight, threads: int = 1, rows: tuple[int, int] | None = None) -> F32:
    """The values of rows, by default all: float32[rows, k]."""
    first, last = (0, tensor.info.shape[0]) if rows is None else rows
    out = np.empty((last - first, tensor.info.shape[1]), np.float32)

    def chunk(begin: int, end: int) -> None:
        tensor.floats(first + begin, first + end, out[begin:end])

    in_chunks(*out.shape, threads, chunk)
    return out
