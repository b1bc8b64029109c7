"""BitNet b1.58 2B4T, Falcon3 and Llama in its form: Hugging Face's model type "bitnet".

A Llama of weights -1, 0 and 1 times one scale a matrix, with a norm more in front of the output of
attention and of the MLP, whose gate is squared above zero (Ma et al., "BitNet b1.58 2B4T Technical
Report", 2025). Activations are rounded as everywhere in slmq, not to one scale a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    DECODER_NAMES,
    LAYER_NAMES,
    GgufMap,
    Weights,
    decoder_from_gguf,
)
from slmq.models.parts.values import config_value
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = {"rms_norm_eps": 1e-5, "num_key_value_heads": 5}
BASE = 500000.0
RELU2, SILU = "relu2", "silu"  # of 2B4T, and of the first models, which llama.cpp reads


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    activation : {"relu2", "silu"}
        Of the gate.
    attention_bias : bool
    """

    activation: str
    attention_bias: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        values = DEFAULTS | dict(config)
        if not values.get("rope_parameters") and values.get("rope_theta") is None:
            values["rope_theta"] = BASE
        activation = SILU if values.get("hidden_act") == SILU else RELU2
        return cls(
            **decoder_values(values, activation=activation),
            activation=activation,
            attention_bias=config_value(values, "attention_bias", bool, False),
        )


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_layer(prefix: str, layer: Weights) -> None:
        load_norms(r, cfg, prefix, layer)
        bias = cfg.attention_bias
        load_attention(r, cfg, prefix, layer, qkv_bias=bias, o_bias=bias)
        layer.attn_sub_norm = r.vector(f"{prefix}.self_attn.attn_sub_norm.weight", cfg.q_size)
        load_gated_mlp(r, cfg, prefix, layer)
        layer.mlp_sub_norm = r.vector(f"{prefix}.mlp.ffn_sub_norm.weight", cfg.intermediate_size)

    return load_decoder(r, cfg, load_layer)


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    eps = cfg.rms_norm_eps
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope)
            x = p.linear(p.rmsnorm(a, layer.attn_sub_norm, eps), layer.o, add=x)
            h = p.rmsnorm(x, layer.mlp_norm, eps)
            h = p.gated(h, layer.gate, layer.up, cfg.activation)
            x = p.linear(p.rmsnorm(h, layer.mlp_sub_norm, eps), layer.down, add=x)
    return logits(p, x, w, eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "bitnet" as a Hugging Face configuration."""
    if scales := [name for name in tensors if name.endswith(".scale")]:
        raise UnsupportedModelError(
            f"scales of matrices beside them ({scales[0]:.80}) are not supported; expected them in "
            f"the matrices' own blocks"
        )
    return decoder_from_gguf(metadata, tensors, "bitnet") | {"hidden_act": SILU}


GGUF = GgufMap(
    architecture="bitnet",
    config=config_from_gguf,
    names=DECODER_NAMES,
    layer_names=LAYER_NAMES
    | {"self_attn.attn_sub_norm": "attn_sub_norm", "mlp.ffn_sub_norm": "ffn_sub_norm"},
)
