"""Random models that have a state beside their cache, with a tokenizer of bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from byte_tokenizer import byte_tokenizer
from safetensors.numpy import save_file

Array = np.ndarray[Any, Any]
VOCABULARY = 259
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, TAPS = 48, 64, 4, 2, 12, 3
KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM = 2, 4, 8, 12
WIDE_HEAD = 16
EXPERTS, EXPERT_INNER = 5, 24
KINDS = ("conv", "conv", "full_attention", "conv", "full_attention", "conv")


def lfm2_folder(folder: Path, seed: int = 0) -> Path:
    """Write an LFM2; its attention picks, and its convolutions show."""
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
    return _written(folder, config, _lfm2_weights(_Random(seed)))


def lfm2_moe_folder(folder: Path, seed: int = 0) -> Path:
    """Write an LFM2 whose layers but the first have experts."""
    config: dict[str, Any] = {
        "model_type": "lfm2_moe",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "moe_intermediate_size": EXPERT_INNER,
        "num_dense_layers": 1,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "use_expert_bias": True,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "num_hidden_layers": len(KINDS),
        "layer_types": KINDS,
        "conv_L_cache": TAPS,
        "max_position_embeddings": 1024,
    }
    random = _Random(seed)
    tensors = _lfm2_weights(random)
    for i in range(1, len(KINDS)):
        prefix = f"model.layers.{i}.feed_forward"
        for part in ("w1", "w2", "w3"):
            del tensors[f"{prefix}.{part}.weight"]
        tensors[f"{prefix}.gate.weight"] = random.matrix(EXPERTS, HIDDEN)
        tensors[f"{prefix}.expert_bias"] = random.norm(EXPERTS, 1.0)
        for expert in range(EXPERTS):
            name = f"{prefix}.experts.{expert}"
            tensors |= {
                f"{name}.w1.weight": random.matrix(EXPERT_INNER, HIDDEN),
                f"{name}.w3.weight": random.matrix(EXPERT_INNER, HIDDEN),
                f"{name}.w2.weight": random.matrix(HIDDEN, EXPERT_INNER),
            }
    return _written(folder, config, tensors)


def qwen3_5_folder(folder: Path, seed: int = 0) -> Path:
    """Write a Qwen3.5 of which every third layer attends."""
    config: dict[str, Any] = {
        "model_type": "qwen3_5_text",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": WIDE_HEAD,
        "num_hidden_layers": 6,
        "full_attention_interval": 3,
        "linear_num_key_heads": KEY_HEADS,
        "linear_num_value_heads": VALUE_HEADS,
        "linear_key_head_dim": KEY_DIM,
        "linear_value_head_dim": VALUE_DIM,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }
    return _written(folder, config, _qwen3_5_weights(_Random(seed)))


def _written(folder: Path, config: dict[str, Any], tensors: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(tensors, folder / "model.safetensors")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    special = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special), "utf-8")
    return folder


class _Random:
    """Weights whose every part shows."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def matrix(self, n: int, k: int, gain: float = 1.5) -> Array:
        return self._rng.normal(0, gain / np.sqrt(k), (n, k)).astype(np.float16)

    def norm(self, size: int, offset: float = 0.0) -> Array:
        return (self._rng.uniform(0.5, 1.5, size) - offset).astype(np.float16)

    def taps(self, channels: int, taps: int) -> Array:
        return self._rng.normal(0, 0.6, (channels, 1, taps)).astype(np.float16)


def _qwen3_5_weights(random: _Random) -> dict[str, Array]:
    matrix, keys, values = random.matrix, KEY_HEADS * KEY_DIM, VALUE_HEADS * VALUE_DIM
    tensors = {
        "model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN, 2.0),
        "model.norm.weight": random.norm(HIDDEN, 1.0),
    }
    for i in range(6):
        prefix = f"model.layers.{i}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": random.norm(HIDDEN, 1.0),
            f"{prefix}.post_attention_layernorm.weight": random.norm(HIDDEN, 1.0),
            f"{prefix}.mlp.gate_proj.weight": matrix(INNER, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": matrix(INNER, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": matrix(HIDDEN, INNER),
        }
        if i % 3 != 2:
            name = f"{prefix}.linear_attn"
            tensors |= {
                f"{name}.in_proj_qkv.weight": matrix(2 * keys + values, HIDDEN),
                f"{name}.in_proj_z.weight": matrix(values, HIDDEN),
                f"{name}.in_proj_a.weight": matrix(VALUE_HEADS, HIDDEN),
                f"{name}.in_proj_b.weight": matrix(VALUE_HEADS, HIDDEN),
                f"{name}.conv1d.weight": random.taps(2 * keys + values, 4),
                f"{name}.A_log": np.log(np.linspace(0.02, 2, VALUE_HEADS)).astype(np.float16),
                f"{name}.dt_bias": random.norm(VALUE_HEADS),
                f"{name}.norm.weight": random.norm(VALUE_DIM),
                f"{name}.out_proj.weight": matrix(HIDDEN, values),
            }
            continue
        name, rows = f"{prefix}.self_attn", HEADS * WIDE_HEAD
        tensors |= {
            f"{name}.q_proj.weight": matrix(2 * rows, HIDDEN),
            f"{name}.k_proj.weight": matrix(KV_HEADS * WIDE_HEAD, HIDDEN),
            f"{name}.v_proj.weight": matrix(KV_HEADS * WIDE_HEAD, HIDDEN),
            f"{name}.q_norm.weight": random.norm(WIDE_HEAD, 1.0),
            f"{name}.k_norm.weight": random.norm(WIDE_HEAD, 1.0),
            f"{name}.o_proj.weight": matrix(HIDDEN, rows),
        }
    return tensors


def _lfm2_weights(random: _Random) -> dict[str, Array]:
    matrix, norm = random.matrix, random.norm
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
                f"{name}.conv.weight": random.taps(HIDDEN, TAPS),
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
