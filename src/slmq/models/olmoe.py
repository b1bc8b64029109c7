"""OLMoE: Hugging Face's model type "olmoe".

A Llama whose MLPs are experts and whose queries and keys are normed over all heads together
(Muennighoff et al., "OLMoE: Open Mixture-of-Experts Language Models", 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.errors import UnsupportedModelError
from slmq.models.parts.config import DecoderConfig, decoder_values
from slmq.models.parts.decoder import load_attention, load_decoder, load_norms, logits
from slmq.models.parts.gguf import (
    ATTENTION_PARTS,
    DECODER_NAMES,
    LAYER_NAMES,
    GgufMap,
    Weights,
    any_bias,
    decoder_from_gguf,
)
from slmq.models.parts.mixture import (
    EXPERT_NAMES,
    Mixture,
    load_experts,
    load_router,
    mixture_from_gguf,
    mixture_mlp,
    mixture_sizes,
)
from slmq.models.parts.values import config_value
from slmq.plan.experts import Routing
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = {
    "intermediate_size": 2048,
    "max_position_embeddings": 4096,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "rms_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    attention_bias : bool
    mixture : Mixture
    normalized : bool
        Whether the weights of a row's experts add up to 1.
    """

    attention_bias: bool
    mixture: Mixture
    normalized: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values` and `mixture_sizes`."""
        values = DEFAULTS | {k: v for k, v in config.items() if v is not None}
        if "clip_qkv" in values:
            raise UnsupportedModelError(
                f"clip_qkv {values['clip_qkv']!r:.80} is not supported; supported: none"
            )
        return cls(
            **decoder_values(values),
            attention_bias=config_value(values, "attention_bias", bool, False),
            mixture=mixture_sizes(values, inner="intermediate_size"),
            normalized=config_value(values, "norm_topk_prob", bool, False),
        )

    @property
    def routing(self) -> Routing:
        """How a row finds its experts."""
        return Routing(self.mixture.top_k, normalized=self.normalized)


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_layer(prefix: str, layer: Weights) -> None:
        load_norms(r, cfg, prefix, layer)
        bias = cfg.attention_bias
        load_attention(r, cfg, prefix, layer, qkv_bias=bias, o_bias=bias)
        layer.q_norm = r.vector(f"{prefix}.self_attn.q_norm.weight", cfg.q_size)
        layer.k_norm = r.vector(f"{prefix}.self_attn.k_norm.weight", cfg.kv_size)
        layer.router = load_router(r, f"{prefix}.mlp.gate", cfg.mixture, cfg.hidden_size)
        layer.experts = load_experts(r, f"{prefix}.mlp.experts", cfg.mixture, cfg.hidden_size)

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
            q = p.rmsnorm(q, layer.q_norm, eps)
            k = p.rmsnorm(k, layer.k_norm, eps)
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope)
            x = p.linear(a, layer.o, add=x)
            x = mixture_mlp(p, x, layer, eps, cfg.routing)
    return logits(p, x, w, eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "olmoe" as a Hugging Face configuration."""
    return mixture_from_gguf(metadata, tensors, "olmoe", decoder_from_gguf) | {
        "attention_bias": any_bias(tensors, *ATTENTION_PARTS),
        "norm_topk_prob": False,  # as llama.cpp has it
    }


GGUF = GgufMap(
    architecture="olmoe",
    config=config_from_gguf,
    names=DECODER_NAMES,
    layer_names=LAYER_NAMES
    | EXPERT_NAMES
    | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"},
)
