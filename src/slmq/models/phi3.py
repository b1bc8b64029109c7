"""Phi-3, Phi-3.5, Phi-4, Phi-4-mini: Hugging Face's model type "phi3".

A Llama that is stored with q, k and v in one matrix, gate and up in another (Abdin et al., "Phi-3
Technical Report", 2024). Long contexts have their own divisors of the rope's frequencies
(longrope, once named su; even "yarn" means it in early configurations), Phi-4-mini turns only a
share of a head's channels, and some have a window, which
GGUF files store too (llama.cpp reads and ignores it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.parts.config import DecoderConfig, config_window, decoder_values
from slmq.models.parts.decoder import (
    gated_mlp,
    load_attention,
    load_decoder,
    load_norms,
    logits,
)
from slmq.models.parts.gguf import DECODER_NAMES, LAYER_NAMES, GgufMap, Weights, decoder_from_gguf
from slmq.models.parts.rope import FACTORS, MULTIPLIER, merged_rope
from slmq.models.parts.values import config_number
from slmq.weights.base import Reader
from slmq.weights.rows import Rows

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What holds where config.json is silent.
DEFAULTS = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}

SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked."""

    window: int

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        config = DEFAULTS | dict(config)
        scaling = merged_rope(config)
        if "yarn" in (scaling.get("rope_type"), scaling.get("type")):
            scaling["rope_type"] = "longrope"
            config |= {"rope_scaling": scaling, "rope_parameters": None}
        return cls(**decoder_values(config), window=config_window(config))


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses; the fused ones in parts."""
    hidden, inner, q, kv = cfg.hidden_size, cfg.intermediate_size, cfg.q_size, cfg.kv_size
    fused, gate_up = q + 2 * kv, 2 * inner

    def load_layer(prefix: str, layer: Weights) -> None:
        def linear(name: str, n: int, k: int, rows: Rows | None = None) -> Any:
            full = f"{prefix}.{name}"
            return r.linear(f"{full}.weight", n, k, bias=r.bias(f"{full}.bias", False), rows=rows)

        load_norms(r, cfg, prefix, layer)
        if r.layout.gguf_tensors and r.has(f"{prefix}.self_attn.q_proj.weight"):
            load_attention(r, cfg, prefix, layer)
        else:
            layer.q = linear("self_attn.qkv_proj", q, hidden, Rows(0, fused))
            layer.k = linear("self_attn.qkv_proj", kv, hidden, Rows(q, fused))
            layer.v = linear("self_attn.qkv_proj", kv, hidden, Rows(q + kv, fused))
            layer.o = linear("self_attn.o_proj", hidden, q)
        layer.gate = linear("mlp.gate_up_proj", inner, hidden, Rows(0, gate_up))
        layer.up = linear("mlp.gate_up_proj", inner, hidden, Rows(inner, gate_up))
        layer.down = linear("mlp.down_proj", hidden, inner)

    w = load_decoder(r, cfg, load_layer)
    # GGUF files, and folders made of them, store longrope's divisors as tensors.
    if r.layout.gguf_tensors and r.has(LONG):
        pairs = cfg.rope.rotary // 2
        w.rope = cfg.rope.divided(r.vector(SHORT, pairs), r.vector(LONG, pairs))
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, cfg.rms_norm_eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope, window=cfg.window)
            x = p.linear(a, layer.o, add=x)
            x = gated_mlp(p, x, layer, cfg.rms_norm_eps)
    return logits(p, x, w, cfg.rms_norm_eps)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "phi3" as a Hugging Face configuration."""
    config = decoder_from_gguf(metadata, tensors, "phi3")
    config["sliding_window"] = metadata.get("phi3.attention.sliding_window") or None
    original = metadata.get("phi3.rope.scaling.original_context_length")
    config["original_max_position_embeddings"] = original or config["max_position_embeddings"]
    if LONG in tensors:
        # The divisors are tensors, which load() reads; here are as many ones.
        rotary = int(config["head_dim"] * config["partial_rotary_factor"])
        ones = [1.0] * min(max(rotary // 2, 0), 65536)
        factor = config_number(metadata, "phi3.rope.scaling.attn_factor", *FACTORS, 1.0)
        config["rope_scaling"] = {
            "rope_type": "longrope",
            "short_factor": ones,
            "long_factor": ones,
            "attention_factor": factor,
            MULTIPLIER: 1.0,  # it is the factor above
        }
    return config


GGUF = GgufMap(
    architecture="phi3",
    config=config_from_gguf,
    names=DECODER_NAMES
    | {"rope_factors_short": "rope_factors_short", "rope_factors_long": "rope_factors_long"},
    layer_names=LAYER_NAMES | {"mlp.gate_up_proj": "ffn_up"},
)
