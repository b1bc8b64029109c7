"""GGUF types of 5 bits and K-quants: kept bit by bit, or decoded and rounded as asked for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from ggml_packer import SIGNED_SCALES, SIZES, WITH_MIN, Block, block_bytes, random_tensor
from gguf_writer import write_gguf
from kernel_cases import pack, same_bits

from slmq import CheckpointError
from slmq.checkpoint import open_checkpoint
from slmq.checkpoint.foreign.ggml_blocks import block_integers
from slmq.checkpoint.foreign.weight import BLOCK_FORMATS, decode, foreign_weights
from slmq.formats import FORMATS, Parts, pack_parts
from slmq.weights.reader import WeightReader
from slmq.weights.rows import Rows

META = {"general.architecture": "llama"}
KINDS = list(BLOCK_FORMATS)
N, K = 40, 512


def file_of(kind: str, path: Path, blocks: Any = None) -> tuple[Path, Any]:
    """A file with twice the same tensor [40, 512], "w" and "v", and its values."""
    if blocks is None:
        blocks = random_tensor(kind, N, K, np.random.default_rng(5))
    write_gguf(path, META, dict.fromkeys("wv", (blocks, kind)))
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind.upper()])
    return path, values


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_value_in_one_piece_or_many(
    kind: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmq.checkpoint.foreign.chunks.CHUNK", 7 * K)
    path, values = file_of(kind, tmp_path / "w.gguf")
    with open_checkpoint(path) as checkpoint:
        tensor = foreign_weights(checkpoint)["w"]
        assert tensor.parts == ("w",)
        assert same_bits(decode(tensor, threads), values)
        assert same_bits(decode(tensor, threads, (3, 30)), values[3:30])


@pytest.mark.parametrize("kind", KINDS)
def test_kept_without_loss(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, values = file_of(kind, tmp_path / "w.gguf")
    order = np.random.default_rng(1).permutation(N).astype(np.int32)
    with caplog.at_level(logging.WARNING, "slmq"), open_checkpoint(path) as checkpoint:
        reader = WeightReader(checkpoint, memory="small", threads=2)
        got = reader.linear("w", N, K).matrix
        turned = reader.linear("v", N, K, order=order).matrix
        part = reader.linear("v", 7, K, rows=Rows(30, N)).matrix
    assert got.format == BLOCK_FORMATS[kind]
    assert np.array_equal(got.dequantize(0, N), values)
    assert np.array_equal(turned.dequantize(0, N), values[order])
    assert np.array_equal(part.dequantize(0, 7), values[30:37])
    assert not caplog.messages
    assert dict(reader.packed_formats) == {got.format: 2 * got.nbytes + part.nbytes}


@pytest.mark.parametrize("kind", KINDS)
def test_the_packed_bytes_are_those_of_the_specification(kind: str, tmp_path: Path) -> None:
    path, _ = file_of(kind, tmp_path / "w.gguf")
    fmt = FORMATS[BLOCK_FORMATS[kind]]
    with open_checkpoint(path) as checkpoint:
        found = block_integers(kind, checkpoint.raw("w"), (N, K))
        packed = WeightReader(checkpoint, memory="small").linear("w", N, K).matrix.packed
    codes = found.codes
    if not fmt.values:
        codes = (codes.astype(np.int16) - found.zero + fmt.zero).astype(np.uint8)
    if fmt.two_level:
        scales = 2 * found.scales if fmt.lift else found.scales
        parts = Parts(codes, scales, found.mins, found.d.astype(np.float16), found.dmin)
    else:
        parts = Parts(codes, found.d, found.dmin)
    assert np.array_equal(packed, pack_parts(parts, fmt))


# Scales of all sizes: zeros of both signs, subnormal, the largest, negative.
HALVES = [0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 0.01, -3.3, 65504.0, -65504.0]


@pytest.mark.parametrize("kind", KINDS)
def test_extremes_are_kept(kind: str, tmp_path: Path) -> None:
    """All codes lowest and highest, all scales and mins lowest and highest, with every d."""
    columns, _, bits, groups, largest, largest_min = SIZES[kind]
    low, high = SIGNED_SCALES.get(kind, (0, largest))
    blocks = [
        Block([code] * columns, np.float16(d), [scale] * groups, np.float16(dmin), [least] * groups)
        for code in (0, (1 << bits) - 1)
        for scale in sorted({low, high})
        for least in sorted({0, largest_min})
        for d in HALVES
        for dmin in (HALVES if kind in WITH_MIN else [0.0])
    ]
    stored = np.frombuffer(b"".join(block_bytes(kind, b) for b in blocks), np.uint8)
    path, values = file_of(kind, tmp_path / "w.gguf", stored.reshape(len(blocks), -1))
    with open_checkpoint(path) as checkpoint:
        reader = WeightReader(checkpoint, memory="small")
        got = reader.linear("w", *values.shape).matrix.dequantize(0, len(blocks))
    assert np.array_equal(got, values)


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("iq4_xs", 4.3125),
        ("iq4_nl", 4.5),
        ("q2_k", 3.25),
        ("q3_k", 6.75),
        ("q4_k", 5.0),
        ("q5_k", 5.75),
        ("q6_k", 6.75),
    ],
)
def test_bits_of_a_weight_in_memory(kind: str, most: float, tmp_path: Path) -> None:
    path, _ = file_of(
        kind, tmp_path / "w.gguf", random_tensor(kind, 64, K, np.random.default_rng(1))
    )
    with open_checkpoint(path) as checkpoint:
        got = WeightReader(checkpoint, memory="small").linear("w", 64, K).matrix
    assert got.nbytes * 8 / (64 * K) <= most


@pytest.mark.parametrize("format", ["int4", "int8", "q4g32s", "f16", "f32"])
@pytest.mark.parametrize("kind", ["q4_k", "q5_0", "iq4_nl"])
def test_what_is_asked_for_is_made_of_the_values(
    kind: str, format: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, values = file_of(kind, tmp_path / "w.gguf")
    order = np.random.default_rng(1).permutation(N).astype(np.int32)
    with open_checkpoint(path) as checkpoint:
        reader = WeightReader(checkpoint, format=format, memory="small")
        got = reader.linear("w", N, K, order=order).matrix
    assert np.array_equal(got.packed, pack(values[order], got.format).packed)
    assert not caplog.messages


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E01])
def test_scales_that_are_not_finite(kind: str, bits: int, tmp_path: Path) -> None:
    blocks = random_tensor(kind, N, K, np.random.default_rng(5)).copy()
    at = {"q2_k": 80, "q3_k": 108, "q6_k": 208}.get(kind, 0) + SIZES[kind][1]  # second block
    blocks[N - 1, at : at + 2] = np.array([bits], "<u2").view(np.uint8)
    path, _ = file_of(kind, tmp_path / "w.gguf", blocks)
    with open_checkpoint(path) as checkpoint:
        reader = WeightReader(checkpoint, memory="small")
        with pytest.raises(CheckpointError, match="finite weights, found NaN or inf") as caught:
            reader.linear("w", N, K)
    assert caught.value.tensor == "w"
    assert caught.value.file == str(path)


def test_values_beyond_float16(tmp_path: Path) -> None:
    blocks = random_tensor("q6_k", N, K, np.random.default_rng(5), size=60000.0 * 32)
    path, values = file_of("q6_k", tmp_path / "w.gguf", blocks)
    assert np.abs(values).max() > 65520
    with open_checkpoint(path) as checkpoint:
        with pytest.raises(CheckpointError, match=r'use format="f32"'):
            WeightReader(checkpoint, format="f16", memory="small").linear("w", N, K)
        for wanted in (None, "f32"):
            got = WeightReader(checkpoint, format=wanted, memory="small").linear("w", N, K).matrix
            assert np.array_equal(got.dequantize(0, N), values)


def test_formats_that_nothing_is_rounded_to(tmp_path: Path) -> None:
    path, _ = file_of("q4_k", tmp_path / "w.gguf")
    message = "expected a format to round to, one of int4, int8, .*; q5k only holds weights"
    with open_checkpoint(path) as checkpoint, pytest.raises(ValueError, match=message):
        WeightReader(checkpoint, format="q5k", memory="small")
