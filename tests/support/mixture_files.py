"""A random mixture of experts with a tokenizer of bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from byte_tokenizer import byte_tokenizer
from safetensors.numpy import save_file
from tokenizers import AddedToken

VOCABULARY, HIDDEN, INNER, EXPERTS = 259, 64, 32, 6


def mixture_folder(folder: Path, marks: Sequence[str] = ()) -> Path:
    """Write a Qwen3 of two layers of six experts, of which a row goes to two.

    `marks` are further special tokens of its tokenizer.
    """
    vocabulary = VOCABULARY + len(marks)
    config: dict[str, Any] = {
        "model_type": "qwen3_moe",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 2,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": INNER,
        "norm_topk_prob": True,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    rng = np.random.default_rng(0)

    def matrix(n: int, k: int) -> Any:
        return rng.normal(0, 1.5 / np.sqrt(k), (n, k)).astype(np.float16)

    ones = np.ones
    tensors = {
        "model.embed_tokens.weight": matrix(vocabulary, HIDDEN),
        "model.norm.weight": ones(HIDDEN, np.float16),
    }
    for i in range(2):
        prefix = f"model.layers.{i}"
        for part in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{part}.weight"] = ones(HIDDEN, np.float16)
        for part, n in (("q", 64), ("k", 32), ("v", 32), ("o", HIDDEN)):
            tensors[f"{prefix}.self_attn.{part}_proj.weight"] = matrix(n, 64)
        for part in ("q", "k"):
            tensors[f"{prefix}.self_attn.{part}_norm.weight"] = ones(16, np.float16)
        tensors[f"{prefix}.mlp.gate.weight"] = matrix(EXPERTS, HIDDEN)
        for e in range(EXPERTS):
            name = f"{prefix}.mlp.experts.{e}"
            tensors[f"{name}.gate_proj.weight"] = matrix(INNER, HIDDEN)
            tensors[f"{name}.up_proj.weight"] = matrix(INNER, HIDDEN)
            tensors[f"{name}.down_proj.weight"] = matrix(HIDDEN, INNER)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(tensors, folder / "model.safetensors")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
