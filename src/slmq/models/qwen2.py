"""Qwen2, Qwen2.5, TinySwallow and others of Hugging Face's model type "qwen2".

A Llama with biases of queries, keys and values, and windows in some layers where the configuration
turns them on (Yang et al., "Qwen2 Technical Report", 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.parts.config import DecoderConfig, decoder_values, layer_windows
from slmq.models.parts.decoder import (
    gated_mlp,
    load_attention,
    load_decoder,
    load_gated_mlp,
    load_norms,
    logits,
)
from slmq.models.parts.gguf import DECODER_NAMES, LAYER_NAMES, GgufMap, Weights, decoder_from_gguf
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked."""

    windows: tuple[int, ...]

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        values = {"max_position_embeddings": 32768} | dict(config)
        return cls(**decoder_values(values), windows=layer_windows(values))


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_layer(prefix: str, layer: Weights) -> None:
        load_norms(r, cfg, prefix, layer)
        load_attention(r, cfg, prefix, layer, qkv_bias=True)
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
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope, window=cfg.windows[i])
            x = p.linear(a, layer.o, add=x)
            x = gated_mlp(p, x, layer, cfg.rms_norm_eps)
    return logits(p, x, w, cfg.rms_norm_eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "qwen2" as a Hugging Face configuration."""
    return decoder_from_gguf(metadata, tensors, "qwen2")


GGUF = GgufMap("qwen2", config_from_gguf, DECODER_NAMES, LAYER_NAMES)
