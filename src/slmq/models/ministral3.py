"""Ministral 3: Hugging Face's model types "ministral3" and "mistral3".

A Mistral whose queries grow with the logarithm of their position, beyond a context that yarn has
extended (Mistral AI, "Ministral 3", 2025). Files of type "mistral3" also hold a vision tower, which
is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.llama import config_from_gguf as llama_from_gguf
from slmq.models.parts.config import DecoderConfig, config_window, decoder_values
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
from slmq.models.parts.rope import merged_rope
from slmq.models.parts.values import config_number
from slmq.models.parts.wrapped import language_config, language_place
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 262144,
}
GROWTH = "llama_4_scaling_beta"


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    window : int
        Latest positions that a query sees; 0 for all.
    growth : float
        Of queries, with the logarithm of their position; 0 for none.
    """

    window: int
    growth: float

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        values = DEFAULTS | dict(language_config(config))
        return cls(
            **decoder_values(values),
            window=config_window(values),
            growth=config_number(merged_rope(values), GROWTH, 0.0, 1e3, 0.0),
        )


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""
    orders = rope_orders(cfg, r.layout.interleaved_rows)

    def load_layer(prefix: str, layer: Weights) -> None:
        load_norms(r, cfg, prefix, layer)
        load_attention(r, cfg, prefix, layer, orders=orders)
        load_gated_mlp(r, cfg, prefix, layer)

    model, head = language_place(r)
    w = load_decoder(r, cfg, load_layer, model=model, head=head)
    w.rope = stored_rope(r, cfg)
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    grows = cfg.growth > 0 and p.n_ctx > cfg.rope.original
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, cfg.rms_norm_eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            if grows:
                q = p.scale_by_position(q, cfg.growth, cfg.rope.original)
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope, window=cfg.window)
            x = p.linear(a, layer.o, add=x)
            x = gated_mlp(p, x, layer, cfg.rms_norm_eps)
    return logits(p, x, w, cfg.rms_norm_eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "mistral3" as a Hugging Face configuration."""
    config = llama_from_gguf(metadata, tensors, "mistral3")
    scaling = dict(config["rope_scaling"])
    if (growth := metadata.get("mistral3.attention.temperature_scale")) is not None:
        scaling[GROWTH] = growth
    if (weight := metadata.get("mistral3.rope.scaling.yarn_log_multiplier")) is not None:
        scaling |= {"mscale": 1.0, "mscale_all_dim": weight}
    return config | {"rope_scaling": scaling}


GGUF = GgufMap(
    architecture="mistral3",
    config=config_from_gguf,
    names=DECODER_NAMES | {"rope_freqs": "rope_freqs"},
    layer_names=LAYER_NAMES,
)
