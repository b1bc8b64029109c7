"""Weight formats as NumPy: the executable specification of what the kernels read.

A packed matrix is a run of 64-byte lines; `core/formats.h` draws the layout. Everything here is
plain float32 arithmetic in a fixed order, and equals the native code bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

LANES = 16
PAIR_ROWS = 32
GROUP = 32


@dataclass(frozen=True)
class Format:
    """One stored format.

    Attributes
    ----------
    name : str
        `<kind><bits>g<group><s|a>`: s is symmetric (a scale), a is asymmetric (scale and min).
    tile_bytes : int
        Bytes of a tile of 16 rows x 32 columns, without scales.
    pair_group_bytes : int
        Bytes of two tiles with their scales and mins.
    """

    name: str
    tile_bytes: int
    pair_group_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of one weight, scales and mins included."""
        return self.pair_group_bytes * 8 / (PAIR_ROWS * GROUP)

    @property
    def quantized(self) -> bool:
        """Whether weights are integers (activations are then rounded, too)."""
        return self.name.startswith("q")


FORMATS = {
    f.name: f
    for f in (
        Format("q4g32s", 256, 576),
        Format("q4g32a", 256, 640),
        Format("q8g32s", 512, 1088),
        Format("f16", 1024, 2048),
        Format("f32", 2048, 4096),
    )
}

USER_FORMATS = {"int4": "q4g32a", "int8": "q8g32s"}


def format_named(name: str) -> Format:
    """The format of a stored or user-facing name.

    Raises
    ------
    ValueError
        If there is no such format.
    """
    stored = USER_FORMATS.get(name, name)
    if stored not in FORMATS:
        known = ", ".join([*USER_FORMATS, *FORMATS])
        raise ValueError(f"expected a weight format, one of {known}; got {name!r}")
    return FORMATS[stored]


def padded(size: int, to: int) -> int:
    """`size` rounded up to a multiple of `to`."""
    return -(-size // to) * to


def packed_bytes(fmt: Format, n: int, k: int) -> int:
    """Bytes of a packed matrix of `n` rows and `k` columns."""
    return padded(n, PAIR_ROWS) // PAIR_ROWS * (padded(k, GROUP) // GROUP) * fmt.pair_group_bytes


def quantize_groups(w: F32, fmt: Format) -> tuple[npt.NDArray[Any], F32, F32]:
    """Round-to-nearest quantization of groups.

    Parameters
    ----------
    w : float32[..., 32]
        Groups of weights.

    Returns
    -------
    q : uint8[..., 32] (four bits) or int8[..., 32]
    scale, min : float32[...], values that float16 holds
    """
    if fmt.name == "q4g32s":
        extreme = np.take_along_axis(w, np.abs(w).argmax(-1)[..., None], -1)[..., 0]
        scale = _half(extreme / np.float32(-8))
        q = np.clip(np.rint(w * _inverse(scale)[..., None] + np.float32(8)), 0, 15)
        return q.astype(np.uint8), scale, np.zeros_like(scale)
    if fmt.name == "q4g32a":
        # A zero is +0, whichever of two zeros came first.
        low, high = w.min(-1) + np.float32(0), w.max(-1) + np.float32(0)
        scale, minimum = _half((high - low) / np.float32(15)), _half(low)
        q = np.clip(np.rint((w - minimum[..., None]) * _inverse(scale)[..., None]), 0, 15)
        return q.astype(np.uint8), scale, minimum
    scale = _half(np.abs(w).max(-1) / np.float32(127))
    q = np.clip(np.rint(w * _inverse(scale)[..., None]), -127, 127)
    return q.astype(np.int8), scale, np.zeros_like(scale)


def dequantize_groups(q: npt.NDArray[Any], scale: F32, minimum: F32, fmt: Format) -> F32:
    """The float32 weights of quantized groups (inverse of `quantize_groups`)."""
    zero = np.float32(8 if fmt.name == "q4g32s" else 0)
    w: F32 = scale[..., None] * (q.astype(np.float32) - zero)
    return w + minimum[..., None] if fmt.name == "q4g32a" else w


def pack(w: F32, fmt: Format) -> U8:
    """Quantize float32[n, k] and lay it out as the kernels read it.

    Returns
    -------
    uint8[packed_bytes(fmt, n, k)]
    """
    n, k = w.shape
    groups = padded(k, GROUP) // GROUP
    out = np.zeros((padded(n, PAIR_ROWS) // PAIR_ROWS, groups, fmt.pair_group_bytes), np.uint8)
    for row in range(n):
        for g in range(groups):
            values = w[row, g * GROUP : (g + 1) * GROUP]
            _pack_group(out[row // PAIR_ROWS, g], row % PAIR_ROWS, values, fmt)
    return out.reshape(-1)


def unpack(packed: U8, n: int, k: int, fmt: Format) -> F32:
    """The float32[n, k] weights of a packed matrix."""
    groups = padded(k, GROUP) // GROUP
    blocks = packed.reshape(-1, groups, fmt.pair_group_bytes)
    tiles = blocks[..., : 2 * fmt.tile_bytes].reshape(*blocks.shape[:2], 2, fmt.tile_bytes)
    if not fmt.quantized:
        dtype = np.float16 if fmt.name == "f16" else np.float32
        floats = np.ascontiguousarray(tiles).view(dtype).astype(np.float32)
        floats = floats.reshape(*tiles.shape[:3], GROUP, LANES)
        rows = floats.transpose(0, 2, 4, 1, 3)
        return np.ascontiguousarray(rows.reshape(-1, groups * GROUP)[:n, :k])
    halves = np.ascontiguousarray(blocks[..., 2 * fmt.tile_bytes :]).view(np.float16)
    scales = halves.astype(np.float32).reshape(*blocks.shape[:2], -1, PAIR_ROWS)
    q = _unpack_integers(tiles, fmt)  # [pair, group, row of the pair, column]
    minimum = scales[:, :, 1] if fmt.name == "q4g32a" else np.zeros_like(scales[:, :, 0])
    w = dequantize_groups(q, scales[:, :, 0], minimum, fmt)
    rows = w.transpose(0, 2, 1, 3).reshape(-1, groups * GROUP)
    return np.ascontiguousarray(rows[:n, :k])


ACTIVATIONS = ("a8g32", "a16g32", "a8o16g32")
ACTIVATION_LIMIT = 127 * 256  # of |q|


def quantize_activations(x: F32, kind: str = "a8o16g32") -> tuple[npt.NDArray[np.int32], F32]:
    """Integers and one float32 scale per group of 32 columns; x is finite.

    A group has 16 bits (q is any integer) or 8 (q is a multiple of 256). In `a8o16g32` the groups
    that stand out of their row have 16.

    Parameters
    ----------
    x : float32[m, k], k a multiple of 32
    kind : {"a8o16g32", "a16g32", "a8g32"}

    Returns
    -------
    q : int32[m, k], |q| <= ACTIVATION_LIMIT; scale : float32[m, k / 32]
    """
    groups = x.reshape(x.shape[0], -1, GROUP)
    largest = np.abs(groups).max(-1)
    wide = _stands_out(largest) if kind == "a8o16g32" else np.full(largest.shape, kind == "a16g32")
    zero = largest < np.float32(1e-20)
    steps = np.where(wide, np.float32(ACTIVATION_LIMIT), np.float32(127))
    inverse = np.where(zero, np.float32(0), steps / np.where(zero, np.float32(1), largest))
    codes = np.rint(np.clip(groups * inverse[..., None], -steps[..., None], steps[..., None]))
    q = codes.astype(np.int32) * np.where(wide, 1, 256)[..., None]
    unit = np.where(zero, np.float32(0), largest / steps)
    scale = np.where(wide, unit, unit * np.float32(1 / 256))
    return q.reshape(x.shape), scale


def _stands_out(largest: F32) -> npt.NDArray[np.bool_]:
    """Groups whose largest magnitude is more than 13/8 of the row's median, which counts cut to
    the upper 16 bits of a float32 and is the least value that more than half of the groups stay
    within.
    """
    upper = np.sort(largest.view(np.int32) >> 16, axis=-1)
    median = upper[:, largest.shape[1] // 2] << 16
    cut = np.float32(1.625) * median.astype(np.int32).view(np.float32)
    out: npt.NDArray[np.bool_] = largest > cut[:, None]
    return out


def _half(x: F32) -> F32:
    half = np.asarray(x, np.float32).astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError("a weight or its scale is too large for float16")
    return half.astype(np.float32)


def _inverse(scale: F32) -> F32:
    safe = np.where(scale != 0, scale, np.float32(1))
    inverse: F32 = np.where(scale != 0, np.float32(1) / safe, np.float32(0)).astype(np.float32)
    return inverse


def _pack_group(block: U8, row: int, values: F32, fmt: Format) -> None:
    count, lane = len(values), row % LANES
    tile = block[row // LANES * fmt.tile_bytes :][: fmt.tile_bytes]
    if not fmt.quantized:
        full = np.zeros(GROUP, np.float32)
        full[:count] = values
        stored = _half(full).astype(np.float16) if fmt.name == "f16" else full
        tile.view(stored.dtype).reshape(GROUP, LANES)[:, lane] = stored
        return
    q, scale, minimum = quantize_groups(values[None], fmt)
    floats = block[2 * fmt.tile_bytes :].view(np.float16).reshape(-1, PAIR_ROWS)
    floats[0, row] = scale[0]
    if fmt.name == "q4g32a":
        floats[1, row] = minimum[0]
    full_q = np.full(GROUP, _padding(fmt), np.uint8)
    full_q[:count] = q[0].astype(np.int16) + 128 if fmt.name == "q8g32s" else q[0]
    lines = tile.reshape(-1, LANES, 4)
    if fmt.name == "q8g32s":
        lines[:, lane] = full_q.reshape(8, 4)
    else:
        lines[:, lane] = (full_q[:16] | (full_q[16:] << 4)).reshape(4, 4)


def _padding(fmt: Format) -> int:
    return {"q4g32s": 8, "q4g32a": 0, "q8g32s": 128}[fmt.name]


def _unpack_integers(tiles: U8, fmt: Format) -> npt.NDArray[Any]:
    lead = tiles.shape[:2]
    lines = tiles.reshape(*lead, 2, -1, LANES, 4)
    rows = lines.transpose(0, 1, 2, 4, 3, 5).reshape(*lead, PAIR_ROWS, -1)
    if fmt.name == "q8g32s":
        signed: npt.NDArray[Any] = (rows.astype(np.int16) - 128).astype(np.int8)
        return signed
    return np.concatenate([rows & 15, rows >> 4], axis=-1)
