"""Weights that are decoded before they are packed: GGUF types without a packed format of ours."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from ggml_packer import SIZES, random_tensor
from gguf_writer import write_gguf
from kernel_cases import pack, same_bits

from slmq import CheckpointError
from slmq.checkpoint import open_checkpoint
from slmq.checkpoint.decoded import decode, decoded_tensors
from slmq.checkpoint.ggml_blocks import QUANTIZED_TYPES
from slmq.weights import KEPT, WeightReader

META = {"general.architecture": "llama"}
DECODED = [kind for kind in QUANTIZED_TYPES if kind not in KEPT]
LOSSLESS = ["q5_0", "iq4_nl"]
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
@pytest.mark.parametrize("kind", DECODED)
def test_every_value_in_one_piece_or_many(
    kind: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmq.checkpoint.decoded.CHUNK", 7 * K)
    path, values = file_of(kind, tmp_path / "w.gguf")
    with open_checkpoint(path) as checkpoint:
        tensor = decoded_tensors(checkpoint, KEPT)["w"]
        assert tensor.parts == ("w",)
        got = decode(tensor, "f32", threads).view(np.float32).reshape(N, K)
        assert same_bits(got, values)
        assert tensor.lossless == ("q8_0" if kind in LOSSLESS else None)
        if tensor.lossless:
            blocks = decode(tensor, "q8_0", threads).reshape(N, -1)
            q8_0 = gguf.GGMLQuantizationType.Q8_0
            assert np.array_equal(gguf.quants.dequantize(blocks, q8_0), values)


@pytest.mark.parametrize("kind", DECODED)
def test_kept_without_loss_or_rounded_with_a_warning(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, values = file_of(kind, tmp_path / "w.gguf")
    with caplog.at_level(logging.WARNING, "slmq"), open_checkpoint(path) as checkpoint:
        reader = WeightReader(checkpoint, memory="small", threads=2)
        got = reader.linear("w", N, K).matrix
        reader.linear("v", N, K)
    if kind in LOSSLESS:
        assert got.format == "q8g32s"
        assert np.array_equal(got.dequantize(0, N), values)
        assert not caplog.messages
    else:
        assert got.format == "f16"
        assert same_bits(got.dequantize(0, N), values.astype(np.float16).astype(np.float32))
        assert [kind in message for message in caplog.messages] == [True]
        assert str(path) in caplog.text
    assert dict(reader.packed_formats) == {got.format: 2 * got.nbytes}


@pytest.mark.parametrize("quant", ["int4", "int8", "q4g32s", "f16", "f32"])
@pytest.mark.parametrize("kind", ["q4_k", "q5_0"])
def test_what_is_asked_for_is_made_of_the_values(
    kind: str, quant: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, values = file_of(kind, tmp_path / "w.gguf")
    order = np.random.default_rng(1).permutation(N).astype(np.int32)
    with open_checkpoint(path) as checkpoint:
        reader = WeightReader(checkpoint, quant=quant, memory="small")
        got = reader.linear("w", N, K, order=order).matrix
    if (kind, quant) == ("q5_0", "int8"):  # the format that holds it as it is
        assert np.array_equal(got.dequantize(0, N), values[order])
    else:
        assert np.array_equal(got.packed, pack(values[order], got.format).packed)
    assert not caplog.messages


@pytest.mark.parametrize("kind", DECODED)
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
        with pytest.raises(CheckpointError, match=r'use quant="f32"'):
            WeightReader(checkpoint, memory="small").linear("w", N, K)
        got = WeightReader(checkpoint, quant="f32", memory="small").linear("w", N, K).matrix
        assert same_bits(got.dequantize(0, N), values)
