"""What a tiny model of the goldens is, and the pieces that configurations share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One tiny model: what differs from the common config, and how it is stored."""

    name: str
    config: dict[str, Any]
    lengths: tuple[int, int]
    dtype: str = "float32"
    shard_size: str = "1GB"
    v4: dict[str, Any] = field(default_factory=dict)  # rope keys of config.v4.json
    model_type: str = ""  # where it is not the family's
    seed: int = 0  # another one where rounding to float16 changes the choice of an expert


def sizes(hidden: int, heads: int, kv_heads: int, ffn: int, vocab: int = 96) -> dict[str, Any]:
    """The size keys of a config, by short names."""
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
    }


# With theta 100 and 32 original positions, one pair of eight is kept, two are blended and five are
# slowed, and even the slowest turns enough in 90 positions to show.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "factor": 2.5}


def scaled(kind: str, theta: float, positions: int, **values: Any) -> dict[str, Any]:
    """A configuration with a rope scaling, small: the frequencies are what counts."""
    rope = {"rope_type": kind, "rope_theta": theta} | values
    return sizes(32, 2, 1, 48, vocab=48) | {
        "rope_parameters": rope,
        "max_position_embeddings": positions,
    }


def two_ropes(near: float, far: float, **scaling: Any) -> dict[str, Any]:
    """Bases of layers with and without a window, and the scaling of those without."""
    return {
        "sliding_attention": {"rope_type": "default", "rope_theta": near},
        "full_attention": {"rope_type": "default", "rope_theta": far} | scaling,
    }


YARN = {"factor": 4.0, "original_max_position_embeddings": 24}
