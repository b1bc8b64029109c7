"""Weight formats as NumPy: the executable specification of what the kernels read.

A packed matrix is a run of 64-byte lines; `layout/formats.h` draws the layout. Everything here is
plain float32 arithmetic in a fixed order, and equals the native code bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

LANES = 16
PAIR_ROWS = 32
GROUP = 32

# What codes of four bits stand for in formats with a table: places of a normal distribution (as in
# GGUF's IQ4_NL), and twice the values of four-bit floats, E2M1.
NORMAL4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FLOAT4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


@dataclass(frozen=True)
class Format:
    """One stored format; `layout/formats.h` draws its bytes.

    Attributes
    ----------
    name : str
        `<kind><bits>g<group><s|a|z>`: s is symmetric (a scale), a is asymmetric (scale and min), z
        has scale and zero point; r instead of g<group>: the whole row. `q<bits>k`: what GGUF's
        K-quants hold. Kinds: q, codes are numbers; n, they are places in a table that suits normal
        distributions; f, they are floats.
    bits : int
        Of a code; 16 and 32 are floats.
    zero : int
        The code that means 0 in all groups.
    offset : {"", "min", "zero"}
        What a group has beside its scale.
    run : int
        Groups of 32 columns that share scales; rows consist of whole runs. 0: all of a row.
    two_level : bool
        Scales are integers times `d`, mins integers times `dmin`, both shared by a run.
    parts : int
        Of a group with scales of their own, in two-level formats.
    values : tuple of int
        What codes stand for; empty: themselves.
    lift : int
        What all values gain where a bit is set that is stored beside the scale, as 2 * scale + bit:
        a second table. 0: there is no such bit.
    """

    name: str
    bits: int
    zero: int = 0
    offset: str = ""
    run: int = 1
    two_level: bool = False
    parts: int = 1
    values: tuple[int, ...] = ()
    lift: int = 0

    @property
    def quantized(self) -> bool:
        """Whether weights are integers (activations are then rounded, too)."""
        return self.bits < 16

    @property
    def tile_bytes(self) -> int:
        """Bytes of a tile of 16 rows x 32 columns, without scales."""
        return LANES * GROUP // 8 * self.bits

    @property
    def pair_group_bytes(self) -> int:
        """Bytes of two tiles and what no other group shares with them."""
        if self.two_level:
            return 2 * self.tile_bytes + PAIR_ROWS * self.parts * self._lines
        return 2 * self.tile_bytes + (2 * PAIR_ROWS * self._lines if self.run == 1 else 0)

    @property
    def half_line(self) -> int:
        """Bytes of factors, if they are half a line: every second pair-group of a run has them in
        front of its tiles.
        """
        return self.pair_group_bytes % 64

    @property
    def shared_bytes(self) -> int:
        """Bytes that the groups of a run share."""
        return 2 * PAIR_ROWS * self._lines if self.two_level or self.run != 1 else 0

    def run_groups(self, k: int) -> int:
        """Groups of a run, in rows of `k` columns."""
        return self.run or padded(k, GROUP) // GROUP

    def run_bytes(self, k: int) -> int:
        """Bytes of a run of 32 rows of `k` columns."""
        return self.run_groups(k) * self.pair_group_bytes + self.shared_bytes

    @property
    def columns(self) -> int:
        """What the columns of a matrix are a multiple of."""
        if self.run > 1:
            return self.run * GROUP
        return 2 * GROUP if self.two_level else 1  # whole lines of factors

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of one weight, scales and mins included; of an endless row of one scale."""
        if self.run == 0:
            return self.pair_group_bytes * 8 / (PAIR_ROWS * GROUP)
        columns = GROUP * self.run
        return self.run_bytes(columns) * 8 / (PAIR_ROWS * columns)

    def bits_in_rows(self, k: int) -> float:
        """The same in rows of `k` columns, of which a whole one may share a scale."""
        return self.bits_per_weight + (16 * self._lines / k if self.run == 0 else 0)

    @property
    def row_panels(self) -> bool:
        """Whether activations that it meets have one scale a row."""
        return self.run == 0 and not self.two_level

    @property
    def _lines(self) -> int:
        return self.quantized + bool(self.offset)


FORMATS = {
    f.name: f
    for f in (
        Format("q4g32s", 4, zero=8),
        Format("q4g32a", 4, offset="min"),
        Format("q8g32s", 8, zero=128),
        Format("f16", 16),
        Format("f32", 32),
        Format("q4k", 4, offset="min", run=8, two_level=True),
        Format("q5k", 5, offset="min", run=8, two_level=True),
        Format("q6k", 6, zero=32, run=8, two_level=True, parts=2),
        Format("q2k", 2, offset="min", run=8, two_level=True, parts=2),
        Format("q8g32a", 8, offset="min"),
        Format("q4g32z", 4, offset="zero"),
        Format("q4g64z", 4, offset="zero", run=2),
        Format("q4g128z", 4, offset="zero", run=4),
        Format("q4g64s", 4, zero=8, run=2),
        Format("q4g128s", 4, zero=8, run=4),
        Format("q8rs", 8, zero=128, run=0),
        Format("q5g32s", 5, zero=16),
        Format("q5g32a", 5, offset="min"),
        Format("q6g32s", 6, zero=32),
        Format("q2g64s", 2, zero=1, run=2),
        Format("q2g128s", 2, zero=1, run=4),
        Format("q2g256s", 2, zero=1, run=8),
        Format("q1g128a", 1, offset="min", run=4),
        Format("n4g32", 4, zero=8, run=0, two_level=True, values=NORMAL4, lift=4),
        Format("n4k", 4, zero=8, run=8, two_level=True, values=NORMAL4, lift=4),
        Format("n4g32s", 4, zero=8, values=NORMAL4),
        Format("f4g32s", 4, values=FLOAT4),
    )
}

# Floats can be rounded to these; the others hold what was quantized elsewhere.
ROUNDED = ("q4g32s", "q4g32a", "q8g32s", "q8rs", "f16", "f32")

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
    """Bytes of a packed matrix of `n` rows and `k` columns.

    Raises
    ------
    ValueError
        If rows of `k` columns do not consist of whole runs.
    """
    if k % fmt.columns:
        raise ValueError(f"expected k to be a multiple of {fmt.columns} for {fmt.name}, got {k}")
    runs = padded(k, GROUP) // GROUP // fmt.run_groups(k)
    return padded(n, PAIR_ROWS) // PAIR_ROWS * runs * fmt.run_bytes(k)


@dataclass(frozen=True)
class Parts:
    """What a quantized matrix of n rows and k columns is made of.

    With G columns that share a scale (32 * run, or 32 / parts if two-level, or k)::

        w = scale * (code - zero)                     q2g*s: 1; q4g*s: 8; q5g32s: 16; q6g32s: 32;
                                                      q8g32s, q8rs: 128
        w = scale * code + min                        q1g128a, q4g32a, q5g32a, q8g32a
        w = scale * (code - zero)                     q4g*z
        w = (d * scale) * code - dmin * min           q4k, q5k, q2k
        w = (d * scale) * (code - 32)                 q6k
        w = scale * values[code]                      n4g32s, f4g32s
        w = (d * scale) * (values[code] + lift)       n4g32, n4k

    Products are exact in float32; only the addition of a min rounds.

    Attributes
    ----------
    codes : uint8[n, k]
    scales : float16[n, ceil(k / G)], or int8 if two-level: in formats with a lift twice the scale,
        plus 1 where values are lifted
    mins : float16 or uint8 (zero points) or int8 (two-level), shape of scales, optional
    d, dmin : float16[n, k / 256], optional; float16[n, 1] of whole rows
    """

    codes: U8
    scales: npt.NDArray[Any]
    mins: npt.NDArray[Any] | None = None
    d: F16 | None = None
    dmin: F16 | None = None

    def dequantize(self, fmt: Format) -> F32:
        """The weights: float32[n, k]."""
        k = self.codes.shape[1]
        q = self.codes.astype(np.float32) - np.float32(fmt.zero)
        if fmt.values:
            q = np.array(fmt.values, np.float32)[self.codes]
        group = GROUP // fmt.parts if fmt.two_level else GROUP * fmt.run_groups(k)
        unit = GROUP * fmt.run_groups(k)
        times = _spread(self.d, unit, k) if fmt.two_level else np.float32(1)
        factors = self.scales
        if fmt.lift:
            q += np.float32(fmt.lift) * _spread(factors & 1, group, k)
            factors = factors >> 1
        scale = times * _spread(factors, group, k)
        w: F32 = scale * q
        if not fmt.offset:
            return w
        mins = _spread(self.mins, group, k)
        if fmt.offset == "zero":
            w = scale * (q - mins)
        elif fmt.two_level:
            w -= _spread(self.dmin, unit, k) * mins
        else:
            w += mins
        return w


def pack_parts(parts: Parts, fmt: Format) -> U8:
    """Lay quantized weights out as the kernels read them: uint8[packed_bytes(fmt, n, k)]."""
    n, k = parts.codes.shape
    groups, pairs = padded(k, GROUP) // GROUP, padded(n, PAIR_ROWS) // PAIR_ROWS
    out = np.zeros(packed_bytes(fmt, n, k), np.uint8)
    run = fmt.run_groups(k)
    runs = out.reshape(pairs, groups // run, fmt.run_bytes(k))
    own = runs[..., : run * fmt.pair_group_bytes]
    own = own.reshape(pairs, groups // run, run, fmt.pair_group_bytes)
    codes = np.zeros((pairs * PAIR_ROWS, groups * GROUP), np.uint8)
    codes[:n] = fmt.zero
    codes[:n, :k] = parts.codes
    tiles = _tiles(codes, fmt)
    if fmt.row_panels:  # all tiles A of a pair, then all tiles B
        tiles = tiles.reshape(pairs, groups, 2, -1).transpose(0, 2, 1, 3)
    own[..., : 2 * fmt.tile_bytes] = tiles.reshape(*own.shape[:3], -1)
    if fmt.two_level:
        assert parts.d is not None
        shared = [parts.d] if parts.dmin is None else [parts.d, -parts.dmin]
        factors = [parts.scales] if parts.mins is None else [parts.scales, parts.mins]
        rows = [_rows_last(f.view(np.int8), run * fmt.parts) for f in factors]
        split = [f.reshape(pairs, -1, run, fmt.parts, PAIR_ROWS) for f in rows]
        own[..., 2 * fmt.tile_bytes :] = (
            np.concatenate(split, 3).reshape(*own.shape[:3], -1).view(np.uint8)
        )
        if fmt.half_line:
            own[..., 1::2, :] = np.roll(own[..., 1::2, :], fmt.half_line, axis=-1)
    else:
        shared = [parts.scales]
        if parts.mins is not None:
            stored = -parts.mins.astype(np.float16) if fmt.offset == "zero" else parts.mins
            shared.append(stored)
    lines = np.concatenate([_rows_last(line, 1) for line in shared], -2)
    lines = lines.reshape(pairs, groups // run, -1)
    runs[..., -2 * PAIR_ROWS * len(shared) :] = np.ascontiguousarray(lines).view(np.uint8)
    return out


def unpack_parts(packed: U8, n: int, k: int, fmt: Format) -> Parts:
    """What a packed matrix is made of (inverse of `pack_parts`)."""
    groups, run = padded(k, GROUP) // GROUP, fmt.run_groups(k)
    runs = packed.reshape(-1, groups // run, fmt.run_bytes(k))
    own = runs[..., : run * fmt.pair_group_bytes].reshape(len(runs), groups, fmt.pair_group_bytes)
    if fmt.half_line:
        own = own.copy()
        own[:, 1::2] = np.roll(own[:, 1::2], -fmt.half_line, axis=-1)
    tiles = np.ascontiguousarray(own[..., : 2 * fmt.tile_bytes])
    if fmt.row_panels:
        tiles = tiles.reshape(len(runs), 2, groups, -1).transpose(0, 2, 1, 3)
        tiles = np.ascontiguousarray(tiles).reshape(len(runs), groups, -1)
    codes = _codes(tiles, fmt)[:n, :k]
    lines = np.ascontiguousarray(runs[..., -2 * PAIR_ROWS * (1 + bool(fmt.offset)) :])
    halves = _rows_first(lines.view(np.float16).reshape(*runs.shape[:2], -1, PAIR_ROWS), n)
    first, second = halves[..., 0], halves[..., 1] if fmt.offset else None
    if not fmt.two_level:
        if fmt.offset == "zero" and second is not None:
            second = (-second).astype(np.uint8)
        return Parts(codes, first, second)
    factors = np.ascontiguousarray(own[..., 2 * fmt.tile_bytes :]).view(np.int8)
    rows = _rows_first(factors.reshape(len(runs), groups, -1, PAIR_ROWS), n)
    scales = rows[..., : fmt.parts].reshape(n, -1)
    if second is None:
        return Parts(codes, scales, None, first)
    return Parts(codes, scales, rows[..., fmt.parts :].reshape(n, -1), first, -second)


def quantize_groups(w: F32, fmt: Format) -> tuple[npt.NDArray[Any], F32, F32]:
    """Round-to-nearest quantization of groups.

    Parameters
    ----------
    w : float32[..., 32]
        Groups of weights, or of any other number that share a scale.

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


def round_to(w: F32, fmt: Format) -> Parts:
    """Quantized weights of float32[n, k]: groups of 32 columns, the last one as long as it is; or
    whole rows.

    Raises
    ------
    ValueError
        If a weight or its scale is too large for float16.
    """
    whole = w.shape[1] // GROUP * GROUP if fmt.run else 0
    pieces = [w[:, :whole].reshape(len(w), -1, GROUP)] if whole else []
    if whole < w.shape[1]:
        pieces.append(w[:, None, whole:])
    found = [quantize_groups(piece, fmt) for piece in pieces]
    codes = np.concatenate([q.reshape(len(w), -1) for q, _, _ in found], 1)
    if fmt.bits == 8:
        codes = codes.view(np.uint8) ^ np.uint8(128)
    scales = np.concatenate([scale for _, scale, _ in found], 1).astype(np.float16)
    mins = np.concatenate([minimum for _, _, minimum in found], 1).astype(np.float16)
    return Parts(codes, scales, mins if fmt.offset else None)


def pack(w: F32, fmt: Format) -> U8:
    """Round float32[n, k] to one of `ROUNDED` and lay it out as the kernels read it.

    Returns
    -------
    uint8[packed_bytes(fmt, n, k)]
    """
    if fmt.quantized:
        return pack_parts(round_to(w, fmt), fmt)
    n, k = w.shape
    full = np.zeros((padded(n, PAIR_ROWS), padded(k, GROUP)), np.float32)
    full[:n, :k] = w
    stored = _half(full).astype(np.float16) if fmt.name == "f16" else full
    tiles = stored.reshape(-1, 2, LANES, full.shape[1] // GROUP, GROUP).transpose(0, 3, 1, 4, 2)
    return np.ascontiguousarray(tiles).reshape(-1).view(np.uint8)


def unpack(packed: U8, n: int, k: int, fmt: Format) -> F32:
    """The float32[n, k] weights of a packed matrix."""
    if fmt.quantized:
        return unpack_parts(packed, n, k, fmt).dequantize(fmt)
    groups = padded(k, GROUP) // GROUP
    dtype = np.float16 if fmt.name == "f16" else np.float32
    tiles = packed.view(dtype).astype(np.float32).reshape(-1, groups, 2, GROUP, LANES)
    rows = tiles.transpose(0, 2, 4, 1, 3).reshape(-1, groups * GROUP)
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


def quantize_row_activations(x: F32, kind: str = "a8o16g32") -> tuple[npt.NDArray[np.int32], F32]:
    """Integers and one float32 scale per row, for weights whose rows have one; x is finite.

    Groups of 32 columns that stand out of their row have 16 bits: in `a8g32` those whose largest
    magnitude is more than four times the median of the groups', in `a8o16g32` more than 15/8 of
    it, in `a16g32` all. The largest of the others becomes 127, unless the row's largest needs a
    coarser scale.

    Parameters
    ----------
    x : float32[m, k], k a multiple of 32
    kind : {"a8o16g32", "a16g32", "a8g32"}

    Returns
    -------
    q : int32[m, k], |q| <= ACTIVATION_LIMIT; scale : float32[m]
    """
    groups = x.reshape(x.shape[0], -1, GROUP)
    largest = np.abs(groups).max(-1)
    wide = np.full(largest.shape, True)
    if kind != "a16g32":
        wide = _stands_out(largest, 4.0 if kind == "a8g32" else 1.875)
    most = largest.max(-1)
    fine = np.where(wide, np.float32(0), largest).max(-1)
    unit = np.maximum(fine / np.float32(127), most / np.float32(ACTIVATION_LIMIT))
    zero = most < np.float32(1e-20)
    inverse = np.where(zero, np.float32(0), np.float32(1) / np.where(zero, np.float32(1), unit))
    steps = np.where(wide, np.float32(ACTIVATION_LIMIT), np.float32(127))[..., None]
    q = np.rint(np.clip(groups * inverse[:, None, None], -steps, steps)).astype(np.int32)
    return q.reshape(x.shape), np.where(zero, np.float32(0), unit)


def _stands_out(largest: F32, times: float = 1.875) -> npt.NDArray[np.bool_]:
    """Groups whose largest magnitude is more than so many times the row's median, which counts
    cut to the upper 16 bits of a float32 and is the least value that more than half of the groups
    stay within.
    """
    upper = np.sort(largest.view(np.int32) >> 16, axis=-1)
    median = upper[:, largest.shape[1] // 2] << 16
    cut = np.float32(times) * median.astype(np.int32).view(np.float32)
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


def _spread(values: npt.NDArray[Any] | None, group: int, k: int) -> F32:
    """A value for each of k columns, from one for each group."""
    assert values is not None
    spread: F32 = np.repeat(values.astype(np.float32), group, axis=1)[:, :k]
    return spread


def _rows_last(values: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """[n, runs * count] -> [pairs, runs, count, row of the pair], rows filled up with zeros."""
    full = np.zeros((padded(len(values), PAIR_ROWS), values.shape[1]), values.dtype)
    full[: len(values)] = values
    rows = full.reshape(-1, PAIR_ROWS, values.shape[1] // count, count)
    lines: npt.NDArray[Any] = rows.transpose(0, 2, 3, 1)
    return lines


def _rows_first(lines: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    """[pairs, runs, count, row of the pair] -> [n, runs, count]"""
    rows = lines.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(rows.reshape(-1, *rows.shape[2:])[:n])


def _tiles(codes: U8, fmt: Format) -> U8:
    """uint8[pairs * 32, groups * 32] -> [pairs, groups, bytes of two tiles]"""
    rows = codes.reshape(-1, 2, LANES, codes.shape[1] // GROUP, 8, 4)
    quads = rows.transpose(0, 3, 1, 4, 2, 5)  # [pair, group, tile, four columns, row, column]
    if fmt.bits == 8:
        return np.ascontiguousarray(quads).reshape(*quads.shape[:2], -1)
    planes = [] if fmt.bits < 4 else [(quads[:, :, :, :4] & 15) | (quads[:, :, :, 4:] << 4)]
    if fmt.bits in (1, 5):
        bits = (quads >> (fmt.bits - 1)) << np.arange(8, dtype=np.uint8)[:, None, None]
        planes.append(np.bitwise_or.reduce(bits, axis=3, keepdims=True))
    elif fmt.bits != 4:
        upper = (quads if fmt.bits == 2 else quads >> 4).reshape(*quads.shape[:3], 2, 4, LANES, 4)
        shifted = upper << (2 * np.arange(4, dtype=np.uint8))[:, None, None]
        planes.append(np.bitwise_or.reduce(shifted, axis=4))
    return np.concatenate(planes, axis=3).reshape(*quads.shape[:2], -1)


def _codes(tiles: U8, fmt: Format) -> U8:
    """[pairs, groups, bytes of two tiles] -> uint8[pairs * 32, groups * 32]"""
    lines = tiles.reshape(*tiles.shape[:2], 2, -1, LANES, 4)
    quads: npt.NDArray[Any]
    if fmt.bits == 8:
        quads = lines
    elif fmt.bits == 1:
        quads = lines >> np.arange(8, dtype=np.uint8)[:, None, None] & 1
    else:
        nibbles, upper = lines[:, :, :, :4], lines[:, :, :, 0 if fmt.bits == 2 else 4 :]
        quads = np.concatenate([nibbles & 15, nibbles >> 4], axis=3)
        if fmt.bits == 5:
            quads |= (upper >> np.arange(8, dtype=np.uint8)[:, None, None] & 1) << 4
        elif fmt.bits != 4:
            fields = upper[:, :, :, :, None] >> (2 * np.arange(4, dtype=np.uint8))[:, None, None]
            pairs = (fields & 3).reshape(*lines.shape[:3], 8, LANES, 4)
            quads = pairs if fmt.bits == 2 else quads | pairs << 4
    rows = quads.transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(rows).reshape(-1, lines.shape[1] * GROUP)
