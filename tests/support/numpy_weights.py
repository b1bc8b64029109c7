"""Readers that turn checkpoints into dense float32 arrays, for :mod:`numpy_llama`.

They are independent of the package's own readers: GGUF through the `gguf` package, safetensors
through its few lines of layout (the `safetensors` package has no bfloat16 in NumPy).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy_llama import LlamaConfig, rope_inv_freq

Weights = dict[str, npt.NDArray[np.float32]]

GGUF_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def bf16_to_f32(raw: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The float32 values of bfloat16 bit patterns: their upper halves."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


def read_safetensors(path: Path) -> Weights:
    """Every tensor of one F32, F16 or BF16 safetensors file as float32."""
    blob = path.read_bytes()
    n_header = int.from_bytes(blob[:8], "little")
    header: dict[str, Any] = json.loads(blob[8 : 8 + n_header])
    header.pop("__metadata__", None)
    weights: Weights = {}
    for name, info in header.items():
        begin, end = (8 + n_header + o for o in info["data_offsets"])
        if info["dtype"] == "BF16":
            flat = bf16_to_f32(np.frombuffer(blob[begin:end], np.uint16))
        else:
            dtype = {"F32": np.float32, "F16": np.float16}[info["dtype"]]
            flat = np.frombuffer(blob[begin:end], dtype).astype(np.float32)
        weights[name] = flat.reshape(info["shape"])
    return weights


def load_hf_folder(folder: Path) -> tuple[LlamaConfig, Weights]:
    """Config and weights of a Hugging Face folder, in one file or in shards."""
    index = folder / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.exists():
        files = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    weights: Weights = {}
    for file in sorted(files):
        weights |= read_safetensors(folder / file)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return LlamaConfig.from_hf(config), weights


def unpermute_rope(w: npt.NDArray[Any], n_heads: int) -> npt.NDArray[Any]:
    """Reorder the rows of a q or k matrix from interleaved to half-split rope pairs.

    GGUF and llama2.c rotate rows (0, 1), (2, 3), ... of a head together; Hugging Face rotates
    rows (0, d / 2), (1, d / 2 + 1), ...: row 2i moves to i, row 2i + 1 to d / 2 + i.
    """
    per_head = w.reshape(n_heads, -1, 2, *w.shape[1:])  # [heads, pairs, 2, ...]
    return np.asarray(per_head.swapaxes(1, 2).reshape(w.shape))


def load_gguf(path: Path) -> tuple[LlamaConfig, Weights, dict[str, Any]]:
    """Config, dequantized weights (Hugging Face names and row order) and metadata of a GGUF."""
    import gguf

    reader = gguf.GGUFReader(path)
    meta: dict[str, Any] = {name: f.contents() for name, f in reader.fields.items()}
    n_heads = int(meta["llama.attention.head_count"])
    n_kv_heads = int(meta.get("llama.attention.head_count_kv", n_heads))
    weights: Weights = {}
    inv_freq_divisor: npt.NDArray[Any] | float = 1.0
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        stem, kind = tensor.name.rsplit(".", 1)
        if stem == "rope_freqs":  # llama3 scaling arrives as one divisor per pair
            inv_freq_divisor = values.astype(np.float64)
            continue
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            if part in ("attn_q", "attn_k"):
                values = unpermute_rope(values, n_heads if part == "attn_q" else n_kv_heads)
            stem = f"model.layers.{layer}.{GGUF_LAYER[part]}"
        else:
            stem = GGUF_TOP[stem]
        weights[f"{stem}.{kind}"] = values
    head_dim = int(
        meta.get("llama.attention.key_length", meta["llama.embedding_length"] // n_heads)
    )
    scaling = {"rope_type": "default"}
    if meta.get("llama.rope.scaling.type") == "linear":
        scaling = {"rope_type": "linear", "factor": meta["llama.rope.scaling.factor"]}
    theta = float(meta.get("llama.rope.freq_base", 10000.0))
    config = LlamaConfig(
        n_layers=int(meta["llama.block_count"]),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(meta["llama.attention.layer_norm_rms_epsilon"]),
        inv_freq=rope_inv_freq(head_dim, theta, scaling) / inv_freq_divisor,
        bos_token_id=meta.get("tokenizer.ggml.bos_token_id"),
    )
    return config, weights, meta
