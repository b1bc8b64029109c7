"""Weights that the configuration does not expect: what is stored counts, and a warning says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from byte_tokenizer import byte_tokenizer
from family_files import read_config, rewritten
from golden import GOLDENS
from llama_files import changed, gguf_name, logits_of, permute_rope, relative_error, to_gguf
from numpy_weights import load_hf_folder, read_safetensors

from slmq import convert
from slmq.errors import CheckpointError

TOKENS = list(range(3, 43))

# The golden of each family that stores its head apart from the embedding.
UNTIED = [
    ("llama", "gqa_untied", "lm_head.weight"),
    ("gemma", "untied_biases", "lm_head.weight"),
    ("gemma2", "untied_biases_no_caps", "lm_head.weight"),
    ("gemma3_text", "untied_biases_logit_cap", "lm_head.weight"),
    ("gpt2", "untied", "lm_head.weight"),
    ("gpt_neox", "parallel", "embed_out.weight"),
]


def tying(config: dict[str, Any]) -> None:
    config["tie_word_embeddings"] = True


@pytest.mark.parametrize(("family", "name", "head"), UNTIED, ids=[row[0] for row in UNTIED])
def test_a_stored_head_that_differs_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str, name: str, head: str
) -> None:
    """As in transformers 5: a head that was trained and saved beside a config that ties it."""
    source = GOLDENS / family / name
    want = logits_of(rewritten(source, tmp_path / "said", lambda c: c), TOKENS)
    assert caplog.text == ""
    got = logits_of(rewritten(source, tmp_path / "tied", tying), TOKENS)
    assert np.array_equal(got, want)
    assert caplog.text.count(f"{head} is stored and differs") == 1


@pytest.mark.parametrize(("family", "name", "head"), UNTIED, ids=[row[0] for row in UNTIED])
def test_a_stored_head_that_is_the_embedding_needs_no_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str, name: str, head: str
) -> None:
    embeds = {"gpt2": "transformer.wte.weight", "gpt_neox": "gpt_neox.embed_in.weight"}
    embed = embeds.get(family, "model.embed_tokens.weight")

    def copied(weights: dict[str, Any]) -> None:
        weights[head] = weights[embed].copy()

    def left_out(weights: dict[str, Any]) -> None:
        del weights[head]

    source = GOLDENS / family / name
    want = logits_of(rewritten(source, tmp_path / "one", tying, left_out), TOKENS)
    got = logits_of(rewritten(source, tmp_path / "two", tying, copied), TOKENS)
    assert np.array_equal(got, want)
    assert caplog.text == ""


def test_a_missing_head_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def left_out(weights: dict[str, Any]) -> None:
        del weights["lm_head.weight"]

    source = GOLDENS / "llama" / "gqa_untied"
    want = logits_of(rewritten(source, tmp_path / "tied", tying, left_out), TOKENS)
    assert caplog.text == ""
    got = logits_of(rewritten(source, tmp_path / "untied", lambda c: c, left_out), TOKENS)
    assert np.array_equal(got, want)
    assert "lm_head.weight is missing" in caplog.text


def test_a_packed_folder_keeps_the_head_that_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = rewritten(GOLDENS / "llama" / "gqa_untied", tmp_path / "tied", tying)
    shutil.copy(tokenizer_of(tmp_path), folder / "tokenizer.json")
    want = logits_of(folder, TOKENS)
    convert(folder, tmp_path / "packed")
    caplog.clear()
    got = logits_of(tmp_path / "packed", TOKENS, format=None, memory=None)
    assert np.array_equal(got, want)
    assert caplog.text == ""


def tokenizer_of(folder: Path) -> Path:
    path = folder / "bytes.json"
    byte_tokenizer().save(str(path))
    return path


# Biases --------------------------------------------------------------------------------------

PARTS = {
    "q": ("self_attn.q_proj",),
    "k": ("self_attn.k_proj",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "down": ("mlp.down_proj",),
    "gate and up": ("mlp.gate_proj", "mlp.up_proj"),
}


def biases(weights: dict[str, Any], kept: tuple[str, ...]) -> None:
    """Zeros in place of every bias but those of some parts."""
    for name, values in weights.items():
        if name.endswith(".bias") and not any(f".{part}." in name for part in kept):
            values[:] = 0


def without_others(weights: dict[str, Any], kept: tuple[str, ...]) -> None:
    for name in [n for n in weights if n.endswith(".bias")]:
        if not any(f".{part}." in name for part in kept):
            del weights[name]


@pytest.mark.parametrize("kept", PARTS.values(), ids=list(PARTS))
def test_each_bias_of_a_folder_counts_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: tuple[str, ...]
) -> None:
    """With those that are missing as zeros, a golden's answers are the same bits."""
    whole = changed("biases", tmp_path / "whole", weights=lambda w: biases(w, kept))
    want = logits_of(whole, TOKENS)
    assert caplog.text == ""
    announced = changed("biases", tmp_path / "part", weights=lambda w: without_others(w, kept))
    assert np.array_equal(logits_of(announced, TOKENS), want)
    assert "announces biases that are not stored" in caplog.text
    caplog.clear()

    def silent(config: dict[str, Any]) -> None:
        del config["attention_bias"], config["mlp_bias"]
        config["bias"] = True  # the key of InternLM, which a llama does not have

    hidden = changed(
        "biases", tmp_path / "not", config=silent, weights=lambda w: without_others(w, kept)
    )
    assert np.array_equal(logits_of(hidden, TOKENS), want)
    assert "biases are stored that the configuration does not announce" in caplog.text


@pytest.mark.parametrize("kept", PARTS.values(), ids=list(PARTS))
def test_each_bias_of_a_gguf_file_counts_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: tuple[str, ...]
) -> None:
    """As in llama.cpp; the first layer alone says nothing of the others."""
    want = logits_of(changed("biases", tmp_path / "f", weights=lambda w: biases(w, kept)), TOKENS)
    got = logits_of(gguf_with_biases(tmp_path / "part.gguf", kept), TOKENS)
    assert relative_error(got, want) < 1e-6
    assert (
        np.abs(got - logits_of(gguf_with_biases(tmp_path / "none.gguf", ()), TOKENS)).max() > 0.01
    )
    assert caplog.text == ""


def gguf_with_biases(path: Path, kept: tuple[str, ...]) -> Path:
    """A golden with biases as GGUF, some of them left out."""
    config, weights = load_hf_folder(GOLDENS / "llama" / "biases")
    heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}
    tensors = {}
    for name, values in weights.items():
        part = name.split(".")[-2]
        if not name.endswith(".bias") or any(f".{p}." in name for p in kept):
            rows = permute_rope(values, heads[part]) if part in heads else values
            tensors[gguf_name(name)] = rows
    return to_gguf("biases", path, tensors=tensors)


def test_a_fused_matrix_of_a_gguf_file_is_read_by_every_family(tmp_path: Path) -> None:
    """llama.cpp takes attn_qkv in the place of attn_q, attn_k and attn_v."""
    want = logits_of(to_gguf("biases", tmp_path / "apart.gguf"), TOKENS)
    tensors: dict[str, Any] = {}
    for tensor in gguf.GGUFReader(tmp_path / "apart.gguf").tensors:
        tensors[tensor.name] = np.array(tensor.data)
    layers = {name.split(".")[1] for name in tensors if name.startswith("blk.")}
    for i in layers:
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"blk.{i}.attn_{part}.{kind}") for part in "qkv"]
            tensors[f"blk.{i}.attn_qkv.{kind}"] = np.concatenate(parts)
    got = logits_of(to_gguf("biases", tmp_path / "fused.gguf", tensors=tensors), TOKENS)
    assert np.array_equal(got, want)


def test_qwen2_without_biases_runs_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = next(p.parent for p in sorted((GOLDENS / "qwen2").glob("*/config.json")))
    zeros = rewritten(source, tmp_path / "zeros", lambda c: c, lambda w: biases(w, ()))
    want = logits_of(zeros, TOKENS)
    none = rewritten(source, tmp_path / "none", lambda c: c, lambda w: without_others(w, ()))
    assert np.array_equal(logits_of(none, TOKENS), want)
    assert "announces biases that are not stored" in caplog.text


# Tensors that nobody reads -------------------------------------------------------------------


def test_tensors_that_nobody_read_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Norms of heads in a llama: transformers reports them, llama.cpp refuses the file."""

    def more(weights: dict[str, Any]) -> None:
        for i in range(2):
            weights[f"model.layers.{i}.self_attn.q_norm.weight"] = np.full(8, 3, np.float32)
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    plain = logits_of(changed("gqa_untied", tmp_path / "plain"), TOKENS)
    assert caplog.text == ""
    got = logits_of(changed("gqa_untied", tmp_path / "more", weights=more), TOKENS)
    assert np.array_equal(got, plain)
    assert "self_attn.q_norm.weight" in caplog.text
    assert "inv_freq" not in caplog.text
    caplog.clear()
    extra = {"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}
    logits_of(to_gguf("gqa_untied", tmp_path / "more.gguf", more=extra), TOKENS)
    assert "blk.0.attn_q_norm.weight" in caplog.text


def test_converting_says_what_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def more(weights: dict[str, Any]) -> None:
        weights["score.weight"] = np.ones((2, 8), np.float32)

    folder = changed("gqa_untied", tmp_path / "more", weights=more)
    shutil.copy(tokenizer_of(tmp_path), folder / "tokenizer.json")
    convert(folder, tmp_path / "packed")
    assert caplog.text.count("score.weight") == 1
    caplog.clear()
    logits_of(tmp_path / "packed", TOKENS, format=None, memory=None)
    assert caplog.text == ""


# Names of the base model ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "prefix"),
    [
        ("llama", "model."),
        ("mistral", "model."),
        ("qwen2", "model."),
        ("qwen3", "model."),
        ("gemma", "model."),
        ("gemma2", "model."),
        ("phi", "model."),
        ("phi3", "model."),
        ("stablelm", "model."),
        ("gpt2", "transformer."),
        ("gpt_neox", "gpt_neox."),
    ],
)
def test_names_of_the_base_model_are_read(tmp_path: Path, family: str, prefix: str) -> None:
    """As AutoModel saves them: Qwen3-Embedding and many a fine-tune."""

    def unprefixed(weights: dict[str, Any]) -> None:
        for name in list(weights):
            weights[name.removeprefix(prefix)] = weights.pop(name)

    source = next(p.parent for p in sorted((GOLDENS / family).glob("*/model.safetensors")))
    want = logits_of(rewritten(source, tmp_path / "whole", lambda c: c), TOKENS)
    got = logits_of(rewritten(source, tmp_path / "base", lambda c: c, unprefixed), TOKENS)
    assert np.array_equal(got, want)


def test_a_missing_tensor_names_one_that_is_near(tmp_path: Path) -> None:
    def renamed(weights: dict[str, Any]) -> None:
        for name in list(weights):
            weights[f"module.{name}"] = weights.pop(name)

    folder = changed("gqa_untied", tmp_path / "model", weights=renamed)
    with pytest.raises(CheckpointError, match=r"there is 'module\.model\.embed_tokens\.weight'"):
        logits_of(folder, TOKENS)


def test_the_goldens_are_as_these_tests_need_them() -> None:
    for family, name, head in UNTIED:
        source = GOLDENS / family / name
        assert read_config(source).get("tie_word_embeddings") is False
        assert head in read_safetensors(source / "model.safetensors")
    assert json.loads((GOLDENS / "llama/biases/config.json").read_text())["attention_bias"] is True
