"""A random LFM2 with a tokenizer of bytes: a model with a state beside its cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from byte_tokenizer import byte_tokenizer
from safetensors.numpy import save_file

VOCABULARY = 259
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, TAPS = 48, 64, 4, 2, 12, 3
KINDS = ("conv", "conv", "full_attention", "conv", "full_attention", "conv")


def lfm2_folder(folder: Path, seed: int = 0) -> Path:
    """Write the model; its attention picks, and its convolutions show."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "model_type": "lfm2",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "block_auto_adjust_ff_dim": False,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "num_hidden_layers": len(KINDS),
        "layer_types": KINDS,
        "conv_L_cache": TAPS,
        "max_position_embeddings": 1024,
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(_weights(np.random.default_rng(seed)), folder / "model.safetensors")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    special = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special), "utf-8")
    return folder


def _weights(rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
    def matrix(n: int, k: int, gain: float = 1.5) -> np.ndarray[Any, Any]:
        return rng.normal(0, gain / np.sqrt(k), (n, k)).astype(np.float16)

    def norm(size: int) -> np.ndarray[Any, Any]:
        return rng.uniform(0.5, 1.5, size).astype(np.float16)

    tensors = {
        "model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN, 2.0),
        "model.embedding_norm.weight": norm(HIDDEN),
    }
    for i, kind in enumerate(KINDS):
        prefix = f"model.layers.{i}"
        tensors |= {
            f"{prefix}.operator_norm.weight": norm(HIDDEN),
            f"{prefix}.ffn_norm.weight": norm(HIDDEN),
            f"{prefix}.feed_forward.w1.weight": matrix(INNER, HIDDEN),
            f"{prefix}.feed_forward.w3.weight": matrix(INNER, HIDDEN),
            f"{prefix}.feed_forward.w2.weight": matrix(HIDDEN, INNER),
        }
        if kind == "conv":
            name = f"{prefix}.conv"
            tensors |= {
                f"{name}.in_proj.weight": matrix(3 * HIDDEN, HIDDEN),
                f"{name}.conv.weight": rng.normal(0, 0.6, (HIDDEN, 1, TAPS)).astype(np.float16),
                f"{name}.out_proj.weight": matrix(HIDDEN, HIDDEN),
            }
            continue
        name, rows = f"{prefix}.self_attn", HEADS * HEAD_DIM
        tensors |= {
            f"{name}.q_proj.weight": matrix(rows, HIDDEN),
            f"{name}.k_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{name}.v_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{name}.q_layernorm.weight": norm(HEAD_DIM),
            f"{name}.k_layernorm.weight": norm(HEAD_DIM),
            f"{name}.out_proj.weight": matrix(HIDDEN, rows),
        }
    return tensors
