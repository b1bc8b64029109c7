"""Sizes and windows of decoders, from config.json, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.models.parts.rope import Rope, rope_of
from slmq.models.parts.values import (
    LARGEST_SIZE,
    config_count,
    config_eps,
    config_layers,
    config_value,
)


@dataclass(frozen=True)
class DecoderSizes:
    """What config.json says of every decoder with rope, checked."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    max_positions: int
    tied: bool
    rope: Rope

    @property
    def q_size(self) -> int:
        """Channels of all query heads."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Channels of all key heads; values have as many."""
        return self.n_kv_heads * self.head_dim


@dataclass(frozen=True)
class DecoderConfig(DecoderSizes):
    """What config.json says of every decoder with RMSNorm, rope and a gated MLP, checked."""

    rms_norm_eps: float


def decoder_values(config: Mapping[str, Any], activation: str = "silu") -> dict[str, Any]:
    """The fields of `DecoderConfig` from a Hugging Face config.json.

    Raises
    ------
    CheckpointError
        If a value is missing or has another type.
    UnsupportedModelError
        If the configuration asks for something that these blocks lack.
    """
    found = config_value(config, "hidden_act", str, activation)
    if found != activation and (found, activation) != ("swish", "silu"):
        raise UnsupportedModelError(
            f"hidden_act {found!r:.80} is not supported; supported: {activation}"
        )
    return decoder_sizes(config) | {"rms_norm_eps": config_eps(config, "rms_norm_eps", 1e-6)}


def decoder_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `DecoderSizes` from a Hugging Face config.json; raises as `decoder_values`."""
    hidden = config_count(config, "hidden_size")
    heads = config_count(config, "num_attention_heads")
    kv_heads = config_count(config, "num_key_value_heads", heads)
    if heads % kv_heads != 0:
        raise CheckpointError(
            f"expected num_attention_heads to be a multiple of num_key_value_heads, "
            f"found {heads} and {kv_heads}"
        )
    head_dim = config_count(config, "head_dim", hidden // heads)
    if heads * head_dim > LARGEST_SIZE:
        raise CheckpointError(f"expected a plausible model, found {heads} heads of {head_dim}")
    return {
        "vocab_size": config_count(config, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": config_count(config, "intermediate_size"),
        "n_layers": config_layers(config),
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "head_dim": head_dim,
        "max_positions": config_count(config, "max_position_embeddings", 2048),
        "tied": config_value(config, "tie_word_embeddings", bool, False),
        "rope": rope_of(config, head_dim),
    }


def config_window(config: Mapping[str, Any]) -> int:
    """`sliding_window`: how many latest positions a query sees; 0 for all (null)."""
    if config.get("sliding_window") is None:
        return 0
    return config_count(config, "sliding_window")


def layer_windows(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The window of every layer, 0 for none, where only some have one.

    `layer_types` names them; older configurations have `use_sliding_window`, off by default, and
    `max_window_layers`, the first layer with a window.
    """
    layers = config_layers(config)
    window = config_window(config) if config.get("use_sliding_window") is True else 0
    first = config_count(config, "max_window_layers", 28, low=0)
    sliding = layer_sliding(config, [i >= first for i in range(layers)])
    return tuple(window if slides else 0 for slides in sliding)


def layer_sliding(config: Mapping[str, Any], default: list[bool]) -> tuple[bool, ...]:
    """Which layers have a window, by `layer_types`; `default` without it.

    Raises
    ------
    CheckpointError
        If there are not as many as layers.
    UnsupportedModelError
        For another type than sliding_attention and full_attention.
    """
    if config.get("layer_types") is None:
        return tuple(default)
    kinds = layer_kinds(config, len(default), ("full_attention", "sliding_attention"))
    return tuple(kind == "sliding_attention" for kind in kinds)


def layer_kinds(config: Mapping[str, Any], layers: int, known: Sequence[str]) -> list[str]:
    """The kind of every layer, as `layer_types` lists them.

    Raises
    ------
    CheckpointError
        If there are not as many as layers.
    UnsupportedModelError
        For another kind than those that the model's family knows.
    """
    kinds: list[str] = config_value(config, "layer_types", list)
    if len(kinds) != layers:
        raise CheckpointError(f"expected {layers} layer_types, found {len(kinds)}")
    for kind in kinds:
        if kind not in known:
            raise UnsupportedModelError(
                f"layer type {kind!r:.80} is not supported; supported: {', '.join(known)}"
            )
    return kinds
