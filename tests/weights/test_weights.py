"""Checkpoint tensors to packed matrices: formats kept or made, rows ordered, errors with names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_writer import write_gguf
from kernel_cases import normal, pack, same_bits
from numpy_weights import unpermute_rope
from safetensors.numpy import save_file

from slmq import CheckpointError
from slmq.checkpoint import open_checkpoint
from slmq.models.llama import GGUF
from slmq.models.parts.gguf import interleaved_to_halves
from slmq.models.parts.values import config_value
from slmq.weights.reader import KEPT, WeightReader

W = normal(40, 64)
META = {"general.architecture": "llama"}


def folder_of(path: Path, tensors: dict[str, Any]) -> Path:
    """A safetensors folder with these arrays."""
    path.mkdir()
    (path / "config.json").write_text("{}", "utf-8")
    save_file(tensors, path / "model.safetensors")
    return path


def bfloat16_folder(path: Path, values: Any) -> Path:
    """A folder with one BF16 tensor "w", its values truncated."""
    raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    entry = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [0, len(raw)]}
    header = json.dumps({"w": entry}).encode()
    path.mkdir()
    (path / "config.json").write_text("{}", "utf-8")
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + raw)
    return path


# --- formats --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q4_0", "q4_1", "q8_0"])
@pytest.mark.parametrize("format", [None, "int4", "int8", "q4g32s", "f16", "f32"])
def test_what_every_stored_type_becomes(kind: str, format: str | None, tmp_path: Path) -> None:
    """Kept as stored without `format`, with it repacked from its values."""
    tensor: Any = {"f32": W, "f16": W.astype(np.float16)}.get(kind, (W, kind))
    path = write_gguf(tmp_path / "w.gguf", META, {"w": tensor})
    stored = gguf.GGUFReader(path).tensors[0]
    values = gguf.quants.dequantize(stored.data, stored.tensor_type).astype(np.float32)
    with open_checkpoint(path) as checkpoint:
        reader = WeightReader(checkpoint, format=format, memory="small")
        got = reader.linear("w", 40, 64).matrix
    wanted = {"int4": "q4g32a", "int8": "q8g32s"}.get(str(format), format) or KEPT[kind]
    assert got.format == wanted
    if KEPT[kind] == wanted and kind != "bf16":
        assert same_bits(got.dequantize(0, 40), values)
    else:
        assert np.array_equal(got.packed, pack(values, wanted).packed)


def test_bfloat16_from_safetensors(tmp_path: Path) -> None:
    exact = (W.view(np.uint32) >> 16 << 16).view(np.float32)
    with open_checkpoint(bfloat16_folder(tmp_path / "bf16", W)) as checkpoint:
        for wanted in (None, "f32", "int4"):
            reader = WeightReader(checkpoint, format=wanted, memory="small")
            got = reader.linear("w", 40, 64).matrix
            assert np.array_equal(got.packed, pack(exact, got.format).packed)
        assert reader.packed_formats.keys() == {"q4g32a"}


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_vectors(kind: str, tmp_path: Path) -> None:
    vector = normal(40, seed=1).astype(kind)
    with open_checkpoint(folder_of(tmp_path / "m", {"v": vector})) as checkpoint:
        reader = WeightReader(checkpoint, memory="small")
        got = reader.vector("v", 40)
        assert same_bits(got, vector.astype(np.float32))
        got += 1  # our own memory, not the file's


def test_counts_and_progress(tmp_path: Path) -> None:
    tensors = {"a": W, "b": normal(40), "c": normal(33, 64)}
    seen: list[tuple[int, int]] = []
    with open_checkpoint(folder_of(tmp_path / "m", tensors)) as checkpoint:
        reader = WeightReader(
            checkpoint, format="int8", memory="small", progress=lambda *done: seen.append(done)
        )
        a, c = reader.linear("a", 40, 64, bias="b"), reader.linear("c", 33, 64)
    assert (a.n, a.k, c.n, c.k) == (40, 64, 33, 64)
    assert a.bias is not None
    assert same_bits(a.bias, tensors["b"])
    assert reader.parameters == W.size + 40 + 33 * 64
    assert reader.packed_nbytes == a.matrix.nbytes + c.matrix.nbytes
    assert dict(reader.packed_formats) == {"q8g32s": reader.packed_nbytes}
    total = sum(t.nbytes for t in tensors.values())
    assert [step[1] for step in seen] == [total] * 3
    assert [step[0] for step in seen] == sorted(step[0] for step in seen)
    assert seen[-1] == (total, total)


def test_weights_outlive_their_checkpoint(tmp_path: Path) -> None:
    with open_checkpoint(folder_of(tmp_path / "m", {"a": W})) as checkpoint:
        matrix = WeightReader(checkpoint, memory="small").linear("a", 40, 64).matrix
    assert same_bits(matrix.dequantize(0, 40), W)


# --- order of rows --------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 8), (5, 20), (2, 64)])
def test_rows_of_heads_from_pairs_to_halves(heads: int, head_dim: int) -> None:
    rows = np.arange(heads * head_dim)
    order = interleaved_to_halves(heads, head_dim)
    assert order.dtype == np.int32
    assert np.array_equal(rows[order], unpermute_rope(rows, heads))


def test_an_order_moves_weights_and_bias(tmp_path: Path) -> None:
    order = interleaved_to_halves(5, 8)
    bias = normal(40, seed=2)
    with open_checkpoint(folder_of(tmp_path / "m", {"w": W, "b": bias})) as checkpoint:
        linear = WeightReader(checkpoint, memory="small").linear("w", 40, 64, bias="b", order=order)
    assert same_bits(linear.matrix.dequantize(0, 40), W[order])
    assert linear.bias is not None
    assert same_bits(linear.bias, bias[order])


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight"),
        ("model.layers.27.self_attn.k_proj.bias", "blk.27.attn_k.bias"),
        ("model.layers.3.mlp.down_proj.weight", "blk.3.ffn_down.weight"),
        ("model.layers.3.post_attention_layernorm.weight", "blk.3.ffn_norm.weight"),
    ],
)
def test_gguf_names(name: str, stored: str) -> None:
    assert GGUF.name(name) == stored


def test_names_are_mapped(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "w.gguf", META, {"output.weight": W})
    with open_checkpoint(path) as checkpoint:
        reader = WeightReader(checkpoint, GGUF.name, memory="small")
        assert reader.has("lm_head.weight")
        assert not reader.has("model.norm.weight")
        assert reader.linear("lm_head.weight", 40, 64).n == 40
        with pytest.raises(CheckpointError, match=r"'output_norm\.weight' is missing"):
            reader.vector("model.norm.weight", 64)


# --- errors ---------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[WeightReader], Any], str]] = {
    "missing": (lambda r: r.linear("absent", 40, 64), "tensor 'absent' is missing"),
    "missing vector": (lambda r: r.vector("absent", 40), "tensor 'absent' is missing"),
    "missing bias": (lambda r: r.linear("w", 40, 64, bias="absent"), "'absent' is missing"),
    "shape": (lambda r: r.linear("w", 64, 40), "expected shape [64, 40], found [40, 64]"),
    "vector as matrix": (lambda r: r.linear("v", 40, 1), "expected shape [40, 1], found [40]"),
    "matrix as vector": (lambda r: r.vector("w", 40), "expected shape [40], found [40, 64]"),
    "length": (lambda r: r.vector("v", 41), "expected shape [41], found [40]"),
    "nan": (lambda r: r.vector("nan", 40), "finite weights, found NaN or infinity"),
    "inf": (lambda r: r.linear("inf", 40, 64), "finite weights, found NaN or infinity"),
    "integers": (lambda r: r.linear("i", 40, 64), "i32 is not supported"),
    "integer vector": (lambda r: r.vector("iv", 40), "expected f64, f32, f16 or bf16, found i32"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=list(BAD))
def test_errors_name_file_and_tensor(
    call: Callable[[WeightReader], Any], message: str, tmp_path: Path
) -> None:
    spoiled = W.copy()
    spoiled[39, 63] = np.inf
    vector = np.full(40, np.nan, np.float32)
    tensors = {"w": W, "v": normal(40), "inf": spoiled, "nan": vector}
    tensors |= {"i": np.zeros((40, 64), np.int32), "iv": np.zeros(40, np.int32)}
    path = write_gguf(tmp_path / "w.gguf", META, tensors)
    with open_checkpoint(path) as checkpoint:
        reader = WeightReader(checkpoint, memory="small")
        with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
            call(reader)
    assert str(path) in str(caught.value)
    assert caught.value.tensor is not None or "missing" in message


def test_types_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    """Refused by name, not misread."""
    path = tmp_path / "k.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    blocks = np.zeros((40, 292), np.uint8)  # activations of llama.cpp, a block of 256
    writer.add_tensor("w", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(path) as checkpoint:
        reader = WeightReader(checkpoint, memory="small")
        with pytest.raises(CheckpointError, match=r"mxfp4; q8_k is not supported") as caught:
            reader.linear("w", 40, 256)
    assert caught.value.tensor == "w"


def test_an_unknown_quant_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with (
        open_checkpoint(folder_of(tmp_path / "m", {"w": W})) as checkpoint,
        pytest.raises(ValueError, match=r"one of int4, int8.*got 'int5'"),
    ):
        WeightReader(checkpoint, format="int5")


# --- configuration values -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "want"),
    [(int, 3, 3), (float, 0.5, 0.5), (float, 2, 2.0), (bool, True, True), (str, "a", "a")],
)
def test_config_values(kind: type, value: Any, want: Any) -> None:
    got = config_value({"key": value}, "key", kind)
    assert got == want
    assert type(got) is kind
    assert config_value({}, "key", kind, want) == want
    assert config_value({"key": None}, "key", kind, want) == want


@pytest.mark.parametrize(
    ("kind", "value"),
    [(int, "3"), (int, 3.0), (int, True), (float, "x"), (float, True), (bool, 1), (str, 3)]
    + [(float, 10**400), (float, -(10**400))]  # beyond float64
    + [(kind, None) for kind in (int, float, bool, str)],
)
def test_config_values_of_another_type(kind: type, value: Any) -> None:
    message = f"'key': expected {kind.__name__}, found {value!r:.80}"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        config_value({"key": value}, "key", kind)
