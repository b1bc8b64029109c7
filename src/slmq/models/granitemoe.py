"""Granite 3's mixtures of experts: Hugging Face's model type "granitemoe".

A Granite whose MLPs are experts. Gates and ups of all experts of a layer lie in one tensor, downs
in another (IBM, "Granite 3.0 Language Models", 2024).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models import granite
from slmq.models.parts.decoder import logits
from slmq.models.parts.gguf import DECODER_NAMES, LAYER_NAMES, GgufMap, Weights
from slmq.models.parts.mixture import (
    Mixture,
    load_router,
    mixture_from_gguf,
    mixture_mlp,
    mixture_sizes,
)
from slmq.plan.experts import Experts, Routing
from slmq.weights.base import Reader
from slmq.weights.rows import Rows

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = {
    "intermediate_size": 11008,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "position_embedding_type": "rope",
}


@dataclass(frozen=True)
class Config(granite.Config):
    """What config.json says, checked.

    Attributes
    ----------
    mixture : Mixture
    """

    mixture: Mixture

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values` and `mixture_sizes`."""
        values = DEFAULTS | {k: v for k, v in config.items() if v is not None}
        return cls(
            **granite.granite_values(values),
            mixture=mixture_sizes(values, inner="intermediate_size", experts="num_local_experts"),
        )


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""
    inner, hidden = cfg.mixture.inner, cfg.hidden_size
    gates, ups = Rows(0, 2 * inner), Rows(inner, 2 * inner)

    def load_mlp(prefix: str, layer: Weights) -> None:
        name, experts = f"{prefix}.block_sparse_moe", range(cfg.mixture.experts)
        layer.router = load_router(r, f"{name}.router.layer", cfg.mixture, hidden)

        def part(expert: int, rows: Rows) -> Any:
            fused = f"{name}.input_linear.weight[{expert}]"
            if r.layout.gguf_terms:  # where the parts lie apart
                return r.linear(rows.name(fused, inner), inner, hidden)
            return r.linear(fused, inner, hidden, rows=rows)

        layer.experts = Experts(
            gate=tuple(part(i, gates) for i in experts),
            up=tuple(part(i, ups) for i in experts),
            down=tuple(
                r.linear(f"{name}.output_linear.weight[{i}]", hidden, inner) for i in experts
            ),
        )

    return granite.load_granite(r, cfg, load_mlp)


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    eps = cfg.rms_norm_eps / cfg.residual**2  # of a stream in units of the factor
    x = p.embed(w.embed, scale=cfg.embedding / cfg.residual)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx)) if cfg.roped else None
    routing = Routing(cfg.mixture.top_k, "chosen")
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope, scale=cfg.attention)
            x = p.linear(a, layer.o, add=x)
            x = mixture_mlp(p, x, layer, eps, routing)
    return logits(p, x, w, eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "granitemoe" as a Hugging Face configuration."""
    config = mixture_from_gguf(metadata, tensors, "granitemoe", granite.config_from_gguf)
    return config | {"num_local_experts": config["num_experts"]}


class _Map(GgufMap):
    """Names of a stack's parts: "input_linear.weight[EXPERT][FIRST:LAST]" are gates or ups."""

    PART = re.compile(
        r"model\.layers\.(\d+)\.block_sparse_moe\."
        r"(?:input_linear\.weight(\[\d+\])\[(\d+):\d+\]|output_linear\.weight(\[\d+\]))"
    )

    def name(self, name: str) -> str:
        """As of `GgufMap`."""
        part = self.PART.fullmatch(name)
        if part is None:
            return super().name(name)
        layer, expert, first, down = part.groups()
        if down is not None:
            return f"blk.{layer}.ffn_down_exps.weight{down}"
        return f"blk.{layer}.ffn_{'gate' if first == '0' else 'up'}_exps.weight{expert}"


GGUF = _Map(
    architecture="granitemoe",
    config=config_from_gguf,
    names=DECODER_NAMES | {"rope_freqs": "rope_freqs"},
    layer_names=LAYER_NAMES | {"block_sparse_moe.router.layer": "ffn_gate_inp"},
)
