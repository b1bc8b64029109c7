"""Folders of BitNet: ternary weights, four rows in a byte, and their one scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_files import read_config
from golden import read_golden
from llama_files import logits_of, relative_error
from numpy_weights import read_safetensors
from safetensors.numpy import save_file

from slmq.checkpoint import open_checkpoint
from slmq.errors import CheckpointError
from slmq.weights.reader import WeightReader
from slmq.weights.rows import Rows

SCALE = 1.21875  # a bfloat16
GOLDEN = read_golden("bitnet", "sub_norms")


def packed(ternary: Any) -> Any:
    """Row i * n / 4 + r in bits 2i and 2i + 1 of byte row r."""
    quarters = (ternary + 1).astype(np.uint8).reshape(4, -1, ternary.shape[1])
    return np.bitwise_or.reduce(quarters << np.array([0, 2, 4, 6], np.uint8)[:, None, None], axis=0)


def folder_of(
    folder: Path, tensors: dict[str, Any], config: dict[str, Any], **quantization: Any
) -> Path:
    said = {"quant_method": "bitnet", "linear_class": "autobitlinear"} | quantization
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}), "utf-8")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def ternary_of(n: int, k: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(-1, 2, (n, k)).astype(np.float32)


@pytest.mark.parametrize(
    ("k", "fmt"), [(512, "q2g256s"), (384, "q2g128s"), (192, "q2g64s"), (90, "q4g32s")]
)
@pytest.mark.parametrize("kind", ["autobitlinear", "bitlinear"])
def test_values(k: int, fmt: str, kind: str, tmp_path: Path) -> None:
    ternary, scale = ternary_of(44, k), np.float32(0.75 if kind == "autobitlinear" else 4.0)
    tensors = {"w.weight": packed(ternary), "w.weight_scale": np.full(1, scale)}
    folder = folder_of(tmp_path / "m", tensors, {"model_type": "bitnet"}, linear_class=kind)
    wanted = ternary * (scale if kind == "autobitlinear" else np.float32(0.25))
    with open_checkpoint(folder) as checkpoint:
        reader = WeightReader(checkpoint, memory="small", threads=2)
        matrix = reader.linear("w.weight", 44, k).matrix
        part = reader.linear("w.weight", 13, k, rows=Rows(20, 44)).matrix
        floats = WeightReader(checkpoint, format="f32", memory="small").linear("w.weight", 44, k)
    assert matrix.format == fmt
    assert np.array_equal(matrix.dequantize(0, 44), wanted)
    assert np.array_equal(part.dequantize(0, 13), wanted[20:33])
    assert np.array_equal(floats.matrix.dequantize(0, 44), wanted)


def test_a_model_is_that_of_its_values(tmp_path: Path) -> None:
    config, weights = (
        read_config(GOLDEN.folder),
        read_safetensors(GOLDEN.folder / "model.safetensors"),
    )
    tensors, values = dict(weights), dict(weights)
    for seed, (name, w) in enumerate(weights.items()):
        if w.ndim != 2 or "layers" not in name:
            continue
        ternary, scale = ternary_of(*w.shape, seed=seed), np.float32(SCALE / 8)
        tensors[name] = packed(ternary)
        tensors[f"{name}_scale"] = np.full(1, scale, np.float32)
        values[name] = ternary * scale
    folder = folder_of(tmp_path / "packed", tensors, config)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(values, plain / "model.safetensors", {"format": "pt"})
    tokens = GOLDEN.tokens[1]
    want = logits_of(plain, tokens, format="f32", kv_dtype="f32")
    got = logits_of(folder, tokens, format=None, kv_dtype="f32", activations="exact")
    assert relative_error(got, want) < 2e-3
    assert np.array_equal(logits_of(folder, tokens, format="f32", kv_dtype="f32"), want)


@pytest.mark.parametrize(
    ("changes", "said", "message"),
    [
        ({"w.weight_scale": None}, {}, "part 'w.weight_scale' is missing"),
        ({"w.weight_scale": np.zeros(2, np.float32)}, {}, r"w.weight_scale to be one of .*\[2\]"),
        ({"w.weight_scale": np.full(1, np.inf, np.float32)}, {}, "a finite w.weight_scale"),
        ({"w.weight": np.full((4, 64), 255, np.uint8)}, {}, "-1, 0 and 1, found a code of 3"),
        ({}, {"quantization_mode": "online"}, "quantization_mode 'online' is not supported"),
        ({}, {"linear_class": "linear"}, "linear_class 'linear' is not supported"),
        ({}, {"use_rms_norm": True}, "use_rms_norm True is not supported"),
    ],
)
def test_what_is_refused(
    changes: dict[str, Any], said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tensors = {"w.weight": packed(ternary_of(16, 64)), "w.weight_scale": np.ones(1, np.float32)}
    tensors = {name: t for name, t in (tensors | changes).items() if t is not None}
    folder = folder_of(tmp_path / "m", tensors, {"model_type": "bitnet"}, **said)
    with open_checkpoint(folder) as checkpoint, pytest.raises(CheckpointError, match=message):
        WeightReader(checkpoint, memory="small").linear("w.weight", 16, 64)
