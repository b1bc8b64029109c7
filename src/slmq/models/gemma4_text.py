"""Gemma 4 E2B, E4B and 31B, and the language model beside their towers: "gemma4_text", "gemma4".

A Gemma 3 whose layers without a window have heads of their own size, whose values are normed, and
whose last layers see the keys and values of earlier ones. In E2B and E4B every layer also adds what
a table says of the token, which is larger than all other weights together: of it only the rows of
the text are read, where they lie (Google, "Gemma 4 model card", 2026).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.models.gemma2 import GELU, normed_mlp
from slmq.models.parts.config import (
    DecoderConfig,
    config_window,
    decoder_values,
    layer_sliding,
)
from slmq.models.parts.decoder import load_decoder, stored_rope
from slmq.models.parts.gguf import (
    ATTENTION_PARTS,
    DECODER_NAMES,
    LAYER_NAMES,
    GgufMap,
    Weights,
    any_bias,
    decoder_from_gguf,
)
from slmq.models.parts.rope import BASES, Rope, rope_of
from slmq.models.parts.values import (
    LARGEST_SIZE,
    config_count,
    config_layers,
    config_number,
    config_value,
)
from slmq.models.parts.windows import ropes_by_kind, windows_from_gguf
from slmq.models.parts.wrapped import language_config, language_place
from slmq.weights.base import Reader

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording

# What published configurations leave out.
DEFAULTS = {
    "vocab_size": 262144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window": 512,
    "tie_word_embeddings": True,
}
GLOBAL_BASE, LOCAL_BASE = 1e6, 1e4
# Of layers without a window a quarter of the channels turn.
GLOBAL_ROPE = {"rope_type": "proportional", "partial_rotary_factor": 0.25}
TABLE_ROWS = 262144
EVERY = 6  # the last of so many layers has no window
OWN_HEADS = ("head_dim", "num_key_value_heads")
GROUP = 32
NORMS = {
    "attn_norm": "input_layernorm",
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
ROOT_HALF = np.float32(0.5**0.5)


class Heads(NamedTuple):
    """Key heads of a layer, and the channels of one; a query head has as many."""

    number: int
    dim: int


@dataclass(frozen=True)
class Config(DecoderConfig):
    """What config.json says, checked; `rope` is that of layers without a window.

    Attributes
    ----------
    local_rope : Rope
        That of layers with a window.
    sliding : tuple of bool
        Which layers have a window.
    window : int
        Latest positions that a query sees there.
    near, far : Heads
        Of layers with and without a window.
    attention_bias : bool
    values_are_keys : bool
        Layers without a window take keys, before they are normed, for values.
    sources : tuple of int
        The layer whose keys and values each layer sees: its own number, but for the last layers.
    shared_width : int
        Width of the MLP of layers that see keys of others.
    per_layer : int
        Channels that a layer takes from the table of tokens; 0: there is none.
    table_rows : int
        Tokens in that table.
    logit_softcap : float
        0 for none.
    """

    local_rope: Rope
    sliding: tuple[bool, ...]
    window: int
    near: Heads
    far: Heads
    attention_bias: bool
    values_are_keys: bool
    sources: tuple[int, ...]
    shared_width: int
    per_layer: int
    table_rows: int
    logit_softcap: float

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `decoder_values`."""
        values = DEFAULTS | dict(language_config(config))
        refuse_others(values)
        values["hidden_act"] = config_value(values, "hidden_activation", str, GELU)
        ropes = values.get("rope_parameters")
        if not ropes:
            values["rope_parameters"] = {"full_attention": GLOBAL_ROPE}
        far_rope, near_rope = ropes_by_kind(values, GLOBAL_BASE, LOCAL_BASE, "rope_local_base_freq")
        sliding = _sliding(values)
        near, far = _heads(values, sliding)
        fields = decoder_values(near_rope, activation=GELU)
        wide = config_value(values, "use_double_wide_mlp", bool, False)
        fields["rope"] = rope_of(far_rope, far.dim)
        cap = values.get("final_logit_softcapping")
        return cls(
            **fields,
            local_rope=rope_of(near_rope, near.dim),
            sliding=sliding,
            window=config_window(values),
            near=near,
            far=far,
            attention_bias=config_value(values, "attention_bias", bool, False),
            values_are_keys=config_value(values, "attention_k_eq_v", bool, False),
            sources=_sources(values, sliding),
            shared_width=fields["intermediate_size"] * (2 if wide else 1),
            per_layer=_per_layer(values),
            table_rows=config_count(values, "vocab_size_per_layer_input", TABLE_ROWS),
            logit_softcap=0.0
            if cap is None
            else config_number(values, "final_logit_softcapping", 1e-3, 1e6),
        )

    def heads_of(self, layer: int) -> Heads:
        """Key heads of a layer."""
        return self.near if self.sliding[layer] else self.far

    def width_of(self, layer: int) -> int:
        """Width of a layer's MLP."""
        return self.intermediate_size if self.sources[layer] == layer else self.shared_width


def refuse_others(values: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError for what is called a Gemma 4 and computes something else."""
    if config_value(values, "enable_moe_block", bool, False):
        experts = values.get("num_experts")
        raise UnsupportedModelError(
            f"enable_moe_block: a Gemma 4 with {experts!r:.20} experts is not supported"
        )
    if values.get("use_bidirectional_attention") not in (None, False, "vision"):
        raise UnsupportedModelError(
            f"use_bidirectional_attention {values['use_bidirectional_attention']!r:.40}: a Gemma 4 "
            f"whose tokens see later ones is not supported"
        )


def _sliding(values: Mapping[str, Any]) -> tuple[bool, ...]:
    """Which layers have a window; the last one never has."""
    layers = config_layers(values)
    sliding = layer_sliding(values, [(i + 1) % EVERY != 0 for i in range(layers)])
    return (*sliding[:-1], False)


def _heads(values: Mapping[str, Any], sliding: tuple[bool, ...]) -> tuple[Heads, Heads]:
    """Key heads of layers with and without a window.

    Published files say the latter by `global_head_dim` and `num_global_key_value_heads`, those that
    transformers wrote layer by layer.
    """
    heads, dim = config_count(values, "num_key_value_heads"), config_count(values, "head_dim")
    own: dict[bool, set[Heads]] = {True: set(), False: set()}
    listed = values.get("per_layer_config")
    if listed is None:
        shares = values.get("attention_k_eq_v") is True
        far_heads = config_count(values, "num_global_key_value_heads", heads) if shares else heads
        far = Heads(far_heads, config_count(values, "global_head_dim", 512))
    else:
        for i, slides in enumerate(sliding):
            own[slides].add(_own_heads(values, i, Heads(heads, dim)))
        if any(len(found) > 1 for found in own.values()):
            raise UnsupportedModelError(
                "per_layer_config: heads that differ among layers of one type are not supported"
            )
        far = own[False].pop()
    near = own[True].pop() if own[True] else Heads(heads, dim)
    queries = config_count(values, "num_attention_heads")
    for kind in (near, far):
        if queries % kind.number != 0 or queries * kind.dim > LARGEST_SIZE:
            raise CheckpointError(
                f"expected num_attention_heads to be a multiple of the key heads, found {queries} "
                f"and {kind.number} of {kind.dim} channels"
            )
    return near, far


def _own_heads(values: Mapping[str, Any], layer: int, heads: Heads) -> Heads:
    """Key heads of a layer by `per_layer_config`, or `heads`."""
    listed = config_value(values, "per_layer_config", dict)
    said = config_value(listed, str(layer), dict, {})
    if others := [key for key in said if key not in OWN_HEADS]:
        raise UnsupportedModelError(
            f"per_layer_config of layer {layer}: {others[0]!r:.40} is not supported; supported: "
            f"{', '.join(OWN_HEADS)}"
        )
    return Heads(
        config_count(said, "num_key_value_heads", heads.number),
        config_count(said, "head_dim", heads.dim),
    )


def _sources(values: Mapping[str, Any], sliding: tuple[bool, ...]) -> tuple[int, ...]:
    """The layer whose keys each layer sees: the last of its kind that has some of its own."""
    layers = len(sliding)
    shared = config_count(values, "num_kv_shared_layers", 0, low=0, high=layers)
    own = layers - shared
    last = {slides: i for i, slides in enumerate(sliding[:own])}
    if missing := set(sliding[own:]) - set(last):
        kind = "sliding_attention" if True in missing else "full_attention"
        raise CheckpointError(
            f"num_kv_shared_layers: expected a layer of type {kind} in front of the last {shared}, "
            f"whose keys they see, found none"
        )
    return (*range(own), *(last[slides] for slides in sliding[own:]))


def _per_layer(values: Mapping[str, Any]) -> int:
    """Channels that a layer takes from the table of tokens."""
    channels = config_count(values, "hidden_size_per_layer_input", 256, low=0)
    if channels % GROUP != 0:
        raise UnsupportedModelError(
            f"hidden_size_per_layer_input {channels}: only multiples of {GROUP} are supported"
        )
    tokens = config_count(values, "vocab_size")
    if channels and config_count(values, "vocab_size_per_layer_input", TABLE_ROWS) < tokens:
        raise CheckpointError(
            f"expected vocab_size_per_layer_input to be at least vocab_size {tokens}, found "
            f"{values.get('vocab_size_per_layer_input', TABLE_ROWS)}"
        )
    return channels


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses."""

    def load_layer(prefix: str, layer: Weights) -> None:
        i = int(prefix.rpartition(".")[2])
        for name, stored in NORMS.items():
            setattr(layer, name, r.vector(f"{prefix}.{stored}.weight", cfg.hidden_size))
        load_heads(r, cfg, i, f"{prefix}.self_attn", layer)
        hidden, inner = cfg.hidden_size, cfg.width_of(i)
        layer.gate = r.linear(f"{prefix}.mlp.gate_proj.weight", inner, hidden)
        layer.up = r.linear(f"{prefix}.mlp.up_proj.weight", inner, hidden)
        layer.down = r.linear(f"{prefix}.mlp.down_proj.weight", hidden, inner)
        if cfg.per_layer:
            load_token_input(r, cfg, prefix, layer)
        scalar = f"{prefix}.layer_scalar"
        layer.scalar = r.vector(scalar, 1) if r.has(scalar) else np.ones(1, np.float32)

    model, head = language_place(r)
    w = load_decoder(r, cfg, load_layer, model=model, head=head)
    w.rope, w.local_rope = stored_rope(r, cfg), cfg.local_rope
    if cfg.per_layer:
        width = cfg.n_layers * cfg.per_layer
        w.table = r.table(f"{model}.embed_tokens_per_layer.weight", cfg.table_rows, width)
        w.project = r.linear(f"{model}.per_layer_model_projection.weight", width, cfg.hidden_size)
        # The sum of two is divided by the root of two.
        norm = r.vector(f"{model}.per_layer_projection_norm.weight", cfg.per_layer)
        w.project_norm = norm * ROOT_HALF
    return w


def load_heads(r: Reader, cfg: Config, i: int, name: str, layer: Weights) -> None:
    """Queries and the output; keys and values where a layer has its own."""
    hidden, heads = cfg.hidden_size, cfg.heads_of(i)
    queries = cfg.n_heads * heads.dim

    def linear(part: str, n: int, k: int) -> Any:
        bias = r.bias(f"{name}.{part}.bias", cfg.attention_bias)
        return r.linear(f"{name}.{part}.weight", n, k, bias=bias)

    layer.q = linear("q_proj", queries, hidden)
    layer.q_norm = r.vector(f"{name}.q_norm.weight", heads.dim)
    layer.o = linear("o_proj", hidden, queries)
    if cfg.sources[i] != i:
        return
    layer.k = linear("k_proj", heads.number * heads.dim, hidden)
    layer.k_norm = r.vector(f"{name}.k_norm.weight", heads.dim)
    layer.v_norm = np.ones(heads.dim, np.float32)
    layer.v = None
    if cfg.sliding[i] or not cfg.values_are_keys:
        layer.v = linear("v_proj", heads.number * heads.dim, hidden)


def load_token_input(r: Reader, cfg: Config, prefix: str, layer: Weights) -> None:
    """What a layer does with its part of the table of tokens."""
    hidden, channels = cfg.hidden_size, cfg.per_layer
    layer.token_gate = r.linear(f"{prefix}.per_layer_input_gate.weight", channels, hidden)
    layer.token_out = r.linear(f"{prefix}.per_layer_projection.weight", hidden, channels)
    layer.token_norm = r.vector(f"{prefix}.post_per_layer_input_norm.weight", hidden)


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the logits of the selected rows."""
    eps = cfg.rms_norm_eps
    x = p.embed(w.embed, scale=float(cfg.hidden_size) ** 0.5)  # f32[m, hidden]
    tokens = token_inputs(p, x, w, cfg) if cfg.per_layer else None
    far, near = p.rope(*w.rope.at(p.n_ctx)), p.rope(*w.local_rope.at(p.n_ctx))
    for i, layer in enumerate(w.layers):
        with p.scope(f"layer {i}"):
            h = p.rmsnorm(x, layer.attn_norm, eps)
            a = attend(p, h, i, layer, near if cfg.sliding[i] else far, cfg)
            x = p.rmsnorm(p.linear(a, layer.o), layer.attn_post_norm, eps, add=x)
            x = normed_mlp(p, x, layer, eps)
            if tokens is not None:
                part = tokens.columns(i * cfg.per_layer, cfg.per_layer)
                h = p.gate(part, p.linear(x, layer.token_gate), "gelu_tanh")
                x = p.rmsnorm(p.linear(h, layer.token_out), layer.token_norm, eps, add=x)
            x = p.scaled(x, float(layer.scalar[0]))
    h = p.rmsnorm(p.select(x), w.norm, eps)
    return p.linear(h, w.lm_head, softcap=cfg.logit_softcap)


def token_inputs(p: Recording, x: Handle, w: Weights, cfg: Config) -> Handle:
    """What all layers take from the table and from the embedding; f32[m, layers * per_layer]."""
    table = p.embed(w.table, scale=float(cfg.per_layer / 2) ** 0.5)
    # The product is divided by the root of the width, which its norm only sees in what it adds.
    eps = cfg.rms_norm_eps * cfg.hidden_size
    return p.head_norm(p.linear(x, w.project), w.project_norm, eps, add=table)


def attend(p: Recording, h: Handle, i: int, layer: Weights, rope: Any, cfg: Config) -> Handle:
    """What a layer's queries make of its keys and values, or of those of an earlier layer."""
    eps, heads = cfg.rms_norm_eps, cfg.heads_of(i)
    window = cfg.window if cfg.sliding[i] else 0
    if cfg.sources[i] != i:
        q = p.head_norm(p.linear(h, layer.q), layer.q_norm, eps)
        return p.attention_to(
            q,
            cfg.sources[i],
            head_dim=heads.dim,
            kv_heads=heads.number,
            rope=rope,
            scale=1.0,
            window=window,
        )
    listed = [layer.q, layer.k, layer.v]
    q, k, *values = p.linear(h, [part for part in listed if part is not None]).split()
    v = p.head_norm(values[0] if values else k, layer.v_norm, eps)
    q, k = p.head_norm(q, layer.q_norm, eps), p.head_norm(k, layer.k_norm, eps)
    return p.attention(q, k, v, head_dim=heads.dim, rope=rope, scale=1.0, window=window)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "gemma4" as a Hugging Face configuration."""
    a = "gemma4"
    layers = config_layers(metadata, f"{a}.block_count")
    shared = config_count(metadata, f"{a}.attention.shared_kv_layers", 0, low=0, high=layers)
    windows = windows_from_gguf(metadata, a)
    widths = _by_layer(metadata, f"{a}.feed_forward_length", layers)
    heads = _by_layer(metadata, f"{a}.attention.head_count_kv", layers)
    own, last = widths[: layers - shared], widths[layers - shared :]
    wide = bool(last) and bool(own) and last[0] == 2 * own[0]
    expected = [own[0] if own else 0] * len(own) + [
        (2 if wide else 1) * w for w in own[:1]
    ] * shared
    if widths != expected:
        raise UnsupportedModelError(
            f"{a}.feed_forward_length: expected one width, or the double for the last {shared} "
            f"layers, found {', '.join(map(str, widths)):.80}"
        )
    plain = dict(metadata) | {
        f"{a}.feed_forward_length": own[0],
        f"{a}.attention.head_count_kv": heads[0],
    }
    config = decoder_from_gguf(plain, tensors, a)
    del config["partial_rotary_factor"], config["rope_scaling"]
    kinds = windows.get("layer_types", ["full_attention"] * layers)
    far_dim = config["head_dim"]
    dim = config_count(metadata, f"{a}.attention.key_length_swa", far_dim)
    table = tensors.get("per_layer_token_embd.weight")
    far = [i for i, kind in enumerate(kinds[: layers - shared]) if kind == "full_attention"]
    bases = {kind: f"{a}.rope.freq_base{end}" for kind, end in ROPE_KEYS.items()}
    if config_value(metadata, f"{a}.final_logit_softcapping", float, 0.0):
        config["final_logit_softcapping"] = metadata[f"{a}.final_logit_softcapping"]
    return (
        config
        | windows
        | {
            "head_dim": dim,
            "per_layer_config": {
                str(i): {"head_dim": dim if "sliding" in kind else far_dim, OWN_HEADS[1]: count}
                for i, (kind, count) in enumerate(zip(kinds, heads, strict=False))
            },
            # Channels that do not turn have divisors, in a tensor.
            "rope_parameters": {
                kind: {"rope_theta": config_number(metadata, key, *BASES, default)}
                for (kind, key), default in zip(
                    bases.items(), (GLOBAL_BASE, LOCAL_BASE), strict=True
                )
            },
            "num_kv_shared_layers": shared,
            "use_double_wide_mlp": wide,
            "hidden_size_per_layer_input": config_count(
                metadata, f"{a}.embedding_length_per_layer_input", 0, low=0
            ),
            "vocab_size_per_layer_input": config["vocab_size"] if table is None else table.shape[0],
            "attention_bias": any_bias(tensors, *ATTENTION_PARTS),
            "attention_k_eq_v": any(f"blk.{i}.attn_v.weight" not in tensors for i in far),
        }
    )


ROPE_KEYS = {"full_attention": "", "sliding_attention": "_swa"}


def _by_layer(metadata: Mapping[str, Any], key: str, layers: int) -> list[int]:
    """A size that is one number or a list by layer, as a list; raises CheckpointError."""
    found = metadata.get(key)
    if not isinstance(found, list):
        return [config_count(metadata, key)] * layers
    if len(found) != layers:
        raise CheckpointError(f"{key}: expected {layers} values, found {len(found)}")
    return [config_count({key: value}, key) for value in found]


GGUF = GgufMap(
    architecture="gemma4",
    config=config_from_gguf,
    names=DECODER_NAMES
    | {
        "model.embed_tokens_per_layer": "per_layer_token_embd",
        "model.per_layer_model_projection": "per_layer_model_proj",
        "model.per_layer_projection_norm": "per_layer_proj_norm",
    },
    layer_names=LAYER_NAMES
    | {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "per_layer_input_gate": "inp_gate",
        "per_layer_projection": "proj",
        "post_per_layer_input_norm": "post_norm",
    },
    whole_names={"layer_scalar": "layer_output_scale.weight"},
)
