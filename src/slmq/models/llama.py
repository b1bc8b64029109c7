"""Llama 2 and 3, TinyLlama, SmolLM2, Orca-2 and others of Hugging Face's model type "llama".

Touvron et al., "LLaMA", 2023; Grattafiori et al., "The Llama 3 Herd of Models", 2024.
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
    rope_orders,
    stored_rope,
)
from slmq.models.parts.gguf import (
    ATTENTION_PARTS,
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


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked."""

    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        return cls(
            **decoder_values(config),
            attention_bias=config_value(config, "attention_bias", bool, False),
            mlp_bias=config_value(config, "mlp_bias", bool, False),
        )


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""
    orders = rope_orders(cfg, r.layout.interleaved_rows)

    def load_layer(prefix: str, layer: Weights) -> None:
        load_norms(r, cfg, prefix, layer)
        bias = cfg.attention_bias
        load_attention(r, cfg, prefix, layer, qkv_bias=bias, o_bias=bias, orders=orders)
        load_gated_mlp(r, cfg, prefix, layer, bias=cfg.mlp_bias)

    w = load_decoder(r, cfg, load_layer)
    w.rope = stored_rope(r, cfg)
    return w


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


def config_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], architecture: str = "llama"
) -> dict[str, Any]:
    """GGUF metadata of an architecture with a Llama's keys as a Hugging Face configuration."""
    return decoder_from_gguf(metadata, tensors, architecture) | {
        "attention_bias": any_bias(tensors, *ATTENTION_PARTS),
        "mlp_bias": any_bias(tensors, "ffn_gate", "ffn_up", "ffn_down"),
    }


GGUF = GgufMap(
    architecture="llama",
    config=config_from_gguf,
    names=DECODER_NAMES | {"rope_freqs": "rope_freqs"},
    layer_names=LAYER_NAMES,
)
