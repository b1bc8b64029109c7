"""Files and folders that are something else are named for what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf_writer as gw
import numpy as np
import pytest
from gguf_writer import write_gguf
from llama_files import changed, to_gguf
from safetensors.numpy import load_file, save_file

from slmq.checkpoint import open_checkpoint
from slmq.errors import CheckpointError, Error, UnsupportedModelError
from slmq.models.loading import load_weights

APPLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(64)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def load_error(path: Path) -> str:
    with pytest.raises(Error) as caught, open_checkpoint(path) as checkpoint:
        load_weights(checkpoint, threads=1)
    return str(caught.value)


def test_resource_forks_of_macos_are_not_seen(tmp_path: Path) -> None:
    model = to_gguf("gqa_untied", tmp_path / "model.gguf")
    (tmp_path / "._model.gguf").write_bytes(APPLE)
    (tmp_path / "._config.json").write_bytes(APPLE)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.path == model
    with pytest.raises(CheckpointError, match="a resource fork of macOS"):
        open_checkpoint(tmp_path / "._model.gguf")


@pytest.mark.parametrize(
    "keys",
    [
        {"general.architecture": "clip", "general.type": "mmproj"},
        {"general.architecture": "clip"},
        {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"},
        {"general.architecture": "llama", "adapter.type": "lora"},
        {"general.architecture": "imatrix", "general.type": "imatrix"},
        {"general.architecture": "controlvector", "controlvector.layer_count": 3},
    ],
    ids=["mmproj", "old-mmproj", "adapter", "old-adapter", "imatrix", "control-vector"],
)
def test_what_lies_beside_a_model_is_no_model(tmp_path: Path, keys: dict[str, Any]) -> None:
    beside = write_gguf(tmp_path / "beside.gguf", keys, {"t": np.zeros((8, 32), np.float32)})
    assert "not a model" in load_error(beside)
    assert str(beside) in load_error(beside)
    model = to_gguf("gqa_untied", tmp_path / "model.gguf")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.path == model


def test_two_models_still_need_a_choice(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        to_gguf("gqa_untied", tmp_path / name)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="3 GGUF files; give the path of one"):
        open_checkpoint(tmp_path)


def test_a_lora_adapter_is_named(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "lora.gguf",
        {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"},
        {"blk.0.attn_q.weight.lora_a": np.zeros((8, 64), np.float32)},
    )
    with open_checkpoint(path) as checkpoint, pytest.raises(UnsupportedModelError) as caught:
        load_weights(checkpoint, threads=1)
    assert str(caught.value) == f"{path}: a LoRA adapter (general.type), not a model"


def test_a_file_that_became_text_is_named(tmp_path: Path) -> None:
    """By git's autocrlf, or FTP in text mode."""
    gguf = to_gguf("gqa_untied", tmp_path / "model.gguf")
    gguf.write_bytes(gguf.read_bytes().replace(b"\n", b"\r\n"))
    folder = changed("gqa_untied", tmp_path / "folder")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"\n", b"\r\n"))
    for path, name in ((gguf, gguf.name), (folder, weights.name)):
        assert f"every line feed in {name} has a carriage return" in load_error(path)


def test_a_file_that_is_only_cut_short_did_not_become_text(tmp_path: Path) -> None:
    model = to_gguf("gqa_untied", tmp_path / "model.gguf")
    model.write_bytes(model.read_bytes()[:-100])
    assert "truncated" in load_error(model)


def test_strings_that_nobody_needs_need_no_utf8(tmp_path: Path) -> None:
    keys = [
        gw.key(b"general.architecture", gw.STRING, gw.string(b"llama")),
        gw.key(b"general.author", gw.STRING, gw.string("Jos\u00e9".encode("latin-1"))),
    ]
    path = tmp_path / "author.gguf"
    path.write_bytes(gw.image(keys))
    with open_checkpoint(path) as checkpoint:
        author = checkpoint.metadata["general.author"]
    assert author.encode("utf-8", "surrogateescape") == b"Jos\xe9"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "a LoRA adapter, not a model"),
        (["model_index.json"], "a diffusers pipeline"),
        (["consolidated.safetensors", "params.json"], "Mistral's own layout"),
        (["model.onnx", "config.json"], "an ONNX model"),
        (["config.json", "tf_model.h5"], "TensorFlow weights only"),
    ],
)
def test_folders_of_something_else(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer.model"]
)
def test_pointers_of_git_lfs_are_named_wherever_they_are(tmp_path: Path, name: str) -> None:
    from slmq.tokenizer import load_tokenizer

    folder = changed("gqa_untied", tmp_path / "model")
    (folder / name).write_bytes(POINTER)
    with pytest.raises(Error, match="a Git LFS pointer"), open_checkpoint(folder) as checkpoint:
        load_tokenizer(checkpoint)


@pytest.mark.parametrize("name", ["x.safetensors", "x.gguf", "x.bin"])
def test_a_pointer_that_is_given_itself_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match="a Git LFS pointer"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("newer", [False, True], ids=["quantization", "quantization_config"])
def test_folders_of_mlx_are_named(tmp_path: Path, newer: bool) -> None:
    def quantized(config: dict[str, Any]) -> None:
        config["quantization"] = {"group_size": 32, "bits": 4}
        if newer:
            config["quantization_config"] = config["quantization"]

    folder = changed("gqa_untied", tmp_path / "mlx", config=quantized)
    packed: dict[str, Any] = {}
    for name, values in load_file(folder / "model.safetensors").items():
        packed[name] = values
        if values.ndim == 2:
            packed[name] = np.zeros((values.shape[0], -(-values.shape[1] // 8)), np.uint32)
            for part in ("scales", "biases"):
                packed[name.replace("weight", part)] = np.ones((values.shape[0], 1), np.float16)
    save_file(packed, folder / "model.safetensors", {"format": "mlx"})
    assert "quantized by MLX (4 bits, groups of 32)" in load_error(folder)


def test_show_says_what_cannot_run(tmp_path: Path) -> None:
    from slmq.cli.models import describe

    path = write_gguf(
        tmp_path / "lora.gguf",
        {"general.architecture": "llama", "general.type": "adapter"},
        {"t": np.zeros((8, 64), np.float32)},
    )
    with open_checkpoint(path) as checkpoint:
        facts = describe(checkpoint)
    assert facts["supported"] is False
    assert "a LoRA adapter" in facts["problem"]
    json.dumps(facts)
    with open_checkpoint(to_gguf("gqa_untied", tmp_path / "model.gguf")) as checkpoint:
        facts = describe(checkpoint)
    assert facts["supported"] is True
    assert "problem" not in facts
