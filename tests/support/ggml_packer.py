"""GGUF blocks written by hand from known integers, byte by byte: the inverse of the reader.

Slow and plain on purpose. It follows the structs of ggml (block_q4_K and so on), not our decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SIZES = {
    # type: (columns, bytes, bits of a code, groups, largest scale, largest min)
    "q4_0": (32, 18, 4, 1, 0, 0),
    "q4_1": (32, 20, 4, 1, 0, 0),
    "q5_0": (32, 22, 5, 1, 0, 0),
    "q5_1": (32, 24, 5, 1, 0, 0),
    "q8_0": (32, 34, 8, 1, 0, 0),
    "iq4_nl": (32, 18, 4, 1, 0, 0),
    "iq4_xs": (256, 136, 4, 8, 31, 0),
    "q2_k": (256, 84, 2, 16, 15, 15),
    "q3_k": (256, 110, 3, 16, 31, 0),
    "q4_k": (256, 144, 4, 8, 63, 63),
    "q5_k": (256, 176, 5, 8, 63, 63),
    "q6_k": (256, 210, 6, 16, 127, 0),
}
SIGNED_SCALES = {"iq4_xs": (-32, 31), "q3_k": (-32, 31), "q6_k": (-128, 127)}
WITH_MIN = ("q4_1", "q5_1", "q2_k", "q4_k", "q5_k")


@dataclass
class Block:
    """What one block stores."""

    codes: list[int]
    d: np.float16
    scales: list[int]
    dmin: np.float16
    mins: list[int]


def random_block(kind: str, rng: np.random.Generator, d: float, dmin: float) -> Block:
    """Random codes and scales over their whole range, with these float16 scales."""
    columns, _, bits, groups, largest, largest_min = SIZES[kind]
    low, high = SIGNED_SCALES.get(kind, (0, largest))
    return Block(
        rng.integers(0, 1 << bits, columns).tolist(),
        np.float16(d),
        rng.integers(low, high + 1, groups).tolist(),
        np.float16(dmin),
        rng.integers(0, largest_min + 1, groups).tolist(),
    )


def _half(value: np.float16) -> list[int]:
    return list(np.array([value], "<f2").tobytes())


def _nibbles(codes: list[int], run: int) -> list[int]:
    """Low nibbles: the first `run` columns of every 2 * run; high nibbles: the next ones."""
    out = []
    for begin in range(0, len(codes), 2 * run):
        for j in range(run):
            out.append(codes[begin + j] & 15 | (codes[begin + run + j] & 15) << 4)
    return out


def _pairs_of_bits(values: list[int]) -> list[int]:
    """Byte l of 128 columns holds two bits of columns l, l + 32, l + 64 and l + 96."""
    out = []
    for begin in range(0, 256, 128):
        for j in range(32):
            parts = [(values[begin + 32 * i + j] & 3) << 2 * i for i in range(4)]
            out.append(sum(parts))
    return out


def _bit_columns(values: list[int]) -> list[int]:
    """Bit i of byte l is the bit of column 32 i + l."""
    return [sum((values[32 * i + j] & 1) << i for i in range(8)) for j in range(32)]


def _k_scales(scales: list[int], mins: list[int]) -> list[int]:
    """The twelve bytes of Q4_K and Q5_K."""
    out = [0] * 12
    for j in range(4):
        out[j] = scales[j] | (scales[j + 4] >> 4) << 6
        out[j + 4] = mins[j] | (mins[j + 4] >> 4) << 6
        out[j + 8] = scales[j + 4] & 15 | (mins[j + 4] & 15) << 4
    return out


def _q3_scales(scales: list[int]) -> list[int]:
    """Sixteen scales, plus 32, of six bits in twelve bytes."""
    plus = [s + 32 for s in scales]
    out = [plus[j] & 15 | (plus[j + 8] & 15) << 4 for j in range(8)]
    return out + [sum((plus[4 * i + j] >> 4) << 2 * i for i in range(4)) for j in range(4)]


def _iq4_scales(scales: list[int]) -> list[int]:
    """Eight scales, plus 32, of six bits: the upper two of all, then the lower four."""
    plus = [s + 32 for s in scales]
    upper = sum((s >> 4) << 2 * j for j, s in enumerate(plus))
    return [upper & 255, upper >> 8] + [
        plus[j] & 15 | (plus[j + 1] & 15) << 4 for j in range(0, 8, 2)
    ]


def block_bytes(kind: str, b: Block) -> bytes:
    """One block as ggml stores it."""
    c, d, dmin = b.codes, _half(b.d), _half(b.dmin)
    fifth = [sum((c[i + j] >> 4 & 1) << j for j in range(8)) for i in range(0, 32, 8)]
    layouts: dict[str, Any] = {
        "q4_0": lambda: d + _nibbles(c, 16),
        "iq4_nl": lambda: d + _nibbles(c, 16),
        "iq4_xs": lambda: d + _iq4_scales(b.scales) + _nibbles(c, 16),
        "q4_1": lambda: d + dmin + _nibbles(c, 16),
        "q5_0": lambda: d + fifth + _nibbles(c, 16),
        "q5_1": lambda: d + dmin + fifth + _nibbles(c, 16),
        "q8_0": lambda: d + [x ^ 128 for x in c],
        "q2_k": lambda: [s | m << 4 for s, m in zip(b.scales, b.mins, strict=True)]
        + _pairs_of_bits(c) + d + dmin,
        "q3_k": lambda: _bit_columns([x >> 2 for x in c]) + _pairs_of_bits(c)
        + _q3_scales(b.scales) + d,
        "q4_k": lambda: d + dmin + _k_scales(b.scales, b.mins) + _nibbles(c, 32),
        "q5_k": lambda: d + dmin + _k_scales(b.scales, b.mins)
        + _bit_columns([x >> 4 for x in c]) + _nibbles(c, 32),
        "q6_k": lambda: _nibbles(c, 64) + _pairs_of_bits([x >> 4 for x in c])
        + [s & 255 for s in b.scales] + d,
    }  # fmt: skip
    out = bytes(layouts[kind]())
    assert len(out) == SIZES[kind][1]
    return out


def random_tensor(
    kind: str, n: int, k: int, rng: np.random.Generator, size: float = 0.02
) -> npt.NDArray[np.uint8]:
    """Blocks of weights of about this size, drawn from 24 of them: uint8[n, bytes of a row]."""
    columns, nbytes, bits, _, largest, largest_min = SIZES[kind]
    low = SIGNED_SCALES.get(kind, (0, 0))[0]
    steps = (1 << bits - 1) * max(largest, -low, 1)
    blocks = []
    for _ in range(24):
        d = size / steps * rng.uniform(0.5, 2) * rng.choice([-1, 1])
        # The middle of the codes is near zero, as in weights.
        middle = ((1 << bits) - 1) / 2 * d * max(largest, 1) / max(largest_min, 1)
        dmin = 0.0 if kind not in WITH_MIN else middle if largest_min else -middle
        blocks.append(block_bytes(kind, random_block(kind, rng, d, dmin)))
    stored = np.frombuffer(b"".join(blocks), np.uint8).reshape(24, nbytes)
    return stored[rng.integers(0, 24, n * (k // columns))].reshape(n, -1)
