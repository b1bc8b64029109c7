"""Mistral 7B, Rakuten AI 2.0 mini and others of Hugging Face's model type "mistral".

A Llama whose queries see a window of the latest positions (Jiang et al., "Mistral 7B", 2023). GGUF
files of these models are of architecture "llama" and do not store the window; llama.cpp runs them
without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.llama import GGUF
from slmq.models.parts.config import DecoderConfig, config_window, decoder_values
from slmq.models.parts.decoder import (
    gated_mlp,
    load_attention,
    load_decoder,
    load_gated_mlp,
    load_norms,
    logits,
    rope_orders,
)
from slmq.models.parts.gguf import Weights
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

__all__ = ["GGUF", "Config", "forward", "load"]

# What holds where config.json is silent; null is said.
DEFAULTS = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked."""

    window: int

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        values = DEFAULTS | dict(config)
        return cls(**decoder_values(values), window=config_window(values))


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""
    orders = rope_orders(cfg, r.layout.interleaved_rows)  # of adapters in GGUF files

    def load_layer(prefix: str, layer: Weights) -> None:
        load_norms(r, cfg, prefix, layer)
        load_attention(r, cfg, prefix, layer, orders=orders)
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
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope, window=cfg.window)
            x = p.linear(a, layer.o, add=x)
            x = gated_mlp(p, x, layer, cfg.rms_norm_eps)
    return logits(p, x, w, cfg.rms_norm_eps)
