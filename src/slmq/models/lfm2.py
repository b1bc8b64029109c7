"""LFM2 and LFM2.5: Hugging Face's model type "lfm2".

Most layers are short convolutions between two gates, which carry their latest inputs along as a
state; the others are attention with norms of queries and keys (Liquid AI, "LFM2 Technical Report",
2025).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.parts.config import DecoderConfig, decoder_values, layer_kinds
from slmq.models.parts.decoder import gated_mlp, logits
from slmq.models.parts.gguf import GgufMap, Weights, decoder_from_gguf
from slmq.models.parts.head import load_head
from slmq.models.parts.values import config_count, config_layers, config_number, config_value
from slmq.weights.base import Reader
from slmq.weights.rows import Rows

if TYPE_CHECKING:
    from slmq.plan.handle import Handle, Rope
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
CONV, ATTENTION = "conv", "full_attention"
MOST_TAPS = 8
EMBED = "model.embed_tokens"


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    convolves : tuple of bool
        Which layers are convolutions.
    taps : int
        Inputs that an output of a convolution sees.
    conv_bias : bool
    """

    convolves: tuple[bool, ...]
    taps: int
    conv_bias: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        values = DEFAULTS | {k: v for k, v in config.items() if v is not None}
        values["rms_norm_eps"] = values["norm_eps"]
        values["intermediate_size"] = _inner_size(values)
        if "tie_embedding" in values:  # the older name
            values["tie_word_embeddings"] = values["tie_embedding"]
        return cls(
            **decoder_values(values),
            **convolution_values(values),
        )


def convolution_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `Config` has beside a decoder's fields; raises as `decoder_values`."""
    return {
        "convolves": _convolving(config),
        "taps": config_count(config, "conv_L_cache", 3, low=2, high=MOST_TAPS),
        "conv_bias": config_value(config, "conv_bias", bool, False),
    }


def _inner_size(config: Mapping[str, Any]) -> int:
    """Width of the MLP: two thirds of what is said, rounded up, unless that is turned off."""
    key = "block_ff_dim" if "block_ff_dim" in config else "intermediate_size"
    size = config_count(config, key, 12288)
    if not config_value(config, "block_auto_adjust_ff_dim", bool, True):
        return size
    multiplier = config_number(config, "block_ffn_dim_multiplier", 1e-3, 1e3, 1.0)
    multiple = config_count(config, "block_multiple_of", 256)
    size = int(multiplier * (2 * size // 3))
    return -(-size // multiple) * multiple


def _convolving(config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Which layers are convolutions, by `layer_types` or the numbers of those that attend."""
    layers = config_layers(config)
    if "layer_types" in config:
        kinds = layer_kinds(config, layers, (CONV, ATTENTION))
        return tuple(kind == CONV for kind in kinds)
    attending = config_value(config, "full_attn_idxs", list, list(range(layers)))
    return tuple(i not in attending for i in range(layers))


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_mlp(mlp: str, layer: Weights) -> None:
        load_dense(r, cfg, mlp, layer)

    return load_lfm2(r, cfg, load_mlp)


def load_lfm2(r: Reader, cfg: Config, load_mlp: Callable[[str, Weights], None]) -> Weights:
    """All but the MLPs, which `load_mlp(name, layer)` reads."""
    w = Weights()
    w.rope = cfg.rope
    w.embed = r.linear(f"{EMBED}.weight", cfg.vocab_size, cfg.hidden_size)
    w.layers = []
    for i in range(cfg.n_layers):
        layer, prefix = Weights(), f"model.layers.{i}"
        layer.norm = r.vector(f"{prefix}.operator_norm.weight", cfg.hidden_size)
        load_mixer = load_convolution if cfg.convolves[i] else load_heads
        load_mixer(r, cfg, prefix, layer)
        layer.mlp_norm = r.vector(f"{prefix}.ffn_norm.weight", cfg.hidden_size)
        load_mlp(f"{prefix}.feed_forward", layer)
        w.layers.append(layer)
    w.norm = r.vector("model.embedding_norm.weight", cfg.hidden_size)
    w.lm_head = load_head(r, cfg, w.embed, embed_name=EMBED)
    return w


def load_dense(r: Reader, cfg: Config, mlp: str, layer: Weights) -> None:
    """Gate, up and down of the module `mlp`."""
    inner = cfg.intermediate_size
    layer.gate = r.linear(f"{mlp}.w1.weight", inner, cfg.hidden_size)
    layer.up = r.linear(f"{mlp}.w3.weight", inner, cfg.hidden_size)
    layer.down = r.linear(f"{mlp}.w2.weight", cfg.hidden_size, inner)


def load_convolution(r: Reader, cfg: Config, prefix: str, layer: Weights) -> None:
    """Both gates, what is convolved, the taps of every channel, and the output."""
    name, hidden = f"{prefix}.conv", cfg.hidden_size

    def linear(part: str, rows: Rows | None = None) -> Any:
        full = f"{name}.{part}"
        bias = r.bias(f"{full}.bias", cfg.conv_bias)
        return r.linear(f"{full}.weight", hidden, hidden, bias=bias, rows=rows)

    layer.before, layer.behind, layer.x = (
        linear("in_proj", Rows(i * hidden, 3 * hidden)) for i in range(3)
    )
    taps = r.vector(f"{name}.conv.weight", hidden * cfg.taps, columns=cfg.taps)
    layer.taps = taps.reshape(hidden, cfg.taps)
    bias = r.bias(f"{name}.conv.bias", cfg.conv_bias)
    layer.bias = None if bias is None else r.vector(bias, hidden)
    layer.o = linear("out_proj")


def load_heads(r: Reader, cfg: Config, prefix: str, layer: Weights) -> None:
    """Queries, keys and values, the norms of their heads, and the output."""
    name, hidden = f"{prefix}.self_attn", cfg.hidden_size
    layer.q = r.linear(f"{name}.q_proj.weight", cfg.q_size, hidden)
    layer.k = r.linear(f"{name}.k_proj.weight", cfg.kv_size, hidden)
    layer.v = r.linear(f"{name}.v_proj.weight", cfg.kv_size, hidden)
    layer.q_norm = r.vector(f"{name}.q_layernorm.weight", cfg.head_dim)
    layer.k_norm = r.vector(f"{name}.k_layernorm.weight", cfg.head_dim)
    layer.o = r.linear(f"{name}.out_proj.weight", hidden, cfg.q_size)


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            x = mixed(p, x, layer, cfg, rope, convolves=cfg.convolves[i])
            x = gated_mlp(p, x, layer, cfg.rms_norm_eps)
    return logits(p, x, w, cfg.rms_norm_eps)


def mixed(
    p: Recording, x: Handle, layer: Weights, cfg: Config, rope: Rope, *, convolves: bool
) -> Handle:
    """x + what the layer's convolution, or its attention, makes of its norm."""
    eps = cfg.rms_norm_eps
    h = p.rmsnorm(x, layer.norm, eps)
    if convolves:
        before, behind, u = p.linear(h, [layer.before, layer.behind, layer.x]).split()
        a = p.convolution(u, layer.taps, bias=layer.bias, before=before, behind=behind)
    else:
        q, k, v = p.linear(h, [layer.q, layer.k, layer.v]).split()
        q = p.head_norm(q, layer.q_norm, eps)
        k = p.head_norm(k, layer.k_norm, eps)
        a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope)
    return p.linear(a, layer.o, add=x)


def config_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], architecture: str = "lfm2"
) -> dict[str, Any]:
    """GGUF metadata of an architecture with short convolutions as a Hugging Face configuration.

    A layer without key heads is a convolution.
    """
    key = f"{architecture}.attention.head_count_kv"
    heads = config_value(metadata, key, list)
    attending = [count for count in heads if count != 0]
    config = decoder_from_gguf(dict(metadata) | {key: attending}, tensors, architecture)
    return config | {
        "norm_eps": config["rms_norm_eps"],
        "block_auto_adjust_ff_dim": False,
        "layer_types": [ATTENTION if count else CONV for count in heads],
        "conv_L_cache": config_count(metadata, f"{architecture}.shortconv.l_cache"),
        "conv_bias": any(name.endswith("shortconv.conv.bias") for name in tensors),
    }


GGUF = GgufMap(
    architecture="lfm2",
    config=config_from_gguf,
    names={
        "model.embed_tokens": "token_embd",
        "model.embedding_norm": "token_embd_norm",
        "lm_head": "output",
    },
    layer_names={
        "operator_norm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.q_layernorm": "attn_q_norm",
        "self_attn.k_layernorm": "attn_k_norm",
        "self_attn.out_proj": "attn_output",
        "conv.in_proj": "shortconv.in_proj",
        "conv.conv": "shortconv.conv",
        "conv.out_proj": "shortconv.out_proj",
        "ffn_norm": "ffn_norm",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w2": "ffn_down",
        "feed_forward.w3": "ffn_up",
    },
)
