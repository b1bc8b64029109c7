"""Gemma 2B and 7B: Hugging Face's model type "gemma".

Embeddings times the root of their width, norms with a weight of 1 + w, an MLP gated by gelu, wide
heads (Gemma Team, "Gemma: Open Models Based on Gemini Research and Technology", 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slmq.errors import UnsupportedModelError
from slmq.models.parts.config import DecoderConfig, decoder_values
from slmq.models.parts.decoder import (
    load_attention,
    load_decoder,
    load_gated_mlp,
    load_norms,
    logits,
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
from slmq.models.parts.values import config_number, config_value
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

GELU = "gelu_pytorch_tanh"
# What holds where config.json is silent.
DEFAULTS = {"head_dim": 256, "tie_word_embeddings": True, "max_position_embeddings": 8192}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    norm_offset : float
        Added to stored norm weights: 1, but for GGUF files, which store the sum.
    """

    attention_bias: bool
    norm_offset: float

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        values = DEFAULTS | dict(config)
        # The first releases say gelu and mean its tanh approximation.
        if values.get("hidden_act") == "gelu":
            values["hidden_act"] = GELU
        if values.get("use_bidirectional_attention"):
            raise UnsupportedModelError("bidirectional attention is not supported")
        return cls(
            **decoder_values(values, activation=GELU),
            attention_bias=config_value(config, "attention_bias", bool, False),
            norm_offset=config_number(config, "norm_offset", -16.0, 16.0, 1.0),
        )


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""
    offset = np.float32(cfg.norm_offset)

    def load_layer(prefix: str, layer: Weights) -> None:
        load_norms(r, cfg, prefix, layer)
        layer.attn_norm = layer.attn_norm + offset
        layer.mlp_norm = layer.mlp_norm + offset
        bias = cfg.attention_bias
        load_attention(r, cfg, prefix, layer, qkv_bias=bias, o_bias=bias)
        load_gated_mlp(r, cfg, prefix, layer)

    w = load_decoder(r, cfg, load_layer)
    w.norm = w.norm + offset
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed, scale=float(cfg.hidden_size) ** 0.5)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, cfg.rms_norm_eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope)
            x = p.linear(a, layer.o, add=x)
            h = p.rmsnorm(x, layer.mlp_norm, cfg.rms_norm_eps)
            x = p.linear(p.gated(h, layer.gate, layer.up, "gelu_tanh"), layer.down, add=x)
    return logits(p, x, w, cfg.rms_norm_eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "gemma" as a Hugging Face configuration."""
    return decoder_from_gguf(metadata, tensors, "gemma") | {
        "norm_offset": 0.0,
        "attention_bias": any_bias(tensors, *ATTENTION_PARTS),
    }


GGUF = GgufMap("gemma", config_from_gguf, DECODER_NAMES, LAYER_NAMES)
