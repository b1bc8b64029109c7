"""Random blocks of GGUF types, written from ggml's structs: weights around 0 of one size.

Nothing here is shared with the readers of slmq.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCKS", "BlockType", "random_pool"]

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

POOL_BYTES = 16 << 20
PIECE = 1 << 14  # blocks that are made at a time
WEIGHT_STD = 0.02  # keeps activations in range through any number of layers


def q4_0(blocks: U8, rng: np.random.Generator) -> None:
    """d | codes [16]; w = d * (q - 8)."""
    _put(blocks, 0, _sizes(rng, len(blocks), 16 / np.sqrt(12)))


def q4_1(blocks: U8, rng: np.random.Generator) -> None:
    """d | m | codes [16]; w = d * q + m."""
    d = _sizes(rng, len(blocks), 16 / np.sqrt(12))
    _put(blocks, 0, d)
    _put(blocks, 2, -7.5 * d)


def q8_0(blocks: U8, rng: np.random.Generator) -> None:
    """d | codes [32]; w = d * q."""
    codes = blocks[:, 2:]
    codes[codes == 0x80] = 0  # llama.cpp never writes -128
    _put(blocks, 0, _sizes(rng, len(blocks), 255 / np.sqrt(12)))


def q4_k(blocks: U8, rng: np.random.Generator) -> None:
    """d | dmin | scales and mins [12] | codes [128]; w = d * sc * q - dmin * m.

    Bytes 0-3 of the scales and 4-7 of the mins, and both nibbles of bytes 8-11, are made alike:
    then every m is its sc, and 7.5 * d of dmin centres every group.
    """
    scales = blocks[:, 4:16]
    scales[:, 4:8] = scales[:, :4]
    scales[:, 8:] = (scales[:, 8:] & 15) * 17
    d = _sizes(rng, len(blocks), 63 / np.sqrt(3) * 16 / np.sqrt(12))
    _put(blocks, 0, d)
    _put(blocks, 2, 7.5 * d)


def q6_k(blocks: U8, rng: np.random.Generator) -> None:
    """low bits [128] | high bits [64] | scales, int8 [16] | d; w = d * sc * (q - 32)."""
    _put(blocks, 208, _sizes(rng, len(blocks), 256 / np.sqrt(12) * 64 / np.sqrt(12)))


class BlockType(NamedTuple):
    """A type's columns and bytes a block; `finish` gives random bytes their scales."""

    columns: int
    nbytes: int
    finish: Callable[[U8, np.random.Generator], None]


BLOCKS = {
    "q4_0": BlockType(32, 18, q4_0),
    "q4_1": BlockType(32, 20, q4_1),
    "q8_0": BlockType(32, 34, q8_0),
    "q4_k": BlockType(256, 144, q4_k),
    "q6_k": BlockType(256, 210, q6_k),
}


def random_pool(kind: str, rng: np.random.Generator) -> U8:
    """uint8[blocks, bytes], about 16 MiB: weights with a standard deviation of about 0.02."""
    block = BLOCKS[kind]
    pool: U8 = np.empty((POOL_BYTES // block.nbytes, block.nbytes), np.uint8)
    for piece in _pieces(pool):
        piece[:] = rng.integers(0, 256, piece.shape, np.uint8)
        block.finish(piece, rng)
    return pool


def _pieces(pool: U8) -> Iterator[U8]:
    for begin in range(0, len(pool), PIECE):
        yield pool[begin : begin + PIECE]


def _sizes(rng: np.random.Generator, count: int, deviation: float) -> F64:
    """Scales for blocks whose integers have this standard deviation."""
    sizes: F64 = rng.uniform(0.5, 1.5, count) * WEIGHT_STD / deviation
    return sizes


def _put(blocks: U8, at: int, values: F64) -> None:
    blocks[:, at : at + 2] = values.astype("<f2").reshape(-1, 1).view(np.uint8)
