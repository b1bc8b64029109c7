"""Integers of 4 or 8 bits packed into 32-bit words, and what they mean: codes, scales, zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["AWQ_ORDER", "GroupedIntegers", "unpack_words"]

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]

# Field of an AWQ word that holds column 0, 1, ... 7: its fields hold columns 0 2 4 6 1 3 5 7.
AWQ_ORDER = np.array([0, 4, 1, 5, 2, 6, 3, 7])


def unpack_words(words: npt.NDArray[Any], bits: int) -> U8:
    """The fields of 32-bit words, lowest bits first: uint8[..., 32 / bits * words].

    Parameters
    ----------
    words : int32 or uint32 [..., w], little-endian
    bits : {4, 8}
    """
    packed = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return packed
    fields = np.empty((*packed.shape, 2), np.uint8)
    np.bitwise_and(packed, 15, out=fields[..., 0])
    np.right_shift(packed, 4, out=fields[..., 1])
    return fields.reshape(*packed.shape[:-1], -1)


@dataclass(frozen=True)
class GroupedIntegers:
    """Rows of a GPTQ, AWQ or compressed-tensors weight: n rows, k columns.

    With g = group_of[c], or c // group_size where group_of is None::

        w[r, c] = scales[r, g] * (codes[r, c] - zeros[r, g])

    Attributes
    ----------
    codes : uint8[n, k]
        0..15 or 0..255.
    scales : float32[n, groups]
        The stored float16, bfloat16 or float32 values, exactly.
    zeros : int16[n, groups]
        The codes that mean nothing: 8 or 128 in symmetric weights.
    group_size : int
        k for whole rows.
    group_of : int32[k], optional
        Where columns were quantized in another order (desc_act), the group of each.
    """

    codes: U8
    scales: F32
    zeros: I16
    group_size: int
    group_of: I32 | None = None

    def dequantize(self, out: F32 | None = None) -> F32:
        """The values: float32[n, k], written to `out` (contiguous) if it is given."""
        n, k = self.codes.shape
        values: F32 = np.empty((n, k), np.float32) if out is None else out
        values[...] = self.codes
        zeros = self.zeros.astype(np.float32)
        with np.errstate(invalid="ignore"):  # a file may hold infinities: 0 * inf
            if self.group_of is None and k % self.group_size == 0:
                grouped = values.reshape(n, -1, self.group_size)
                grouped -= zeros[..., None]
                grouped *= self.scales[..., None]
            else:
                columns = self.columns()
                values -= zeros[:, columns]
                values *= self.scales[:, columns]
        return values

    def columns(self) -> I32:
        """The group of every column: int32[k]."""
        if self.group_of is not None:
            return self.group_of
        return (np.arange(self.codes.shape[1]) // self.group_size).astype(np.int32)
