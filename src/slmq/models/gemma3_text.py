"""Gemma 3 270M, 1B, and the language model of 4B, 12B and 27B: "gemma3_text" and "gemma3".

A Gemma 2 with norms of queries and keys instead of soft caps, five layers with a window for one
without, and a rope of its own for each of the two kinds (Gemma Team, "Gemma 3 Technical Report",
2025). Files of type "gemma3" also hold a vision tower, which is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slmq.models import gemma2
from slmq.models.gemma2 import capped_logits, gemma_values, load_block, normed_mlp
from slmq.models.parts.decoder import load_decoder
from slmq.models.parts.gguf import DECODER_NAMES, GgufMap, Weights
from slmq.models.parts.rope import BASES, Rope, rope_of
from slmq.models.parts.values import config_number
from slmq.models.parts.windows import ropes_by_kind
from slmq.models.parts.wrapped import language_config, language_place
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What published configurations leave out.
DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
}
GLOBAL_BASE, LOCAL_BASE = 1e6, 1e4
EMBEDDING = "gemma-embedding"


@dataclass(frozen=True)
class Config(gemma2.Config):
    """What config.json says, checked; `rope` is that of layers without a window.

    Attributes
    ----------
    local_rope : Rope
        That of layers with a window.
    """

    local_rope: Rope

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        values = DEFAULTS | dict(language_config(config))
        far, near = ropes_by_kind(values, GLOBAL_BASE, LOCAL_BASE, "rope_local_base_freq")
        fields = gemma_values(far)
        return cls(**fields, local_rope=rope_of(near, fields["head_dim"]))


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_layer(prefix: str, layer: Weights) -> None:
        load_block(r, cfg, prefix, layer)
        offset = np.float32(cfg.norm_offset)
        layer.q_norm = r.vector(f"{prefix}.self_attn.q_norm.weight", cfg.head_dim) + offset
        layer.k_norm = r.vector(f"{prefix}.self_attn.k_norm.weight", cfg.head_dim) + offset

    model, head = language_place(r)
    w = load_decoder(r, cfg, load_layer, model=model, head=head)
    w.local_rope = cfg.local_rope
    w.norm = w.norm + np.float32(cfg.norm_offset)
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed, scale=float(cfg.hidden_size) ** 0.5)  # f32[m, hidden]
    far, near = p.rope(*w.rope.at(p.n_ctx)), p.rope(*w.local_rope.at(p.n_ctx))
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, cfg.rms_norm_eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            q = p.head_norm(q, layer.q_norm, cfg.rms_norm_eps)
            k = p.head_norm(k, layer.k_norm, cfg.rms_norm_eps)
            a = p.attention(
                q,
                k,
                v,
                head_dim=cfg.head_dim,
                rope=near if cfg.sliding[i] else far,
                scale=cfg.scale,
                window=cfg.window if cfg.sliding[i] else 0,
            )
            x = p.rmsnorm(p.linear(a, layer.o), layer.attn_post_norm, cfg.rms_norm_eps, add=x)
            x = normed_mlp(p, x, layer, cfg.rms_norm_eps)
    return capped_logits(p, x, w, cfg)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "gemma3" or "gemma-embedding" as a Hugging Face configuration.

    The latter is EmbeddingGemma, whose tokens see the whole text.
    """
    embeds = metadata.get("general.architecture") == EMBEDDING
    a = EMBEDDING if embeds else "gemma3"
    config = gemma2.gemma_from_gguf(metadata, tensors, a, wide_layers=62)
    if "sliding_window" not in config:
        config["sliding_window_pattern"] = 1  # no layer has one
    local = config_number(metadata, f"{a}.rope.freq_base_swa", *BASES, LOCAL_BASE)
    base = config_number(metadata, f"{a}.rope.freq_base", *BASES, GLOBAL_BASE)
    ropes = {"rope_theta": base, "rope_local_base_freq": local}
    return config | ropes | {"use_bidirectional_attention": embeds}


GGUF = GgufMap(
    architecture="gemma3",
    config=config_from_gguf,
    names=DECODER_NAMES,
    layer_names={
        **gemma2.GGUF.layer_names,
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
    },
)
