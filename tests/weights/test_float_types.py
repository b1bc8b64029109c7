"""Float types that few files have, and values that float16 cannot hold exactly."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_files import changed, logits_of, to_gguf
from safetensors.numpy import load_file

from slmq.errors import CheckpointError, UnsupportedModelError

TOKENS = list(range(3, 43))


def test_float64_is_cast(tmp_path: Path) -> None:
    """As transformers does; GGUF has the type, too."""

    def wide(weights: dict[str, Any]) -> None:
        weights |= {name: values.astype(np.float64) for name, values in weights.items()}

    want = logits_of(changed("gqa_untied", tmp_path / "f32"), TOKENS)
    assert np.array_equal(
        logits_of(changed("gqa_untied", tmp_path / "f64", weights=wide), TOKENS), want
    )
    plain = to_gguf("gqa_untied", tmp_path / "plain.gguf")
    tensors = {t.name: np.array(t.data, np.float64) for t in gguf.GGUFReader(plain).tensors}
    got = logits_of(to_gguf("gqa_untied", tmp_path / "wide.gguf", tensors=tensors), TOKENS)
    assert np.array_equal(got, logits_of(plain, TOKENS))


def test_float64_beyond_float32_is_refused(tmp_path: Path) -> None:
    def wide(weights: dict[str, Any]) -> None:
        weights["lm_head.weight"] = np.full_like(weights["lm_head.weight"], 1e300, np.float64)

    with pytest.raises(CheckpointError, match="infinity"):
        logits_of(changed("gqa_untied", tmp_path / "huge", weights=wide), TOKENS)


def bf16(folder: Path, scale: float, one: str) -> Path:
    """A golden in bfloat16, one matrix of it scaled."""
    weights = load_file(changed("gqa_untied", folder) / "model.safetensors")
    header: dict[str, Any] = {}
    data = b""
    for name, values in weights.items():
        scaled = values * np.float32(scale) if name == one else values
        upper = (scaled.view(np.uint32) >> 16).astype("<u2").tobytes()
        span = [len(data), len(data) + len(upper)]
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": span}
        data += upper
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


def test_small_bfloat16_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    logits_of(bf16(tmp_path / "plain", 1.0, name), TOKENS, format=None)
    assert caplog.text == ""
    small = bf16(tmp_path / "small", 1e-6, name)
    logits_of(small, TOKENS, format=None)
    assert f"the weights of {name}" in caplog.text
    assert "format='f32' keeps them" in caplog.text
    caplog.clear()
    logits_of(small, TOKENS, format="f32")
    assert caplog.text == ""


# Sizes of GGUF files by layer ----------------------------------------------------------------


def test_sizes_by_layer_that_agree_are_one(tmp_path: Path) -> None:
    want = logits_of(to_gguf("gqa_untied", tmp_path / "one.gguf"), TOKENS)
    fields = gguf.GGUFReader(tmp_path / "one.gguf").fields
    layers = fields["llama.block_count"].contents()
    lists = {
        key: [fields[key].contents()] * layers
        for key in ("llama.attention.head_count", "llama.attention.head_count_kv")
    }
    path = to_gguf("gqa_untied", tmp_path / "lists.gguf", metadata=lists)
    assert np.array_equal(logits_of(path, TOKENS), want)
    uneven = {"llama.attention.head_count_kv": [1] * (layers - 1) + [2]}
    with pytest.raises(UnsupportedModelError, match="layers of different sizes") as caught:
        logits_of(to_gguf("gqa_untied", tmp_path / "uneven.gguf", metadata=uneven), TOKENS)
    assert "uneven.gguf" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"llama.expert_count": 8}, "a mixture of 8 experts"),
        ({"llama.attention.causal": False}, "attention to later tokens"),
    ],
)
def test_models_that_compute_something_else_are_named(
    tmp_path: Path, keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        logits_of(to_gguf("gqa_untied", tmp_path / "m.gguf", metadata=keys), TOKENS)


def test_errors_of_a_gguf_configuration_name_the_file(tmp_path: Path) -> None:
    path = to_gguf("gqa_untied", tmp_path / "m.gguf", metadata={"llama.context_length": "x"})
    with pytest.raises(CheckpointError) as caught:
        logits_of(path, TOKENS)
    assert str(caught.value).startswith(f"{path}: ")
