"""Qwen3's mixtures of experts: Hugging Face's model type "qwen3_moe".

A Qwen3 whose MLPs are experts. A row goes to those that the softmax of a router's logits ranks
highest (Yang et al., "Qwen3 Technical Report", 2025). Some layers may have one dense MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models import qwen3
from slmq.models.parts.config import config_window, decoder_values
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
from slmq.models.parts.values import config_count, config_layers, config_value
from slmq.plan.experts import Routing
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_experts": 128,
}


@dataclass(frozen=True)
class Config(qwen3.Config):
    """What config.json says, checked; `intermediate_size` is that of dense layers.

    Attributes
    ----------
    mixture : Mixture
    mixed : tuple of bool
        Which layers have experts.
    normalized : bool
        Whether the weights of a row's experts add up to 1.
    """

    mixture: Mixture
    mixed: tuple[bool, ...]
    normalized: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values` and `mixture_sizes`."""
        values = DEFAULTS | {k: v for k, v in config.items() if v is not None}
        # Where there is a window at all, every layer has it.
        window = config_window(values) if values.get("use_sliding_window") is True else 0
        return cls(
            **decoder_values(values),
            attention_bias=config_value(values, "attention_bias", bool, False),
            windows=(window,) * config_layers(values),
            mixture=mixture_sizes(values, inner="moe_intermediate_size"),
            mixed=_mixed_layers(values),
            normalized=config_value(values, "norm_topk_prob", bool, False),
        )

    @property
    def routing(self) -> Routing:
        """How a row finds its experts."""
        return Routing(self.mixture.top_k, normalized=self.normalized)


def _mixed_layers(config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Which layers have experts: every so many, but for those that are listed as dense."""
    dense = config_value(config, "mlp_only_layers", list, [])
    every = config_count(config, "decoder_sparse_step", 1)
    layers = range(config_layers(config))
    return tuple(i not in dense and (i + 1) % every == 0 for i in layers)


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_layer(prefix: str, layer: Weights) -> None:
        load_norms(r, cfg, prefix, layer)
        bias = cfg.attention_bias
        load_attention(r, cfg, prefix, layer, qkv_bias=bias, o_bias=bias)
        layer.q_norm = r.vector(f"{prefix}.self_attn.q_norm.weight", cfg.head_dim)
        layer.k_norm = r.vector(f"{prefix}.self_attn.k_norm.weight", cfg.head_dim)
        if cfg.mixed[int(prefix.rpartition(".")[2])]:
            layer.router = load_router(r, f"{prefix}.mlp.gate", cfg.mixture, cfg.hidden_size)
            layer.experts = load_experts(r, f"{prefix}.mlp.experts", cfg.mixture, cfg.hidden_size)
        else:
            load_gated_mlp(r, cfg, prefix, layer)

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
            q = p.head_norm(q, layer.q_norm, eps)
            k = p.head_norm(k, layer.k_norm, eps)
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope, window=cfg.windows[i])
            x = p.linear(a, layer.o, add=x)
            if cfg.mixed[i]:
                x = mixture_mlp(p, x, layer, eps, cfg.routing)
            else:
                x = gated_mlp(p, x, layer, eps)
    return logits(p, x, w, eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "qwen3moe" as a Hugging Face configuration.

    llama.cpp lets the weights of a row's experts always add up to 1.
    """
    return mixture_from_gguf(metadata, tensors, "qwen3moe", decoder_from_gguf) | {
        "attention_bias": any_bias(tensors, *ATTENTION_PARTS),
        "norm_topk_prob": True,
    }


GGUF = GgufMap(
    architecture="qwen3moe",
    config=config_from_gguf,
    names=DECODER_NAMES,
    layer_names={**qwen3.GGUF.layer_names, **EXPERT_NAMES},
)
