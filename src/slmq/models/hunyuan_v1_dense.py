"""Hunyuan's dense models of 0.5B to 7B: Hugging Face's model type "hunyuan_v1_dense".

A Llama whose queries and keys are normed head by head, behind rope (Tencent, "Hunyuan Dense",
2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.machine.exact import exact_pow
from slmq.models.llama import config_from_gguf as llama_from_gguf
from slmq.models.parts.config import DecoderConfig, decoder_values
from slmq.models.parts.decoder import (
    gated_mlp,
    load_attention,
    load_decoder,
    load_gated_mlp,
    load_norms,
    logits,
)
from slmq.models.parts.gguf import DECODER_NAMES, LAYER_NAMES, GgufMap, Weights
from slmq.models.parts.rope import BASES, FACTORS, PLAIN_BASE, merged_rope
from slmq.models.parts.values import config_count, config_number, config_value
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = {"rms_norm_eps": 1e-5}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked."""

    attention_bias: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        return cls(
            **decoder_values(_stretched(DEFAULTS | dict(config))),
            attention_bias=config_value(config, "attention_bias", bool, False),
        )


def _stretched(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with `alpha` in the base of its rope, where a "dynamic" one has it.

    It stretches the base once and for all, whatever the length of a text.
    """
    rope = merged_rope(config)
    if rope.get("rope_type", rope.get("type")) != "dynamic" or not rope.get("alpha"):
        return config
    heads = config_count(config, "num_attention_heads")
    head_dim = config_count(config, "head_dim", config_count(config, "hidden_size") // heads, low=4)
    alpha = config_number(rope, "alpha", *FACTORS)
    base = config_number(config | rope, "rope_theta", *BASES, PLAIN_BASE)
    stretched = base * exact_pow(alpha, head_dim / (head_dim - 2))
    kept = {"rope_type": "default", "rope_theta": stretched}
    return config | {"rope_scaling": None, "rope_parameters": kept}


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_layer(prefix: str, layer: Weights) -> None:
        load_norms(r, cfg, prefix, layer)
        bias = cfg.attention_bias
        load_attention(r, cfg, prefix, layer, qkv_bias=bias, o_bias=bias)
        layer.q_norm = r.vector(f"{prefix}.self_attn.query_layernorm.weight", cfg.head_dim)
        layer.k_norm = r.vector(f"{prefix}.self_attn.key_layernorm.weight", cfg.head_dim)
        load_gated_mlp(r, cfg, prefix, layer)

    return load_decoder(r, cfg, load_layer)


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, cfg.rms_norm_eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            q = p.head_norm(p.rotate(q, rope, cfg.head_dim), layer.q_norm, cfg.rms_norm_eps)
            k = p.head_norm(p.rotate(k, rope, cfg.head_dim), layer.k_norm, cfg.rms_norm_eps)
            a = p.attention(q, k, v, head_dim=cfg.head_dim)
            x = p.linear(a, layer.o, add=x)
            x = gated_mlp(p, x, layer, cfg.rms_norm_eps)
    return logits(p, x, w, cfg.rms_norm_eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "hunyuan-dense" as a Hugging Face configuration.

    The base of its rope is stretched already.
    """
    return llama_from_gguf(metadata, tensors, "hunyuan-dense")


GGUF = GgufMap(
    architecture="hunyuan-dense",
    config=config_from_gguf,
    names=DECODER_NAMES,
    layer_names=LAYER_NAMES
    | {"self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm"},
)
