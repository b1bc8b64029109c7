"""Tiny models of the families that carry a state along beside keys and values."""

from __future__ import annotations

from typing import Any

from golden_case import Case
from golden_cases_2025 import small_ids

CONV, FULL, DELTA = "conv", "full_attention", "linear_attention"


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


def qwen3_5(
    heads: tuple[int, int], key_dim: int, value_dim: int, kinds: list[str], **values: Any
) -> dict[str, Any]:
    """A Qwen3.5 of these key and value heads, and layers of these kinds."""
    layers = {"num_hidden_layers": len(kinds), "layer_types": kinds}
    net = {
        "linear_num_key_heads": heads[0],
        "linear_num_value_heads": heads[1],
        "linear_key_head_dim": key_dim,
        "linear_value_head_dim": value_dim,
    }
    return small_ids(32, 4, 2, head_dim=16) | layers | net | values


QWEN3_5 = [
    Case(
        "shared_keys",
        qwen3_5((2, 4), 16, 12, [DELTA, DELTA, FULL, DELTA, FULL]),
        (40, 150),
        "float16",
    ),
    Case(
        "a_key_each_biases_tied",
        qwen3_5((3, 3), 12, 20, [FULL, DELTA, DELTA, FULL], linear_conv_kernel_dim=3)
        | {"attention_bias": True, "tie_word_embeddings": True},
        (64, 75),
        "bfloat16",
    ),
    Case(
        "one_key_for_all",
        qwen3_5((1, 8), 16, 16, [DELTA, FULL, DELTA, FULL]),
        (40, 90),
        "float16",
    ),
]
