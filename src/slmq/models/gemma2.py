"""Gemma 2 2B, 9B and 27B: Hugging Face's model type "gemma2".

A Gemma whose attention and MLP are normed in front and behind, with a window in every other layer,
and soft caps for attention scores and logits (Gemma Team, "Gemma 2: Improving Open Language Models
at a Practical Size", 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slmq.errors import UnsupportedModelError
from slmq.models.parts.config import DecoderConfig, config_window, decoder_values, layer_sliding
from slmq.models.parts.decoder import load_attention, load_decoder, load_gated_mlp
from slmq.models.parts.gguf import (
    ATTENTION_PARTS,
    DECODER_NAMES,
    LAYER_NAMES,
    GgufMap,
    Weights,
    any_bias,
    decoder_from_gguf,
)
from slmq.models.parts.values import config_count, config_layers, config_number, config_value
from slmq.models.parts.windows import windows_from_gguf
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

GELU = "gelu_pytorch_tanh"
NORMS = {
    "attn_norm": "input_layernorm",
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    attention_bias : bool
    norm_offset : float
        Added to stored norm weights: 1, but for GGUF files, which store the sum.
    scale : float
        Of attention scores.
    window : int
        Latest positions that a query sees where `sliding` says so; 0 for all.
    sliding : tuple of bool
    attention_softcap, logit_softcap : float
        0 for none.
    """

    attention_bias: bool
    norm_offset: float
    scale: float
    window: int
    sliding: tuple[bool, ...]
    attention_softcap: float
    logit_softcap: float

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        # Every other layer has a window, the first one too.
        values = {
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window_pattern": 2,
            "num_key_value_heads": 4,
            "max_position_embeddings": 8192,
        } | dict(config)
        return cls(**gemma_values(values))


def gemma_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Config`; raises as `decoder_values`.

    The last of every `sliding_window_pattern` layers has no window, unless `layer_types` says it.
    """
    values = {"head_dim": 256, "tie_word_embeddings": True, "sliding_window": 4096} | dict(config)
    # Not hidden_act, which some files hold too.
    values["hidden_act"] = config_value(config, "hidden_activation", str, GELU)
    if config.get("use_bidirectional_attention"):
        raise UnsupportedModelError(
            "a model whose tokens see later ones writes no text; slmq.load_encoder reads it"
        )
    scalar = config_number(config, "query_pre_attn_scalar", 1e-3, 1e6, 256.0)
    layers = config_layers(config)
    every = config_count(config, "sliding_window_pattern")
    return decoder_values(values, activation=GELU) | {
        "attention_bias": config_value(config, "attention_bias", bool, False),
        "norm_offset": config_number(config, "norm_offset", -16.0, 16.0, 1.0),
        "scale": scalar**-0.5,
        "window": config_window(values),
        "sliding": layer_sliding(config, [(i + 1) % every != 0 for i in range(layers)]),
        "attention_softcap": _softcap(config, "attn_logit_softcapping"),
        "logit_softcap": _softcap(config, "final_logit_softcapping"),
    }


def _softcap(config: Mapping[str, Any], key: str) -> float:
    """A soft cap; 0 where it is missing or null."""
    if config.get(key) is None:
        return 0.0
    return config_number(config, key, 1e-3, 1e6)


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_layer(prefix: str, layer: Weights) -> None:
        load_block(r, cfg, prefix, layer)

    w = load_decoder(r, cfg, load_layer)
    w.norm = w.norm + np.float32(cfg.norm_offset)
    return w


def load_block(r: Reader, cfg: Config, prefix: str, layer: Weights) -> None:
    """Four norms, attention and MLP of a layer."""
    for name, stored in NORMS.items():
        norm = r.vector(f"{prefix}.{stored}.weight", cfg.hidden_size)
        setattr(layer, name, norm + np.float32(cfg.norm_offset))
    bias = cfg.attention_bias
    load_attention(r, cfg, prefix, layer, qkv_bias=bias, o_bias=bias)
    load_gated_mlp(r, cfg, prefix, layer)


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed, scale=float(cfg.hidden_size) ** 0.5)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, cfg.rms_norm_eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            a = p.attention(
                q,
                k,
                v,
                head_dim=cfg.head_dim,
                rope=rope,
                scale=cfg.scale,
                window=cfg.window if cfg.sliding[i] else 0,
                softcap=cfg.attention_softcap,
            )
            x = p.rmsnorm(p.linear(a, layer.o), layer.attn_post_norm, cfg.rms_norm_eps, add=x)
            x = normed_mlp(p, x, layer, cfg.rms_norm_eps)
    return capped_logits(p, x, w, cfg)


def normed_mlp(p: Recording, x: Handle, layer: Weights, eps: float) -> Handle:
    """x + norm(down(gelu(gate(h)) * up(h))) with h the norm of x."""
    h = p.rmsnorm(x, layer.mlp_norm, eps)
    y = p.linear(p.gated(h, layer.gate, layer.up, "gelu_tanh"), layer.down)
    return p.rmsnorm(y, layer.mlp_post_norm, eps, add=x)


def capped_logits(p: Recording, x: Handle, w: Weights, cfg: Config) -> Handle:
    """The output head over the selected rows, capped where the model says so."""
    h = p.rmsnorm(p.select(x), w.norm, cfg.rms_norm_eps)
    return p.linear(h, w.lm_head, softcap=cfg.logit_softcap)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "gemma2" as a Hugging Face configuration."""
    # The file does not say what queries are divided by: by the head size, but for the 27B model,
    # which is known by its layers.
    return gemma_from_gguf(metadata, tensors, "gemma2", wide_layers=46)


def gemma_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], architecture: str, wide_layers: int
) -> dict[str, Any]:
    """GGUF metadata of both architectures; a model of `wide_layers` scales queries by its width."""
    a = architecture
    config = decoder_from_gguf(metadata, tensors, a)
    wide = config["num_hidden_layers"] == wide_layers
    width = config["hidden_size"] // max(config["num_attention_heads"], 1)
    config |= {
        "norm_offset": 0.0,
        "attention_bias": any_bias(tensors, *ATTENTION_PARTS),
        "query_pre_attn_scalar": float(width if wide else config["head_dim"]),
    }
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if metadata.get(f"{a}.{cap}"):  # 0 is none
            config[cap] = metadata[f"{a}.{cap}"]
    return config | windows_from_gguf(metadata, a)


GGUF = GgufMap(
    architecture="gemma2",
    config=config_from_gguf,
    names=DECODER_NAMES,
    layer_names=LAYER_NAMES
    | {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
)
