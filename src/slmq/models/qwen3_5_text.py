"""Qwen3.5: Hugging Face's model types "qwen3_5_text" and, with a vision tower, "qwen3_5".

Three of four layers have a gated delta net: heads that carry a matrix along instead of keys and
values (Yang et al., "Gated Delta Networks", 2024), behind a short convolution. The others attend,
with norms of queries and keys, rope on a quarter of the channels, and a gate behind (Qwen team,
"Qwen3-Next", 2025). The tower and the heads that guess later tokens are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.machine.exact import exact_each, exact_exp
from slmq.models.parts.config import DecoderConfig, decoder_values, layer_kinds
from slmq.models.parts.decoder import gated_mlp, load_decoder, load_gated_mlp, logits
from slmq.models.parts.gguf import (
    ATTENTION_PARTS,
    DECODER_NAMES,
    LAYER_NAMES,
    GgufMap,
    Weights,
    any_bias,
    decoder_from_gguf,
)
from slmq.models.parts.values import config_count, config_layers, config_value
from slmq.models.parts.wrapped import language_config, language_place
from slmq.weights.base import Reader
from slmq.weights.rows import Rows

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What configurations leave out.
DEFAULTS = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "partial_rotary_factor": 0.25,
}
DELTA, ATTENTION = "linear_attention", "full_attention"
MOST_TAPS = 8
LENGTH_EPS = 1e-6  # under the root of a query's or key's length


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    attention_bias : bool
    delta : tuple of bool
        Which layers have a gated delta net.
    taps : int
        Inputs that an output of its convolution sees.
    key_heads, value_heads, key_dim, value_dim : int
        Its heads of queries and keys, those of values, and their channels.
    converted : bool
        Tensors are as llama.cpp's converter leaves them: norms hold 1 + w, rates of decay are
        negative and no logarithms, and the value heads that share keys stand apart.
    """

    attention_bias: bool
    delta: tuple[bool, ...]
    taps: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    converted: bool

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        values = DEFAULTS | dict(language_config(config))
        key_heads = config_count(values, "linear_num_key_heads", 16)
        value_heads = config_count(values, "linear_num_value_heads", 32)
        if value_heads % key_heads != 0:
            raise CheckpointError(
                f"expected linear_num_value_heads to be a multiple of linear_num_key_heads, "
                f"found {value_heads} and {key_heads}"
            )
        key_dim = config_count(values, "linear_key_head_dim", 128, high=512)
        if key_dim % 4 != 0:
            raise UnsupportedModelError(
                f"linear_key_head_dim {key_dim} is not supported; supported: multiples of 4"
            )
        return cls(
            **decoder_values(values),
            attention_bias=config_value(values, "attention_bias", bool, False),
            delta=_delta_layers(values),
            taps=config_count(values, "linear_conv_kernel_dim", 4, low=2, high=MOST_TAPS),
            key_heads=key_heads,
            value_heads=value_heads,
            key_dim=key_dim,
            value_dim=config_count(values, "linear_value_head_dim", 128, high=4096),
            converted=config_value(values, "llama_cpp_layout", bool, False),
        )

    @property
    def keys(self) -> int:
        """Channels of all key heads of a delta net; queries have as many."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Channels of all its value heads."""
        return self.value_heads * self.value_dim


def _delta_layers(config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Which layers have a delta net: by `layer_types`, or all but every so many."""
    layers = config_layers(config)
    if config.get("layer_types") is None:
        every = config_count(config, "full_attention_interval", 4)
        return tuple((i + 1) % every != 0 for i in range(layers))
    kinds = layer_kinds(config, layers, (DELTA, ATTENTION))
    return tuple(kind == DELTA for kind in kinds)


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def norm(name: str, size: int) -> npt.NDArray[np.float32]:
        weight: npt.NDArray[np.float32] = r.vector(name, size) + np.float32(not cfg.converted)
        return weight

    def load_layer(prefix: str, layer: Weights) -> None:
        layer.attn_norm = norm(f"{prefix}.input_layernorm.weight", cfg.hidden_size)
        layer.mlp_norm = norm(f"{prefix}.post_attention_layernorm.weight", cfg.hidden_size)
        if cfg.delta[int(prefix.rpartition(".")[2])]:
            load_delta_net(r, cfg, f"{prefix}.linear_attn", layer)
        else:
            name = f"{prefix}.self_attn"
            load_heads(r, cfg, name, layer)
            layer.q_norm = norm(f"{name}.q_norm.weight", cfg.head_dim)
            layer.k_norm = norm(f"{name}.k_norm.weight", cfg.head_dim)
        load_gated_mlp(r, cfg, prefix, layer)

    model, head = language_place(r)
    w = load_decoder(r, cfg, load_layer, model=model, head=head)
    w.norm = w.norm + np.float32(not cfg.converted)
    return w


def load_heads(r: Reader, cfg: Config, name: str, layer: Weights) -> None:
    """Queries and their gates, which lie together head by head, keys, values, and the output."""
    hidden, q = cfg.hidden_size, cfg.q_size

    def linear(part: str, n: int, k: int, rows: Rows | None = None) -> Any:
        bias = r.bias(f"{name}.{part}.bias", cfg.attention_bias)
        return r.linear(f"{name}.{part}.weight", n, k, bias=bias, rows=rows)

    def half(first: int) -> Rows:
        return Rows(first, 2 * q, heads=cfg.n_heads, everywhere=True)

    layer.q = linear("q_proj", q, hidden, half(0))
    layer.gate_of_heads = linear("q_proj", q, hidden, half(q))
    layer.k = linear("k_proj", cfg.kv_size, hidden)
    layer.v = linear("v_proj", cfg.kv_size, hidden)
    layer.o = linear("o_proj", hidden, q)


def load_delta_net(r: Reader, cfg: Config, name: str, layer: Weights) -> None:
    """What goes into the state, its convolution and decay, and what comes out."""
    hidden, keys, values, heads = cfg.hidden_size, cfg.keys, cfg.values, cfg.value_heads
    channels = 2 * keys + values
    parts = [Rows(0, channels), Rows(keys, channels), Rows(2 * keys, channels)]
    layer.q, layer.k, layer.v = (
        r.linear(f"{name}.in_proj_qkv.weight", n, hidden, rows=rows)
        for n, rows in zip((keys, keys, values), parts, strict=True)
    )
    layer.z = r.linear(f"{name}.in_proj_z.weight", values, hidden)
    layer.a = r.linear(f"{name}.in_proj_a.weight", heads, hidden)
    layer.b = r.linear(f"{name}.in_proj_b.weight", heads, hidden)
    taps = r.vector(f"{name}.conv1d.weight", channels * cfg.taps, columns=cfg.taps)
    layer.taps = np.split(taps.reshape(channels, cfg.taps), [keys, 2 * keys])
    rate = r.vector(f"{name}.A_log", heads)
    layer.rate = -rate if cfg.converted else exact_each(exact_exp, rate)
    layer.step = r.vector(f"{name}.dt_bias", heads)
    # Norms of length one as those of mean square one: x / |x| = x / (sqrt(n) rms(x)). Scores of
    # queries are divided by sqrt(n), as in attention.
    layer.k_length = np.full(cfg.key_dim, cfg.key_dim**-0.5, np.float32)
    layer.q_length = np.full(cfg.key_dim, 1 / cfg.key_dim, np.float32)
    layer.out_norm = r.vector(f"{name}.norm.weight", cfg.value_dim)
    layer.o = r.linear(f"{name}.out_proj.weight", hidden, values)


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    x = p.embed(w.embed)  # f32[m, hidden]
    rope = p.rope(*w.rope.at(p.n_ctx))
    eps = cfg.rms_norm_eps
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, eps)
            if cfg.delta[i]:
                a = delta_net(p, h, layer, cfg)
            else:
                q, gate, k, v = p.linear(
                    h, [layer.q, layer.gate_of_heads, layer.k, layer.v]
                ).split()
                q = p.head_norm(q, layer.q_norm, eps)
                k = p.head_norm(k, layer.k_norm, eps)
                a = p.attention(q, k, v, head_dim=cfg.head_dim, rope=rope)
                a = p.gate(a, gate, "sigmoid")
            x = p.linear(a, layer.o, add=x)
            x = gated_mlp(p, x, layer, eps)
    return logits(p, x, w, eps)


def delta_net(p: Recording, h: Handle, layer: Weights, cfg: Config) -> Handle:
    """What the states of a layer make of its rows; f32[m, values]."""
    inputs = [layer.q, layer.k, layer.v, layer.z, layer.a, layer.b]
    *qkv, z, a, b = p.linear(h, inputs).split()
    q, k, v = (
        p.convolution(x, taps, activation="silu") for x, taps in zip(qkv, layer.taps, strict=True)
    )
    q = p.head_norm(q, layer.q_length, LENGTH_EPS / cfg.key_dim)
    k = p.head_norm(k, layer.k_length, LENGTH_EPS / cfg.key_dim)
    decays = p.decays(a, b, layer.rate, layer.step)
    y = p.delta_rule(
        q, k, v, decays, key_dim=cfg.key_dim, value_dim=cfg.value_dim, tiled=cfg.converted
    )
    return p.gate(p.head_norm(y, layer.out_norm, cfg.rms_norm_eps), z, "silu")


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "qwen35" as a Hugging Face configuration.

    Blocks behind the model's own guess later tokens.
    """
    a = "qwen35"
    heads = config_count(metadata, f"{a}.ssm.time_step_rank")
    config = decoder_from_gguf(metadata, tensors, a)
    guessing = config_count(metadata, f"{a}.nextn_predict_layers", 0, low=0)
    config["num_hidden_layers"] -= guessing
    states = metadata.get(f"{a}.attention.recurrent_layers")
    if isinstance(states, list):
        kinds = [DELTA if has_state else ATTENTION for has_state in states]
        config["layer_types"] = kinds[: config["num_hidden_layers"]]
    return config | {
        "full_attention_interval": config_count(metadata, f"{a}.full_attention_interval", 4),
        "linear_conv_kernel_dim": config_count(metadata, f"{a}.ssm.conv_kernel"),
        "linear_key_head_dim": config_count(metadata, f"{a}.ssm.state_size"),
        "linear_num_key_heads": config_count(metadata, f"{a}.ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_value_head_dim": config_count(metadata, f"{a}.ssm.inner_size") // heads,
        "attention_bias": any_bias(tensors, *ATTENTION_PARTS),
        "llama_cpp_layout": True,
    }


GGUF = GgufMap(
    architecture="qwen35",
    config=config_from_gguf,
    names=DECODER_NAMES,
    layer_names=LAYER_NAMES
    | {
        "post_attention_layernorm": "post_attention_norm",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "linear_attn.in_proj_qkv": "attn_qkv",
        "linear_attn.in_proj_z": "attn_gate",
        "linear_attn.in_proj_a": "ssm_alpha",
        "linear_attn.in_proj_b": "ssm_beta",
        "linear_attn.conv1d": "ssm_conv1d",
        "linear_attn.norm": "ssm_norm",
        "linear_attn.out_proj": "ssm_out",
    },
    whole_names={"linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias"},
)
