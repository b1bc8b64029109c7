"""SmolLM3: Hugging Face's model type "smollm3".

A Llama of which some layers, one in four, have no rope at all (Bakouch et al., "SmolLM3", 2025;
Yang et al., "Rope to Nope and Back Again", 2025), with windows in those where the configuration
turns them on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.errors import CheckpointError
from slmq.models.llama import config_from_gguf as llama_from_gguf
from slmq.models.parts.config import DecoderConfig, config_window, decoder_values, layer_sliding
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
    DECODER_NAMES,
    LAYER_NAMES,
    GgufMap,
    Weights,
)
from slmq.models.parts.values import config_count, config_layers, config_value
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "rope_theta": 2e6,
}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked; `roped` and `windows` (0: none) have an entry a layer."""

    attention_bias: bool
    mlp_bias: bool
    roped: tuple[bool, ...]
    windows: tuple[int, ...]

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        values = DEFAULTS | dict(config)
        roped = _roped(values)
        windowed = config_value(values, "use_sliding_window", bool, False)
        window = config_window(values) if windowed else 0
        sliding = layer_sliding(values, [not turns for turns in roped])
        return cls(
            **decoder_values(values),
            attention_bias=config_value(values, "attention_bias", bool, False),
            mlp_bias=config_value(values, "mlp_bias", bool, False),
            roped=roped,
            windows=tuple(window if slides else 0 for slides in sliding),
        )


def _roped(config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Which layers have rope: `no_rope_layers` says 1 for those that have, 0 for the others."""
    layers = config_layers(config)
    if config.get("no_rope_layers") is None:
        every = config_count(config, "no_rope_layer_interval", 4)
        return tuple((i + 1) % every != 0 for i in range(layers))
    listed = config_value(config, "no_rope_layers", list)
    if len(listed) < layers or any(value not in (0, 1) for value in listed):
        raise CheckpointError(
            f"expected no_rope_layers to hold 0 or 1 for each of {layers} layers, "
            f"found {listed!r:.80}"
        )
    return tuple(bool(value) for value in listed[:layers])


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
            turned = rope if cfg.roped[i] else None
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=turned, window=cfg.windows[i])
            x = p.linear(a, layer.o, add=x)
            x = gated_mlp(p, x, layer, cfg.rms_norm_eps)
    return logits(p, x, w, cfg.rms_norm_eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "smollm3" as a Hugging Face configuration.

    It does not say which layers have no rope: every fourth, in llama.cpp, too.
    """
    return llama_from_gguf(metadata, tensors, "smollm3")


GGUF = GgufMap(
    architecture="smollm3",
    config=config_from_gguf,
    names=DECODER_NAMES | {"rope_freqs": "rope_freqs"},
    layer_names=LAYER_NAMES,
)
