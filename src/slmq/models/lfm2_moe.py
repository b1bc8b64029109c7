"""LFM2's mixtures of experts: Hugging Face's model type "lfm2_moe".

An LFM2 whose later layers have experts. They are chosen by the sigmoid of their logits and a bias,
which their weights know nothing of (Liquid AI, "LFM2 Technical Report", 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slmq.models import lfm2
from slmq.models.parts.config import decoder_values
from slmq.models.parts.decoder import gated_mlp, logits
from slmq.models.parts.gguf import GgufMap, Weights
from slmq.models.parts.mixture import (
    Mixture,
    load_experts,
    load_router,
    mixture_from_gguf,
    mixture_mlp,
    mixture_sizes,
)
from slmq.models.parts.values import config_count, config_number, config_value
from slmq.plan.experts import Routing
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = lfm2.DEFAULTS | {
    "intermediate_size": 7168,
    "moe_intermediate_size": 1792,
    "num_experts": 32,
    "num_experts_per_tok": 4,
}
SUM_EPS = 1e-6  # added to the sum of weights that they are divided by


@dataclass(frozen=True)
class Config(lfm2.Config):
    """What config.json says, checked; `intermediate_size` is that of dense layers.

    Attributes
    ----------
    mixture : Mixture
    dense : int
        Layers without experts, which come first.
    biased : bool
        Whether experts are chosen by a bias, too.
    normalized : bool
        Whether the weights of a row's experts add up to 1.
    scale : float
        Of the weights.
    """

    mixture: Mixture
    dense: int
    biased: bool
    normalized: bool
    scale: float

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values` and `mixture_sizes`."""
        values = DEFAULTS | {k: v for k, v in config.items() if v is not None}
        values["rms_norm_eps"] = values["norm_eps"]
        if "tie_embedding" in values:  # the older name
            values["tie_word_embeddings"] = values["tie_embedding"]
        return cls(
            **decoder_values(values),
            **lfm2.convolution_values(values),
            mixture=mixture_sizes(values, inner="moe_intermediate_size"),
            dense=config_count(values, "num_dense_layers", 2, low=0),
            biased=config_value(values, "use_expert_bias", bool, True),
            normalized=config_value(values, "norm_topk_prob", bool, True),
            scale=config_number(values, "routed_scaling_factor", -1e4, 1e4, 1.0),
        )

    def routing(self, bias: npt.NDArray[np.float32] | None) -> Routing:
        """How a row of a layer with this bias finds its experts."""
        top_k = self.mixture.top_k
        return Routing(top_k, "sigmoid", self.normalized, SUM_EPS, self.scale, bias)


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_mlp(mlp: str, layer: Weights) -> None:
        if int(mlp.split(".")[-2]) < cfg.dense:
            lfm2.load_dense(r, cfg, mlp, layer)
            return
        layer.router = load_router(r, f"{mlp}.gate", cfg.mixture, cfg.hidden_size)
        size, parts = cfg.mixture.experts, ("w1", "w3", "w2")
        layer.expert_bias = r.vector(f"{mlp}.expert_bias", size) if cfg.biased else None
        layer.experts = load_experts(r, f"{mlp}.experts", cfg.mixture, cfg.hidden_size, parts)

    return lfm2.load_lfm2(r, cfg, load_mlp)


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    eps = cfg.rms_norm_eps
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            x = lfm2.mixed(p, x, layer, cfg, rope, convolves=cfg.convolves[i])
            if i < cfg.dense:
                x = gated_mlp(p, x, layer, eps)
            else:
                x = mixture_mlp(p, x, layer, eps, cfg.routing(layer.expert_bias))
    return logits(p, x, w, eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "lfm2moe" as a Hugging Face configuration."""
    a = "lfm2moe"
    scale = config_number(metadata, f"{a}.expert_weights_scale", -1e4, 1e4, 0.0)
    return mixture_from_gguf(metadata, tensors, a, lfm2.config_from_gguf) | {
        "num_dense_layers": config_count(metadata, f"{a}.leading_dense_block_count", 0, low=0),
        "use_expert_bias": any(name.endswith("exp_probs_b.bias") for name in tensors),
        "routed_scaling_factor": scale or 1.0,  # 0 is none, as in llama.cpp
    }


GGUF = GgufMap(
    architecture="lfm2moe",
    config=config_from_gguf,
    names=lfm2.GGUF.names,
    layer_names={
        **lfm2.GGUF.layer_names,
        "feed_forward.gate": "ffn_gate_inp",
        "feed_forward.experts.w1": "ffn_gate_exps",
        "feed_forward.experts.w3": "ffn_up_exps",
        "feed_forward.experts.w2": "ffn_down_exps",
    },
    whole_names={"feed_forward.expert_bias": "exp_probs_b.bias"},
)
