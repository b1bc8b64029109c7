"""GGUF types with codebooks: their values, and the wider formats that take them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_writer import write_gguf

from slmq import CheckpointError
from slmq.checkpoint import open_checkpoint
from slmq.checkpoint.foreign.ggml_blocks import dequantize
from slmq.checkpoint.foreign.ggml_codebooks import CODEBOOKS
from slmq.checkpoint.foreign.weight import ALL_VALUES, BLOCK_FORMATS, SCALES_ROUND, WIDENED
from slmq.checkpoint.gguf import BLOCK_TYPES
from slmq.formats import FORMATS
from slmq.weights.reader import WeightReader
from slmq.weights.rows import Rows

N, K = 40, 512
KINDS = list(CODEBOOKS)
PLACE_OF_D = {"tq1_0": 52, "tq2_0": 64}


def blocks_of(kind: str, seed: int = 3) -> Any:
    """Random blocks with scales as weights have them: uint8[N, bytes]."""
    size, nbytes, _ = CODEBOOKS[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (N * K // size, nbytes), dtype=np.uint8)
    if kind == "mxfp4":
        blocks[:, 0] = rng.integers(105, 140, len(blocks))
    elif kind == "nvfp4":
        blocks[:, :4] = rng.integers(0, 0x7F, (len(blocks), 4))
        blocks[0, :4] = (0, 1, 7, 0x7F)
    elif kind == "iq1_m":
        blocks[:, 49::2] &= 0x0F  # a word's upper four bits are a quarter of d
        blocks[:, 53] |= 0x80
        blocks[:, 55] |= 0x20  # 0x28..: about 0.03
    else:
        at = PLACE_OF_D.get(kind, 0)
        d = (rng.uniform(0.001, 0.1, len(blocks)) * rng.choice([-1, 1], len(blocks))).astype("<f2")
        blocks[:, at : at + 2] = d.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(N, -1)


def values_of(kind: str, blocks: Any) -> Any:
    """What the `gguf` package, or the type's definition, makes of them: float32[N, K]."""
    if kind == "q2_0":
        codes = blocks.reshape(-1, 18)
        d = codes[:, :2].copy().view("<f2").astype(np.float32)
        rows = codes[:, 2:].tolist()
        ones = [[(byte >> 2 * j & 3) - 1.0 for byte in row for j in range(4)] for row in rows]
        return (np.array(ones).reshape(-1, 64) * d).reshape(N, K).astype(np.float32)
    if kind != "q1_0":
        return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind.upper()])
    one = blocks.reshape(-1, 18)
    d = one[:, :2].copy().view("<f2").astype(np.float32)
    signs = np.array(
        [[-1.0, 1.0][byte >> j & 1] for row in one[:, 2:] for byte in row for j in range(8)]
    )
    return (signs.reshape(-1, 128) * d).reshape(N, K).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_values(kind: str) -> None:
    blocks = blocks_of(kind)
    want = values_of(kind, blocks)
    assert np.isfinite(want).all()
    assert np.array_equal(dequantize(kind, blocks.reshape(-1), (N, K)), want)
    assert np.array_equal(dequantize(kind, blocks.reshape(-1), (N, K), 5, 9), want[5:9])


def test_every_type_has_the_size_that_headers_are_checked_with() -> None:
    known = {block.name: (block.size, block.nbytes) for block in BLOCK_TYPES.values()}
    assert {kind: (size, nbytes) for kind, (size, nbytes, _) in CODEBOOKS.items()} == {
        kind: known[kind] for kind in KINDS
    }
    assert set(WIDENED) == set(KINDS) - set(BLOCK_FORMATS)


@pytest.mark.parametrize("kind", WIDENED)
def test_a_wider_format_takes_them(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmq.checkpoint.foreign.chunks.CHUNK", 7 * K)
    blocks = blocks_of(kind)
    values = values_of(kind, blocks)
    path = tmp_path / "w.gguf"
    write_gguf(path, {"general.architecture": "llama"}, dict.fromkeys("wv", (blocks, kind)))
    order = np.random.default_rng(1).permutation(N).astype(np.int32)
    with caplog.at_level(logging.WARNING, "slmq"), open_checkpoint(path) as checkpoint:
        reader = WeightReader(checkpoint, memory="small", threads=2)
        matrix = reader.linear("w", N, K).matrix
        turned = reader.linear("v", N, K, order=order).matrix
        part = reader.linear("v", 7, K, rows=Rows(30, N)).matrix
    fmt, change = WIDENED[kind]
    got = matrix.dequantize(0, N)
    assert matrix.format == fmt
    assert np.array_equal(turned.dequantize(0, N), got[order])
    assert np.array_equal(part.dequantize(0, 7), got[30:37])
    if change is None:  # as many bits as in the file
        assert not caplog.messages
    else:
        assert [message.count(f"type {kind} take") for message in caplog.messages] == [1]
        assert f"{FORMATS[fmt].bits_per_weight:.1f} bits each here ({fmt})" in caplog.text
        assert change in caplog.text
    error = np.abs(got - values)
    if change in (ALL_VALUES, None):
        assert np.array_equal(got, values)
    elif change == SCALES_ROUND:
        assert 0 < error.max() < np.inf
        assert (error <= np.abs(values) * 2.0**-11).all()
    else:
        largest = np.abs(values).reshape(N, -1, 32).max(axis=2)
        assert error.max() > 0
        assert (error.reshape(N, -1, 32).max(axis=2) <= largest / 250).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_format_that_is_asked_for(kind: str, tmp_path: Path) -> None:
    blocks = blocks_of(kind)
    write_gguf(tmp_path / "w.gguf", {"general.architecture": "llama"}, {"w": (blocks, kind)})
    with open_checkpoint(tmp_path / "w.gguf") as checkpoint:
        matrix = WeightReader(checkpoint, format="f32", memory="small").linear("w", N, K).matrix
    assert np.array_equal(matrix.dequantize(0, N), values_of(kind, blocks))


@pytest.mark.parametrize("kind", ["iq4_xs", "iq3_s", "tq2_0", "iq2_s"])
def test_a_scale_that_is_not_finite_is_refused(kind: str, tmp_path: Path) -> None:
    blocks = blocks_of(kind)
    at = PLACE_OF_D.get(kind, 0)
    blocks[3, at : at + 2] = np.array([np.inf], "<f2").view(np.uint8)
    write_gguf(tmp_path / "w.gguf", {"general.architecture": "llama"}, {"w": (blocks, kind)})
    with (
        open_checkpoint(tmp_path / "w.gguf") as checkpoint,
        pytest.raises(CheckpointError, match="finite"),
    ):
        WeightReader(checkpoint, memory="small").linear("w", N, K)


def test_nvfp4_with_a_number_beside_it(tmp_path: Path) -> None:
    """llama.cpp multiplies by it behind the product; without it values are as they are."""
    blocks = blocks_of("nvfp4")
    want = values_of("nvfp4", blocks) * np.float32(0.0123)
    for factor, good in ((np.float32([0.0123]), True), (np.float32([1, 2]), False)):
        tensors = {"w.weight": (blocks, "nvfp4"), "w.scale": factor}
        write_gguf(path := tmp_path / "w.gguf", {"general.architecture": "llama"}, tensors)
        with open_checkpoint(path) as checkpoint:
            if not good:
                with pytest.raises(CheckpointError, match=r"w.scale.*expected a finite float32"):
                    WeightReader(checkpoint, memory="small")
                continue
            reader = WeightReader(checkpoint, format="f32", memory="small")
            assert np.array_equal(reader.linear("w.weight", N, K).matrix.dequantize(0, N), want)
            matrix = WeightReader(checkpoint, memory="small").linear("w.weight", N, K).matrix
        largest = np.abs(want).reshape(N, -1, 32).max(axis=2)
        error = np.abs(matrix.dequantize(0, N) - want).reshape(N, -1, 32).max(axis=2)
        assert (error <= largest / 250).all()
