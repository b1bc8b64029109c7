"""EXAONE 4.0: Hugging Face's model type "exaone4".

Normed behind attention and MLP as OLMo 2, with queries and keys normed head by head. Models with
windows have them in three of four layers; the others of those see everything and have no rope
(LG AI Research, "EXAONE 4.0", 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.olmo2 import POST_NORMED, load_post_norms, post_normed
from slmq.models.parts.config import DecoderConfig, config_window, decoder_values, layer_sliding
from slmq.models.parts.decoder import (
    load_attention,
    load_decoder,
    load_gated_mlp,
    logits,
    stored_rope,
)
from slmq.models.parts.gguf import DECODER_NAMES, GgufMap, Weights, decoder_from_gguf
from slmq.models.parts.values import config_count, config_layers
from slmq.models.parts.windows import windows_from_gguf
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = {
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked; `roped` and `windows` (0: none) have an entry a layer."""

    roped: tuple[bool, ...]
    windows: tuple[int, ...]

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        values = DEFAULTS | dict(config)
        window = config_window(values)
        sliding = _sliding(values) if window else (False,) * config_layers(values)
        return cls(
            **decoder_values(values),
            roped=tuple(slides or not window for slides in sliding),
            windows=tuple(window if slides else 0 for slides in sliding),
        )


def _sliding(config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Which layers have a window: by `layer_types`, or by "LLLG", or all but every so-manieth."""
    layers = config_layers(config)
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, str) and pattern and set(pattern) <= set("LG"):
        # The last layer sees everything, whatever the pattern says.
        marks = [pattern[i % len(pattern)] == "L" and i < layers - 1 for i in range(layers)]
        return layer_sliding(config, marks)
    every = config_count(config, "sliding_window_pattern")
    return layer_sliding(config, [(i + 1) % every != 0 for i in range(layers)])


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_layer(prefix: str, layer: Weights) -> None:
        load_post_norms(r, cfg, prefix, layer)
        load_attention(r, cfg, prefix, layer)
        layer.q_norm = r.vector(f"{prefix}.self_attn.q_norm.weight", cfg.head_dim)
        layer.k_norm = r.vector(f"{prefix}.self_attn.k_norm.weight", cfg.head_dim)
        load_gated_mlp(r, cfg, prefix, layer)

    w = load_decoder(r, cfg, load_layer)
    w.rope = stored_rope(r, cfg)
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            q, k, v = p.linear(x, [layer.q, layer.k, layer.v]).split()
            q = p.head_norm(q, layer.q_norm, cfg.rms_norm_eps)
            k = p.head_norm(k, layer.k_norm, cfg.rms_norm_eps)
            turned = rope if cfg.roped[i] else None
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=turned, window=cfg.windows[i])
            x = post_normed(p, x, a, layer, cfg.rms_norm_eps)
    return logits(p, x, w, cfg.rms_norm_eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "exaone4" as a Hugging Face configuration."""
    windows = windows_from_gguf(metadata, "exaone4")
    return decoder_from_gguf(metadata, tensors, "exaone4") | {"sliding_window": None} | windows


GGUF = GgufMap(
    architecture="exaone4",
    config=config_from_gguf,
    names=DECODER_NAMES | {"rope_freqs": "rope_freqs"},
    layer_names=POST_NORMED,
)
