"""gpt-oss: Hugging Face's model type "gpt_oss".

Layers with a window and without take turns, every head of attention has a sink, which takes a share
of the weights and gives nothing, and experts have biases and a clamped unit (OpenAI, "gpt-oss-120b
& gpt-oss-20b Model Card", 2025).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.parts.config import (
    DecoderConfig,
    config_window,
    decoder_values,
    layer_sliding,
)
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
    Mixture,
    load_router,
    mixture_from_gguf,
    mixture_mlp,
    mixture_sizes,
)
from slmq.models.parts.values import config_layers, config_number, config_value
from slmq.models.parts.windows import windows_from_gguf
from slmq.plan.experts import Experts, Routing
from slmq.weights.base import Reader
from slmq.weights.rows import Rows

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.linear import Linear
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = {
    "head_dim": 64,
    "intermediate_size": 2880,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "rms_norm_eps": 1e-5,
    "sliding_window": 128,
}
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
ALPHAS, LIMITS = (1e-3, 1e3), (1e-3, 1e6)


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    attention_bias : bool
    mixture : Mixture
    windows : tuple of int
        Latest positions that a query sees, by layer; 0 for all.
    alpha, limit : float
        Of the experts' units.
    """

    attention_bias: bool
    mixture: Mixture
    windows: tuple[int, ...]
    alpha: float
    limit: float

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values` and `mixture_sizes`."""
        values = DEFAULTS | {k: v for k, v in config.items() if v is not None}
        if "rope_parameters" not in values and "rope_scaling" not in values:
            values["rope_parameters"] = ROPE
        values.setdefault("rope_theta", ROPE["rope_theta"])
        turns = [i % 2 == 0 for i in range(config_layers(values))]
        window = config_window(values)
        return cls(
            **decoder_values(values),
            attention_bias=config_value(values, "attention_bias", bool, True),
            mixture=mixture_sizes(values, inner="intermediate_size", experts="num_local_experts"),
            windows=tuple(window if slides else 0 for slides in layer_sliding(values, turns)),
            alpha=config_number(values, "swiglu_alpha", *ALPHAS, 1.702),
            limit=config_number(values, "swiglu_limit", *LIMITS, 7.0),
        )


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_layer(prefix: str, layer: Weights) -> None:
        load_norms(r, cfg, prefix, layer)
        bias = cfg.attention_bias
        load_attention(r, cfg, prefix, layer, qkv_bias=bias, o_bias=bias)
        layer.sinks = r.vector(f"{prefix}.self_attn.sinks", cfg.n_heads)
        router = f"{prefix}.mlp.router"
        layer.router = load_router(r, router, cfg.mixture, cfg.hidden_size, bias=f"{router}.bias")
        layer.experts = load_experts(r, f"{prefix}.mlp.experts", cfg)

    return load_decoder(r, cfg, load_layer)


def load_experts(r: Reader, name: str, cfg: Config) -> Experts:
    """The experts of a layer. Floats lie as [inputs, outputs], and MXFP4 as [outputs, inputs].

    Rows of gate and up take turns.
    """
    inner, hidden = cfg.mixture.inner, cfg.hidden_size
    apart = r.layout.gguf_terms  # gates and ups are tensors of their own
    floats = apart or not r.has(f"{name}.gate_up_proj_blocks[0]")

    def part(expert: int, first: int) -> Linear:
        fused, bias = f"{name}.gate_up_proj[{expert}]", f"{name}.gate_up_proj_bias[{expert}]"
        rows = Rows(first, 2 * inner, heads=inner, transposed=floats)
        if apart:
            own = rows.name(bias, inner)
            return r.linear(rows.name(fused, inner), inner, hidden, bias=own)
        return r.linear(fused, inner, hidden, bias=bias, rows=rows)

    def down(expert: int) -> Linear:
        bias = f"{name}.down_proj_bias[{expert}]"
        rows = None if apart else Rows(0, hidden, transposed=floats)
        return r.linear(f"{name}.down_proj[{expert}]", hidden, inner, bias=bias, rows=rows)

    experts = range(cfg.mixture.experts)
    return Experts(
        gate=tuple(part(i, 0) for i in experts),
        up=tuple(part(i, inner) for i in experts),
        down=tuple(down(i) for i in experts),
        limit=cfg.limit,
        alpha=cfg.alpha,
    )


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    eps = cfg.rms_norm_eps
    routing = Routing(cfg.mixture.top_k, "chosen")
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            a = p.attention(
                q,
                k,
                v,
                head_dim=cfg.head_dim,
                rope=rope,
                window=cfg.windows[i],
                sinks=layer.sinks,
            )
            x = p.linear(a, layer.o, add=x)
            x = mixture_mlp(p, x, layer, eps, routing)
    return logits(p, x, w, eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "gpt-oss" as a Hugging Face configuration.

    Files do not say that the published models' yarn keeps fractions of channels.
    """
    a = "gpt-oss"
    config = mixture_from_gguf(metadata, tensors, a, decoder_from_gguf)
    scaling = config["rope_scaling"]
    if scaling.get("rope_type") == "yarn":
        scaling["truncate"] = False
    return (
        config
        | windows_from_gguf(metadata, a)
        | {
            "attention_bias": any_bias(tensors, *ATTENTION_PARTS),
            "num_local_experts": config["num_experts"],
            "intermediate_size": config["moe_intermediate_size"],
        }
    )


class _Map(GgufMap):
    """Names of a stack's parts, "gate_up_proj[EXPERT][FIRST:LAST]", whose rows are gates or ups."""

    PART = re.compile(
        r"model\.layers\.(\d+)\.mlp\.experts\."
        r"(?:gate_up_proj(?P<bias>_bias)?(\[\d+\])\[(\d+):\d+\]"
        r"|down_proj(?P<down_bias>_bias)?(\[\d+\]))"
    )

    def name(self, name: str) -> str:
        """As of `GgufMap`."""
        part = self.PART.fullmatch(name)
        if part is None:
            return super().name(name)
        layer, bias, expert, first, down_bias, down = part.groups()
        kind = "bias" if bias or down_bias else "weight"
        if down is not None:
            return f"blk.{layer}.ffn_down_exps.{kind}{down}"
        return f"blk.{layer}.ffn_{'gate' if first == '0' else 'up'}_exps.{kind}{expert}"


GGUF = _Map(
    architecture="gpt-oss",
    config=config_from_gguf,
    names=DECODER_NAMES,
    layer_names=LAYER_NAMES
    | {"post_attention_layernorm": "post_attention_norm", "mlp.router": "ffn_gate_inp"},
    whole_names={"self_attn.sinks": "attn_sinks.weight"},
)
