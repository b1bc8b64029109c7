"""Qwen3 and others of Hugging Face's model type "qwen3".

A Llama whose queries and keys are normed head by head before rope, with windows in some layers
where the configuration turns them on (Yang et al., "Qwen3 Technical Report", 2025).
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
    windows: tuple[int, ...]

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        # Its head_dim does not follow from the heads, and 128 is what its configurations leave out.
        return cls(
            **decoder_values({"head_dim": 128, "max_position_embeddings": 32768} | dict(config)),
            attention_bias=config_value(config, "attention_bias", bool, False),
            windows=layer_windows(config),
        )


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_layer(prefix: str, layer: Weights) -> None:
        load_norms(r, cfg, prefix, layer)
        bias = cfg.attention_bias
        load_attention(r, cfg, prefix, layer, qkv_bias=bias, o_bias=bias)
        layer.q_norm = r.vector(f"{prefix}.self_attn.q_norm.weight", cfg.head_dim)
        layer.k_norm = r.vector(f"{prefix}.self_attn.k_norm.weight", cfg.head_dim)
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
            q = p.head_norm(q, layer.q_norm, cfg.rms_norm_eps)
            k = p.head_norm(k, layer.k_norm, cfg.rms_norm_eps)
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope, window=cfg.windows[i])
            x = p.linear(a, layer.o, add=x)
            x = gated_mlp(p, x, layer, cfg.rms_norm_eps)
    return logits(p, x, w, cfg.rms_norm_eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "qwen3" as a Hugging Face configuration."""
    return decoder_from_gguf(metadata, tensors, "qwen3") | {
        "attention_bias": any_bias(tensors, *ATTENTION_PARTS)
    }


GGUF = GgufMap(
    architecture="qwen3",
    config=config_from_gguf,
    names=DECODER_NAMES,
    layer_names=LAYER_NAMES
    | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"},
)
