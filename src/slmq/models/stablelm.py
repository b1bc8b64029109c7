"""StableLM 3B and StableLM 2: Hugging Face's model type "stablelm".

A Llama with LayerNorm, rope on a share of a head's channels and, where configured, biases of q, k
and v, a norm for every head's queries and keys, and attention and MLP beside each other behind one
norm (Bellagente et al., "Stable LM 2 1.6B Technical Report", 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slmq.errors import UnsupportedModelError
from slmq.models.parts.config import DecoderSizes, decoder_sizes
from slmq.models.parts.decoder import load_attention, load_gated_mlp
from slmq.models.parts.gguf import (
    DECODER_NAMES,
    LAYER_NAMES,
    GgufMap,
    Weights,
    any_bias,
    sizes_from_gguf,
)
from slmq.models.parts.head import load_head
from slmq.models.parts.layer_norm import Norm, load_norm
from slmq.models.parts.values import config_eps, config_value
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording


# What holds where config.json is silent.
DEFAULTS = {"partial_rotary_factor": 0.25, "max_position_embeddings": 4096}


@dataclass(frozen=True)
class Config(DecoderSizes):
    """What config.json says, checked.

    Attributes
    ----------
    parallel : bool
        Whether the MLP reads what attention reads, and not what it made of it.
    """

    layer_norm_eps: float
    qkv_bias: bool
    qk_norms: bool
    parallel: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_sizes`."""
        found = config_value(config, "hidden_act", str, "silu")
        if found not in ("silu", "swish"):
            raise UnsupportedModelError(
                f"hidden_act {found!r:.80} is not supported; supported: silu"
            )
        return cls(
            **decoder_sizes(DEFAULTS | dict(config)),
            layer_norm_eps=config_eps(config, "layer_norm_eps", 1e-5),
            qkv_bias=config_value(config, "use_qkv_bias", bool, False),
            qk_norms=config_value(config, "qk_layernorm", bool, False),
            parallel=config_value(config, "use_parallel_residual", bool, False),
        )


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""
    hidden = cfg.hidden_size
    w = Weights()
    w.rope = cfg.rope
    w.embed = r.linear("model.embed_tokens.weight", cfg.vocab_size, hidden)
    w.layers = []
    for i in range(cfg.n_layers):
        name, layer = f"model.layers.{i}", Weights()
        layer.attn_norm = load_norm(r, f"{name}.input_layernorm", hidden)
        load_attention(r, cfg, name, layer, qkv_bias=cfg.qkv_bias)
        if cfg.qk_norms:
            layer.q_norm = load_head_norms(
                r, f"{name}.self_attn.q_layernorm", cfg.n_heads, cfg.head_dim
            )
            layer.k_norm = load_head_norms(
                r, f"{name}.self_attn.k_layernorm", cfg.n_kv_heads, cfg.head_dim
            )
        if not cfg.parallel:
            layer.mlp_norm = load_norm(r, f"{name}.post_attention_layernorm", hidden)
        load_gated_mlp(r, cfg, name, layer)
        w.layers.append(layer)
    w.norm = load_norm(r, "model.norm", hidden)
    w.lm_head = load_head(r, cfg, w.embed, embed_name="model.embed_tokens")
    return w


def load_head_norms(r: Reader, name: str, heads: int, head_dim: int) -> Norm:
    """The norms of all heads; GGUF files, and folders made of them, have them in one tensor."""
    if r.layout.gguf_tensors and r.has(f"{name}.weight"):
        return Norm(r.vector(f"{name}.weight", heads * head_dim), None)
    weights = [r.vector(f"{name}.norms.{i}.weight", head_dim) for i in range(heads)]
    return Norm(np.concatenate(weights), None)


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    eps, head_dim = cfg.layer_norm_eps, cfg.head_dim
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.layernorm(x, layer.attn_norm, eps)
            q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
            if cfg.qk_norms:
                q = p.layernorm(q, layer.q_norm, eps, head_dim)
                k = p.layernorm(k, layer.k_norm, eps, head_dim)
            a = p.attention(q, k, v, head_dim=head_dim, rope=rope)
            x = p.linear(a, layer.o, add=x)
            if not cfg.parallel:
                h = p.layernorm(x, layer.mlp_norm, eps)
            x = p.linear(p.gated(h, layer.gate, layer.up, "silu"), layer.down, add=x)
    return p.linear(p.layernorm(p.select(x), w.norm, eps), w.lm_head)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "stablelm" as a Hugging Face configuration."""
    return sizes_from_gguf(metadata, tensors, "stablelm") | {
        "layer_norm_eps": config_eps(metadata, "stablelm.attention.layer_norm_epsilon"),
        "use_qkv_bias": any_bias(tensors, "attn_qkv", "attn_q", "attn_k", "attn_v"),
        "qk_layernorm": "blk.0.attn_q_norm.weight" in tensors,
        # What the metadata says of it is true for models that have no such key and are not.
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors,
    }


GGUF = GgufMap(
    architecture="stablelm",
    config=config_from_gguf,
    names=DECODER_NAMES,
    layer_names=LAYER_NAMES
    | {"self_attn.q_layernorm": "attn_q_norm", "self_attn.k_layernorm": "attn_k_norm"},
)
