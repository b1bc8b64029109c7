"""Encoders in GGUF files, under the names of keys and tensors that llama.cpp's converter writes.

A file gives the same bits as the folder that it was made of.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_files import FRAME, word_tokenizer
from encoder_golden import open_runner, read_encoder
from gguf_writer import write_gguf
from numpy_weights import read_safetensors

import slmq
from slmq.errors import TokenizerError, UnsupportedModelError

# Model type, case, architecture, and what the family calls the part that files of a body leave out.
CASES = [
    ("bert", "pairs_one_score", "bert", ""),
    ("bert", "body", "bert", "bert."),
    ("roberta", "three_labels", "bert", ""),
    ("nomic_bert", "body", "nomic-bert", "nomic_bert."),
    ("modernbert", "windows_mean_pooled", "modern-bert", ""),
    ("eurobert", "labels_of_the_first", "eurobert", ""),
    ("headless", "gemma3_both_ways", "gemma-embedding", "model."),
]
FAMILIES = {
    "modern-bert": "modernbert",
    "nomic-bert": "nomic_bert",
    "gemma-embedding": "gemma3_text",
}

# RoBERTa's head in the words of BERT's.
HEADS = {"classifier.dense": "bert.pooler.dense", "classifier.out_proj": "classifier"}


def metadata_of(config: dict[str, Any], architecture: str, pooling: int) -> dict[str, Any]:
    """What llama.cpp's converter writes of a configuration."""
    a = architecture
    positions = config["max_position_embeddings"]
    ropes = config.get("rope_parameters", {})
    near = ropes.get("sliding_attention", {})
    found = {
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "context_length": positions - 2 if config["model_type"] == "roberta" else positions,
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config.get("num_key_value_heads"),
        "attention.key_length": config.get("head_dim"),
        "attention.layer_norm_epsilon": config.get("layer_norm_eps", config.get("norm_eps")),
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps"),
        "rope.freq_base": ropes.get("full_attention", ropes).get("rope_theta"),
        "rope.freq_base_swa": near.get("rope_theta"),
        "attention.causal": None if a == "gemma-embedding" else False,
        "attention.sliding_window": config.get("local_attention", config.get("sliding_window")),
        "hidden_act": config.get("hidden_activation") if a == "modern-bert" else None,
        "pooling_type": pooling,
    }
    if a in ("modern-bert", "gemma-embedding"):
        kinds = [kind == "sliding_attention" for kind in config["layer_types"]]
        found["attention.sliding_window_pattern"] = kinds
    named = {f"{a}.{key}": value for key, value in found.items() if value is not None}
    return {"general.architecture": a, **named}


def write(folder: Path, path: Path, architecture: str, prefix: str, pooling: int = 1) -> Path:
    """A golden's folder as a GGUF file."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    module = FAMILIES.get(architecture, architecture)
    names = importlib.import_module(f"slmq.models.{module}").GGUF
    tensors: dict[str, Any] = {}
    for name, values in read_safetensors(folder / "model.safetensors").items():
        module, _, kind = renamed(name, prefix).rpartition(".")
        stored = names.name(f"{module}.{kind}")
        if stored.split(".")[0] in ("classifier", "dense", "score"):
            continue  # of a head that the converter leaves out
        cut = name == "roberta.embeddings.position_embeddings.weight"
        offset = architecture == "gemma-embedding" and stored.endswith("norm.weight")
        tensors[stored] = np.asarray(values[2:] if cut else values + offset, np.float32)
    if "cls.output.weight" not in tensors:  # poolers alone are left out, too
        tensors = {name: values for name, values in tensors.items() if name[:4] != "cls."}
    return write_gguf(path, metadata_of(config, architecture, pooling) | tokens(config), tensors)


def renamed(name: str, prefix: str) -> str:
    """The name that the family of the architecture has for a tensor."""
    for old, new in HEADS.items():
        name = name.replace(old, new)
    name = name.replace("roberta.", "bert.")
    return name if name.startswith(prefix) else prefix + name


def tokens(config: dict[str, Any]) -> dict[str, Any]:
    """A vocabulary of words as llama.cpp's converter writes BERT's."""
    ids = word_tokenizer(config["vocab_size"]).get_vocab()
    words = sorted(ids, key=ids.__getitem__)
    marked = [w if w in FRAME else w[2:] if w.startswith("##") else "\u2581" + w for w in words]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": marked,
        "tokenizer.ggml.token_type": [3 if word in FRAME else 1 for word in words],
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.mask_token_id": 4,
    }


@pytest.mark.parametrize(("family", "case", "architecture", "prefix"), CASES)
def test_the_bits_of_the_folder(
    family: str, case: str, architecture: str, prefix: str, tmp_path: Path
) -> None:
    golden = read_encoder(family, case)
    # Such files leave out by what queries are divided: by the size of a head.
    config = json.loads((golden.folder / "config.json").read_text("utf-8"))
    folder = tmp_path / "m"
    shutil.copytree(golden.folder, folder)
    told = config | {"query_pre_attn_scalar": config.get("head_dim")}
    (folder / "config.json").write_text(json.dumps(told), "utf-8")
    file = write(folder, tmp_path / "m.gguf", architecture, prefix)
    for wanted in ("f32", None):
        got, want = open_runner(file, format=wanted), open_runner(folder, format=wanted)
        pairs = [*zip(got.states(golden.texts), want.states(golden.texts), strict=True)]
        if golden.heads and architecture != "eurobert":  # whose heads no file has
            pairs += zip(got.heads(golden.texts), want.heads(golden.texts), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("pooling", "pool"), [(1, "mean"), (2, "cls"), (3, "last")])
def test_texts(pooling: int, pool: str, tmp_path: Path) -> None:
    golden = read_encoder("bert", "body")
    file = write(golden.folder, tmp_path / "m.gguf", "bert", "bert.", pooling)
    encoder = slmq.load_encoder(file, format="f32")
    words = word_tokenizer(259)
    for text in ("A man is playing the guitar.", "unknownword rain, slowly"):
        assert encoder.tokenizer.encode(text) == words.encode(text).ids
        states = encoder.states(text)
        want = {"mean": states.mean(axis=0), "cls": states[0], "last": states[-1]}[pool]
        got = encoder.embed(text)
        assert abs(np.linalg.norm(got) - 1) < 1e-5
        assert np.allclose(got, want / np.linalg.norm(want), atol=1e-6)
    two = encoder.tokenizer.encode_parts("rain", "sun")
    assert (two.ids, two.types) == (words.encode("rain", "sun").ids, [0, 0, 0, 1, 1])
    assert encoder.tokenizer.decode(words.encode("playing slowly").ids) == "playing slowly"


def test_converted_files_embed_alike(tmp_path: Path) -> None:
    golden = read_encoder("bert", "body")
    file = write(golden.folder, tmp_path / "m.gguf", "bert", "bert.", 2)
    slmq.convert(file, tmp_path / "packed")
    texts = ["a man is playing", "rain"]
    with slmq.load_encoder(file, format="f32") as encoder:
        want = encoder.embed(texts)
    assert np.array_equal(slmq.load_encoder(tmp_path / "packed").embed(texts), want)


def test_capital_letters_count_where_the_vocabulary_has_some(tmp_path: Path) -> None:
    golden = read_encoder("bert", "body")
    config = json.loads((golden.folder / "config.json").read_text("utf-8"))
    entries = tokens(config)
    entries["tokenizer.ggml.tokens"][5] = "\u2581A"
    tensors = {"token_embd.weight": np.zeros((259, 64), np.float32)}
    file = write_gguf(tmp_path / "m.gguf", metadata_of(config, "bert", 1) | entries, tensors)
    with slmq.checkpoint.open_checkpoint(file) as checkpoint:
        tokenizer = slmq.tokenizer.load_tokenizer(checkpoint)
    assert tokenizer.encode("A Man man", add_special=False)[::2] == [5, entries_id(entries, "man")]


def entries_id(entries: dict[str, Any], word: str) -> int:
    return int(entries["tokenizer.ggml.tokens"].index("\u2581" + word))


def test_refusals(tmp_path: Path) -> None:
    golden = read_encoder("bert", "body")
    config = json.loads((golden.folder / "config.json").read_text("utf-8"))
    table = {"token_embd.weight": np.zeros((259, 64), np.float32)}
    tensors = table | {"cls.weight": np.zeros((64, 64), np.float32)}
    known = metadata_of(config, "bert", 1)
    file = write_gguf(tmp_path / "half.gguf", known | tokens(config), tensors)
    with pytest.raises(UnsupportedModelError, match="half of the head"):
        open_runner(file)
    with pytest.raises(UnsupportedModelError, match="writes no text"):
        slmq.load(write(golden.folder, tmp_path / "m.gguf", "bert", "bert."))
    wrong = metadata_of(config, "bert", 9) | tokens(config)
    file = write_gguf(tmp_path / "pool.gguf", wrong, table)
    with pytest.raises(UnsupportedModelError, match="pooling_type: 9 is not supported"):
        slmq.load_encoder(file)
    without = {k: v for k, v in tokens(config).items() if "unknown" not in k}
    without["tokenizer.ggml.tokens"] = without["tokenizer.ggml.tokens"][:50]
    without["tokenizer.ggml.token_type"] = without["tokenizer.ggml.token_type"][:50]
    file = write_gguf(tmp_path / "tokens.gguf", known | without, table)
    with pytest.raises(TokenizerError, match="unknown_token_id"):
        slmq.load_encoder(file)
