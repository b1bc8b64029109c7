"""Seed-OSS: Hugging Face's model type "seed_oss".

A Llama whose queries, keys and values have biases and whose output may have one of its own
(ByteDance Seed Team, "Seed-OSS", 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.parts.config import DecoderConfig, decoder_values
from slmq.models.parts.decoder import (
    gated_mlp,
    load_attention,
    load_decoder,
    load_gated_mlp,
    load_norms,
    logits,
)
from slmq.models.parts.gguf import (
    DECODER_NAMES,
    LAYER_NAMES,
    GgufMap,
    Weights,
    any_bias,
    decoder_from_gguf,
)
from slmq.models.parts.values import config_value
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = {"head_dim": 128, "max_position_embeddings": 524288}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked."""

    attention_bias: bool
    attention_out_bias: bool
    mlp_bias: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        return cls(
            **decoder_values(DEFAULTS | dict(config)),
            attention_bias=config_value(config, "attention_bias", bool, True),
            attention_out_bias=config_value(config, "attention_out_bias", bool, False),
            mlp_bias=config_value(config, "mlp_bias", bool, False),
        )


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_layer(prefix: str, layer: Weights) -> None:
        load_norms(r, cfg, prefix, layer)
        qkv, out = cfg.attention_bias, cfg.attention_out_bias
        load_attention(r, cfg, prefix, layer, qkv_bias=qkv, o_bias=out)
        load_gated_mlp(r, cfg, prefix, layer, bias=cfg.mlp_bias)

    return load_decoder(r, cfg, load_layer)


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, cfg.rms_norm_eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope)
            x = p.linear(a, layer.o, add=x)
            x = gated_mlp(p, x, layer, cfg.rms_norm_eps)
    return logits(p, x, w, cfg.rms_norm_eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "seed_oss" as a Hugging Face configuration."""
    return decoder_from_gguf(metadata, tensors, "seed_oss") | {
        "attention_bias": any_bias(tensors, "attn_qkv", "attn_q", "attn_k", "attn_v"),
        "attention_out_bias": any_bias(tensors, "attn_output"),
        "mlp_bias": any_bias(tensors, "ffn_gate", "ffn_up", "ffn_down"),
    }


GGUF = GgufMap(
    architecture="seed_oss",
    config=config_from_gguf,
    names=DECODER_NAMES,
    layer_names=LAYER_NAMES | {"post_attention_layernorm": "post_attention_norm"},
)
