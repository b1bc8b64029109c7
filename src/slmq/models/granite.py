"""Granite 3 and the dense ones of 4: Hugging Face's model type "granite".

A Llama whose embeddings, scores, logits and additions to the residual stream have constant factors
(IBM, "Granite 3.0 Language Models", 2024).

What every layer adds is to be multiplied by r. Here the stream is held in units of r instead: it
begins as the embedding divided by r, layers add what they compute as it is, and since norms do not
see a common factor only their eps is to be divided by r^2. So the factor costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slmq.errors import UnsupportedModelError
from slmq.models.llama import config_from_gguf as llama_from_gguf
from slmq.models.parts.config import DecoderConfig, decoder_values
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
from slmq.models.parts.values import config_number, config_value
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

MULTIPLIERS = (1e-6, 1e6)


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    attention_bias, mlp_bias : bool
    embedding, residual, attention : float
        Factors of embeddings, of what layers add, and of scores.
    logits_scaling : float
        What logits are divided by.
    roped : bool
        Whether positions turn queries and keys.
    """

    attention_bias: bool
    mlp_bias: bool
    embedding: float
    residual: float
    attention: float
    logits_scaling: float
    roped: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        return cls(**granite_values({"position_embedding_type": "rope"} | dict(config)))


def granite_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Config`; raises as `decoder_values`."""
    kind = config.get("position_embedding_type")
    if kind not in (None, "rope", "nope"):
        raise UnsupportedModelError(
            f"position_embedding_type {kind!r:.80} is not supported; supported: rope, nope"
        )
    return decoder_values(config) | {
        "attention_bias": config_value(config, "attention_bias", bool, False),
        "mlp_bias": config_value(config, "mlp_bias", bool, False),
        "embedding": _multiplier(config, "embedding_multiplier"),
        "residual": _multiplier(config, "residual_multiplier"),
        "attention": _multiplier(config, "attention_multiplier"),
        "logits_scaling": _multiplier(config, "logits_scaling"),
        "roped": kind == "rope",
    }


def _multiplier(config: Mapping[str, Any], key: str) -> float:
    return config_number(config, key, *MULTIPLIERS, 1.0)


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_mlp(prefix: str, layer: Weights) -> None:
        load_gated_mlp(r, cfg, prefix, layer, bias=cfg.mlp_bias)

    return load_granite(r, cfg, load_mlp)


def load_granite(r: Reader, cfg: Config, load_mlp: Callable[[str, Weights], None]) -> Weights:
    """All but the MLPs, which `load_mlp(prefix, layer)` reads."""
    orders = rope_orders(cfg, r.layout.interleaved_rows)

    def load_layer(prefix: str, layer: Weights) -> None:
        load_norms(r, cfg, prefix, layer)
        bias = cfg.attention_bias
        load_attention(r, cfg, prefix, layer, qkv_bias=bias, o_bias=bias, orders=orders)
        load_mlp(prefix, layer)

    w = load_decoder(r, cfg, load_layer)
    w.rope = stored_rope(r, cfg)
    w.norm = w.norm / np.float32(cfg.logits_scaling)
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    eps = cfg.rms_norm_eps / cfg.residual**2  # of a stream in units of the factor
    x = p.embed(w.embed, scale=cfg.embedding / cfg.residual)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx)) if cfg.roped else None
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope, scale=cfg.attention)
            x = p.linear(a, layer.o, add=x)
            x = gated_mlp(p, x, layer, eps)
    return logits(p, x, w, eps)


def config_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], architecture: str = "granite"
) -> dict[str, Any]:
    """GGUF metadata of an architecture with Granite's factors as a Hugging Face configuration.

    A factor of 0 is one that is not there, as in llama.cpp; scores then have the usual one.
    """
    config = llama_from_gguf(metadata, tensors, architecture)
    config["attention_multiplier"] = config["head_dim"] ** -0.5
    for theirs, ours in {
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "attention.scale": "attention_multiplier",
        "logit_scale": "logits_scaling",
    }.items():
        if metadata.get(f"{architecture}.{theirs}"):
            config[ours] = metadata[f"{architecture}.{theirs}"]
    if (
        metadata.get(f"{architecture}.rope.scaling.finetuned") is False
    ):  # llama.cpp's word for no rope
        config["position_embedding_type"] = "nope"
    return config


GGUF = GgufMap(
    architecture="granite",
    config=config_from_gguf,
    names=DECODER_NAMES | {"rope_freqs": "rope_freqs"},
    layer_names=LAYER_NAMES,
)
