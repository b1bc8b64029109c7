"""Weights that the packer does not read as stored: decoded by row ranges, in threads.

These are GGUF types without a packed format of ours, and the weights of GPTQ, AWQ and
compressed-tensors. Where a GGUF type that the packer knows holds the very same values (an int8 and
a float16 scale per 32 columns hold those of Q5_0), they are handed on as its blocks and nothing is
lost. All others are handed on as float32.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt

from slmq.checkpoint.base import Checkpoint, TensorInfo
from slmq.checkpoint.block_writer import BLOCK_BYTES, write_q8_0
from slmq.checkpoint.ggml_blocks import QUANTIZED_TYPES, block_integers, dequantize
from slmq.checkpoint.packed_layouts import packed_linears
from slmq.checkpoint.quant_config import read_quant_config

__all__ = ["DecodedTensor", "decode", "decoded_tensors"]

I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]

CHUNK = 1 << 18  # weights that a thread decodes at a time: about a cache

# int8 times a float16 scale per 32 columns says it all.
FITS_Q8_0 = ("q5_0", "iq4_nl")


class DecodedTensor(Protocol):
    """A weight of n rows and k columns that must be decoded before it is packed."""

    @property
    def info(self) -> TensorInfo:
        """Name, stored type, shape (n, k) and bytes of all its parts."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The stored tensors that it is made of."""

    @property
    def lossless(self) -> str | None:
        """The GGUF type ("q4_0", "q4_1", "q8_0") whose blocks hold the same values, if one does."""

    @property
    def columns(self) -> I32 | None:
        """The order in which the `lossless` blocks have their columns; None: as they are."""

    def rows(self, source: str, begin: int, end: int, out: U8) -> None:
        """Write rows as "f32" or as blocks of the `lossless` type: uint8[end - begin, bytes]."""


class GgufTensor:
    """A tensor of a GGUF file; see `DecodedTensor`."""

    columns = None

    def __init__(self, checkpoint: Checkpoint, info: TensorInfo) -> None:
        self._checkpoint = checkpoint
        self.info = info
        self.parts = (info.name,)
        self.lossless = "q8_0" if info.dtype in FITS_Q8_0 else None

    def rows(self, source: str, begin: int, end: int, out: U8) -> None:
        """Write rows as "f32" or as blocks of the `lossless` type."""
        kind, raw = self.info.dtype, self._checkpoint.raw(self.info.name)
        n, k = self.info.shape
        if source == "f32":
            dequantize(kind, raw, (n, k), begin, end, out.view(np.float32))
            return
        found = block_integers(kind, raw, (n, k), begin, end)
        values = found.signed() if found.codebook is None else found.codebook.take(found.codes)
        write_q8_0(values, found.d, out)


def decoded_tensors(checkpoint: Checkpoint, packable: Collection[str]) -> dict[str, DecodedTensor]:
    """The weights of a checkpoint that need decoding, by name.

    Parameters
    ----------
    packable : collection of str
        Types that are packed as they are.

    Raises
    ------
    CheckpointError
        The folder is quantized in a way that slmq does not read, or its parts do not fit.
    """
    if checkpoint.kind == "safetensors":
        config = read_quant_config(checkpoint.path, checkpoint.metadata)
        return {} if config is None else {**packed_linears(checkpoint, config)}
    return {
        name: GgufTensor(checkpoint, info)
        for name, info in checkpoint.tensors.items()
        if info.dtype in QUANTIZED_TYPES and info.dtype not in packable and len(info.shape) == 2
    }


def decode(
    tensor: DecodedTensor, source: str, threads: int = 1, rows: tuple[int, int] | None = None
) -> U8:
    """Rows, by default all, as "f32" or as blocks of the tensor's `lossless` type: uint8[bytes]."""
    first, last = (0, tensor.info.shape[0]) if rows is None else rows
    n, k = last - first, tensor.info.shape[1]
    out = np.empty((n, 4 * k if source == "f32" else k // 32 * BLOCK_BYTES[source]), np.uint8)
    step = max(1, CHUNK // k)

    def chunk(begin: int) -> None:
        end = min(begin + step, n)
        tensor.rows(source, first + begin, first + end, out[begin:end])

    if threads == 1 or step >= n:
        for begin in range(0, n, step):
            chunk(begin)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(chunk, range(0, n, step)))  # raises what a chunk raised
    return out.reshape(-1)
