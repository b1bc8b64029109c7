"""Tiny models of the families that carry a state along beside keys and values."""

from __future__ import annotations

from typing import Any

from golden_case import Case
from golden_cases_2025 import small_ids

CONV, FULL = "conv", "full_attention"


def lfm2(hidden: int, heads: int, kv_heads: int, kinds: list[str], **values: Any) -> dict[str, Any]:
    """An LFM2 whose layers are of these kinds."""
    layers = {"num_hidden_layers": len(kinds), "layer_types": kinds}
    return small_ids(hidden, heads, kv_heads) | layers | values


# Texts end before, within and behind the second page of 64 positions, at which states are kept.
LFM2 = [
    Case(
        "three_taps",
        lfm2(32, 4, 2, [CONV, CONV, FULL, CONV, FULL], block_multiple_of=16),
        (40, 150),
        "float16",
    ),
    Case(
        "four_taps_biases_untied",
        lfm2(36, 3, 1, [FULL, CONV, CONV, FULL], conv_L_cache=4, conv_bias=True)
        | {"tie_word_embeddings": False, "block_auto_adjust_ff_dim": False},
        (64, 75),
        "bfloat16",
    ),
    Case(
        "two_taps_listed_layers",
        small_ids(32, 2, 2, num_hidden_layers=4, full_attn_idxs=[1, 3], conv_L_cache=2)
        | {"block_multiple_of": 8, "block_ffn_dim_multiplier": 1.2},
        (40, 90),
        "float16",
        v4={"rope_theta": 1000000.0, "layer_types": None},
    ),
]
