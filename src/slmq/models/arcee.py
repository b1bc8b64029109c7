"""Arcee's AFM-4.5B: Hugging Face's model type "arcee".

A Llama whose MLP has no gate and squares what is above zero (Arcee AI, "AFM-4.5B", 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.llama import config_from_gguf as llama_from_gguf
from slmq.models.parts.config import DecoderConfig, decoder_values
from slmq.models.parts.decoder import (
    load_attention,
    load_decoder,
    load_mlp,
    load_norms,
    logits,
    rope_orders,
    stored_rope,
)
from slmq.models.parts.gguf import (
    DECODER_NAMES,
    LAYER_NAMES,
    GgufMap,
    Weights,
)
from slmq.models.parts.values import config_value
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked."""

    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        return cls(
            **decoder_values(DEFAULTS | dict(config), activation="relu2"),
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
        load_mlp(r, cfg, f"{prefix}.mlp", ("up_proj", "down_proj"), layer, bias=cfg.mlp_bias)

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
            h = p.rmsnorm(x, layer.mlp_norm, cfg.rms_norm_eps)
            x = p.linear(p.linear(h, layer.up, activation="relu2"), layer.down, add=x)
    return logits(p, x, w, cfg.rms_norm_eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "arcee" as a Hugging Face configuration."""
    return llama_from_gguf(metadata, tensors, "arcee") | {"hidden_act": "relu2"}


GGUF = GgufMap(
    architecture="arcee",
    config=config_from_gguf,
    names=DECODER_NAMES | {"rope_freqs": "rope_freqs"},
    layer_names=LAYER_NAMES,
)
