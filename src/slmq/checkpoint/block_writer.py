"""Integers with a scale per group, written as the GGUF blocks that hold the same values."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slmq.checkpoint.int_words import GroupedIntegers

__all__ = ["BLOCK_BYTES", "write_blocks", "write_q8_0"]

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]

GROUP = 32
BLOCK_BYTES = {"q4_0": 18, "q4_1": 20, "q8_0": 34}  # of 32 columns


def write_blocks(kind: str, found: GroupedIntegers, out: U8) -> None:
    """Write rows as Q4_0, Q4_1 or Q8_0, which must hold them: see `PackedLinear.lossless`.

    Parameters
    ----------
    kind : {"q4_0", "q4_1", "q8_0"}
    found : GroupedIntegers
        Groups are whole blocks of 32 columns, in order.
    out : uint8[n, bytes of a row]
    """
    k = found.codes.shape[1]
    group = np.arange(k // GROUP) * GROUP // found.group_size  # of each block
    scales, zeros = found.scales[:, group], found.zeros[:, group]
    if kind == "q8_0":
        integers = found.codes.reshape(len(scales), -1, GROUP) - zeros[..., None]
        write_q8_0(integers.astype(np.int8), scales.astype(np.float16), out)
        return
    blocks = out.reshape(-1, BLOCK_BYTES[kind])
    _put(blocks, 0, scales)
    if kind == "q4_1":
        _put(blocks, 2, -scales * zeros.astype(np.float32))
    halves = found.codes.reshape(-1, 2, GROUP // 2)
    np.bitwise_or(halves[:, 0], halves[:, 1] << 4, out=blocks[:, BLOCK_BYTES[kind] - 16 :])


def write_q8_0(values: I8, scales: F16, out: U8) -> None:
    """Write blocks of Q8_0 from int8[n, k] and float16[n, k / 32]."""
    blocks = out.reshape(-1, BLOCK_BYTES["q8_0"])
    _put(blocks, 0, scales)
    blocks[:, 2:] = values.reshape(-1, GROUP).view(np.uint8)


def _put(blocks: U8, at: int, values: F16 | F32) -> None:
    blocks[:, at : at + 2] = values.astype("<f2").reshape(-1, 1).view(np.uint8)
