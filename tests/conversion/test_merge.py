"""`slmq.merge`: a merged folder answers as the base does with the adapter beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from golden import GOLDENS, golden_names, read_golden
from llama_files import logits_of, relative_error
from lora_files import (
    ALPHA,
    gguf_file,
    layer_modules,
    merged_folder,
    mlx_folder,
    peft_folder,
    random_pairs,
)
from numpy_weights import read_safetensors
from typer.testing import CliRunner

import slmq
from slmq.cli.app import app
from slmq.conversion.merge import Merged
from slmq.errors import CheckpointError, UnsupportedModelError, WriteError

LLAMA = GOLDENS / "llama" / "odd_sizes"
FAMILIES = (
    "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "phi3", "qwen3", "stablelm",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_is_the_sum(family: str, tokens_of: Path, tmp_path: Path) -> None:
    golden = read_golden(family, golden_names(family)[0])
    weights = read_safetensors(golden.folder / "model.safetensors")
    conv = family == "gpt2"
    pairs = random_pairs(weights, layer_modules(weights), rank=5, transposed=conv)
    adapter = peft_folder(tmp_path / "adapter", pairs)
    wanted = merged_folder(golden.folder, tmp_path / "sum", pairs, ALPHA / 5, transposed=conv)
    base = with_tokenizer(golden.folder, tokens_of, tmp_path / "base")
    made = slmq.merge(base, adapter, tmp_path / "merged", local_files_only=True)
    tokens = golden.tokens[0][:40]
    assert relative_error(logits_of(made, tokens), logits_of(wanted, tokens)) < 1e-5
    again = slmq.merge(base, adapter, tmp_path / "again", n_threads=3, local_files_only=True)
    files = [folder / "model.safetensors" for folder in (made, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def with_tokenizer(source: Path, tokens_of: Path, folder: Path) -> Path:
    """A golden with the tokenizer of another model, which a folder must have."""
    shutil.copytree(source, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokens_of / name, folder / name)
    return folder


@pytest.fixture
def tokens_of(tiny_model_path: Path) -> Path:
    """A folder with a tokenizer."""
    return tiny_model_path


def test_a_base_of_integers(tiny_model_path: Path, tmp_path: Path) -> None:
    """Widened first: the sum of what its integers mean and the adapter."""
    weights = read_safetensors(LLAMA / "model.safetensors")
    pairs = random_pairs(weights, layer_modules(weights), rank=5)
    adapter = mlx_folder(tmp_path / "adapter", pairs, 0.5)
    packed = slmq.quantize(tiny_model_path, tmp_path / "packed", format="int4", method="rtn")
    floats = slmq.dequantize(packed.path, tmp_path / "floats", dtype="f32")
    wanted = merged_folder(floats, tmp_path / "sum", pairs, 0.5)
    made = slmq.merge(packed.path, adapter, tmp_path / "merged")
    theirs = read_safetensors(wanted / "model.safetensors")
    for name, values in read_safetensors(made / "model.safetensors").items():
        assert np.abs(values - theirs[name]).max() < 1e-6, name


def test_the_command(tiny_model_path: Path, tmp_path: Path) -> None:
    weights = read_safetensors(LLAMA / "model.safetensors")
    adapter = peft_folder(
        tmp_path / "adapter", random_pairs(weights, layer_modules(weights), rank=2)
    )
    command = ["merge", str(tiny_model_path), str(adapter), str(tmp_path / "made")]
    done = CliRunner().invoke(app, [*command, "--dtype", "f16"])
    assert done.exit_code == 0, done.output
    assert read_safetensors(tmp_path / "made" / "model.safetensors")
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1
    assert "already exists" in again.stderr


def test_what_cannot_be_merged(tiny_model_path: Path, tmp_path: Path) -> None:
    weights = read_safetensors(LLAMA / "model.safetensors")
    module = layer_modules(weights)[0]
    pairs = random_pairs(weights, [module], rank=2)
    a, b = pairs[module]
    other = peft_folder(tmp_path / "other", {module: (a[:, :-1], b)})
    with pytest.raises(CheckpointError, match="is it for another model"):
        slmq.merge(tiny_model_path, other, tmp_path / "made")
    unknown = peft_folder(tmp_path / "unknown", {"model.layers.99.mlp.up_proj": (a, b)})
    with pytest.raises(CheckpointError, match="the model has no weight of that name"):
        slmq.merge(tiny_model_path, unknown, tmp_path / "made")
    gguf = gguf_file(tmp_path / "lora.gguf", {"blk.0.attn_q": (a, b)})
    with pytest.raises(UnsupportedModelError, match="takes adapters of PEFT and mlx-lm"):
        slmq.merge(tiny_model_path, gguf, tmp_path / "made")
    with pytest.raises(ValueError, match="dtype: expected one of f16, f32"):
        slmq.merge(tiny_model_path, other, tmp_path / "made", dtype="bf16")
    with pytest.raises(WriteError, match="does not exist"):
        slmq.merge(tiny_model_path, other, tmp_path / "nowhere" / "made")
    assert not (tmp_path / "made").exists()


def test_a_packed_base(tiny_model_path: Path, tmp_path: Path) -> None:
    """Only by request: the sum is rounded as the base was, and what that takes is told."""
    weights = read_safetensors(LLAMA / "model.safetensors")
    modules = layer_modules(weights)
    packed = slmq.quantize(tiny_model_path, tmp_path / "packed", format="int4", method="rtn").path
    floats = slmq.dequantize(packed, tmp_path / "floats", dtype="f32")
    shares = []
    for i, size in enumerate((1.0, 0.01)):
        pairs = random_pairs(weights, modules, rank=5)
        pairs = {module: (a, size * b) for module, (a, b) in pairs.items()}
        adapter = peft_folder(tmp_path / f"adapter{i}", pairs)
        told: list[Merged] = []
        made = slmq.merge(
            packed, adapter, tmp_path / f"merged{i}", packed=True, on_merged=told.append
        )
        (merged,) = told
        shares.append(merged.lost)
        base, sums = read_safetensors(floats / "model.safetensors"), {}
        for module, (a, b) in pairs.items():
            sums[module] = ALPHA / 5 * (b @ a)
        again = slmq.dequantize(made, tmp_path / f"again{i}", dtype="f32")
        lost = added = 0.0
        for module, wanted in sums.items():
            name = f"{module}.weight"
            got = read_safetensors(again / "model.safetensors")[name] - base[name]
            lost += float(np.square(got - wanted).sum())
            added += float(np.square(wanted).sum())
        assert merged.lost == pytest.approx((lost / added) ** 0.5, rel=1e-3)
        assert merged.worst[1] >= merged.lost
        files = [folder / "model.safetensors" for folder in (made, packed)]
        assert files[0].stat().st_size == files[1].stat().st_size
    assert shares[0] < 1 < shares[1]  # what is smaller than the steps is lost


def test_a_packed_base_whose_format_needs_a_search(tiny_model_path: Path, tmp_path: Path) -> None:
    """The quantizer's: the sum is not rounded to it without one."""
    weights = read_safetensors(LLAMA / "model.safetensors")
    pairs = random_pairs(weights, layer_modules(weights), rank=5)
    adapter = peft_folder(tmp_path / "adapter", pairs)
    packed = slmq.quantize(tiny_model_path, tmp_path / "packed", format="q5g32s", method="rtn").path
    with pytest.raises(slmq.UnsupportedModelError, match=r"is q5g32s, .* merge it into floats"):
        slmq.merge(packed, adapter, tmp_path / "out", packed=True)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_is_lost(tiny_model_path: Path, tmp_path: Path) -> None:
    weights = read_safetensors(LLAMA / "model.safetensors")
    adapter = peft_folder(
        tmp_path / "adapter", random_pairs(weights, layer_modules(weights), rank=5)
    )
    packed = slmq.quantize(tiny_model_path, tmp_path / "packed", format="int4", method="rtn").path
    words = ["merge", str(packed), str(adapter), str(tmp_path / "out"), "--packed"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "of what the adapter adds, at most" in done.stderr
    assert (tmp_path / "out" / "config.json").exists()
