"""Helium 1: Hugging Face's model type "helium".

A Llama whose rope turns neighbouring channels (2i, 2i + 1) (Kyutai, "Helium 1", 2025): rows of
queries and keys are put in the order of halves, as those of a Llama's GGUF file are. There are no
GGUF files of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slmq.models import llama
from slmq.models.parts.config import decoder_values
from slmq.models.parts.decoder import (
    load_attention,
    load_decoder,
    load_gated_mlp,
    load_norms,
    rope_orders,
)
from slmq.models.parts.gguf import Weights, no_gguf
from slmq.models.parts.values import config_value
from slmq.weights.base import Reader

# What configurations leave out.
DEFAULTS = {
    "num_key_value_heads": 20,
    "head_dim": 128,
    "rms_norm_eps": 1e-8,
    "rope_theta": 1e5,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class Config(llama.Config):
    """What config.json says, checked."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        values = DEFAULTS | dict(config)
        return cls(
            **decoder_values(values),
            attention_bias=config_value(values, "attention_bias", bool, False),
            mlp_bias=config_value(values, "mlp_bias", bool, False),
        )


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""
    orders = rope_orders(cfg, r.layout.own_rows)

    def load_layer(prefix: str, layer: Weights) -> None:
        load_norms(r, cfg, prefix, layer)
        load_attention(r, cfg, prefix, layer, qkv_bias=cfg.attention_bias, orders=orders)
        load_gated_mlp(r, cfg, prefix, layer, bias=cfg.mlp_bias)

    return load_decoder(r, cfg, load_layer)


forward = llama.forward
GGUF = no_gguf("helium", "model.embed_tokens")
