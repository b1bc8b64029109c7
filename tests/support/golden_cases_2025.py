"""Tiny models of the families of 2025: normed behind, or with layers that have no rope."""

from __future__ import annotations

from typing import Any

from golden_case import LLAMA3, YARN, Case, sizes, two_ropes

# --- normed behind, and layers without rope ----------------------------------------------------


def small_ids(hidden: int, heads: int, kv_heads: int, **values: Any) -> dict[str, Any]:
    """A model whose padding and end tokens lie within a vocabulary of 48."""
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return sizes(hidden, heads, kv_heads, 56, vocab=48) | ids | values


SMOLLM3 = [
    # As published: rope in three layers, none in the fourth, and the embedding is the head.
    Case("no_rope_every_fourth", small_ids(32, 4, 2, num_hidden_layers=5), (40, 75), "float16"),
    Case(
        "listed_layers_and_biases",
        small_ids(36, 3, 1, no_rope_layers=[0, 1, 0], num_hidden_layers=3)
        | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
        (40, 75),
        "bfloat16",
    ),
    Case(
        "window_where_no_rope_is",
        small_ids(32, 2, 2, no_rope_layer_interval=2, num_hidden_layers=4)
        | {"use_sliding_window": True, "sliding_window": 9},
        (40, 75),
        "float16",
        v4={"rope_theta": 2e6, "layer_types": None},
    ),
    Case(
        "yarn",
        small_ids(32, 2, 1, num_hidden_layers=4, max_position_embeddings=96)
        | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0} | YARN},
        (20, 90),
        "float16",
        v4={"rope_theta": 100.0, "rope_scaling": {"type": "yarn"} | YARN},
    ),
]

SEED_OSS = [
    Case("query_biases", small_ids(32, 4, 2, head_dim=16), (40, 75), "float16"),
    Case(
        "output_and_mlp_biases",
        small_ids(36, 3, 3, head_dim=20, attention_out_bias=True, mlp_bias=True),
        (40, 75),
        "bfloat16",
    ),
    Case(
        "no_biases_tied",
        small_ids(32, 2, 1, head_dim=24, attention_bias=False, tie_word_embeddings=True),
        (40, 75),
        "float16",
        v4={"rope_theta": 10000.0},
    ),
]

THREE_WINDOWS = {"num_hidden_layers": 5, "sliding_window": 9}

OLMO2 = [
    # Norms over all heads: 36 channels of queries, 12 of keys.
    Case("normed_over_all_heads", small_ids(36, 3, 1), (40, 75), "float16"),
    Case(
        "tied_and_biases",
        small_ids(32, 4, 4, tie_word_embeddings=True, attention_bias=True),
        (40, 75),
        "bfloat16",
    ),
    Case(
        "yarn",
        small_ids(32, 2, 1, max_position_embeddings=96)
        | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0} | YARN},
        (20, 90),
        "float16",
        v4={"rope_theta": 100.0, "rope_scaling": {"type": "yarn"} | YARN},
    ),
    Case(
        "three_windows_for_one_full",
        small_ids(32, 4, 2, **THREE_WINDOWS),
        (40, 75),
        "float16",
        v4={"rope_theta": 500000.0, "layer_types": None},
        model_type="olmo3",
    ),
    # The scaling is for layers that see everything; texts beyond the original context.
    Case(
        "windows_and_yarn",
        small_ids(32, 2, 1, max_position_embeddings=96, **THREE_WINDOWS)
        | {"rope_parameters": two_ropes(100.0, 100.0, rope_type="yarn", **YARN)},
        (20, 90),
        "float16",
        v4={"rope_theta": 100.0, "rope_scaling": {"rope_type": "yarn"} | YARN},
        model_type="olmo3",
    ),
]

EXAONE4 = [
    # As the small one: no windows, rope everywhere, Llama 3's scaling.
    Case(
        "no_window_rope_llama3",
        small_ids(32, 2, 1, sliding_window=None, tie_word_embeddings=True)
        | {"rope_parameters": LLAMA3 | {"rope_theta": 100.0}, "max_position_embeddings": 256}
        | {"layer_types": ["full_attention", "full_attention"]},
        (45, 90),
        "float16",
        v4={"rope_theta": 100.0, "rope_scaling": LLAMA3, "layer_types": None},
    ),
    # As the large one: full layers have no rope.
    Case("no_rope_in_full_layers", small_ids(36, 3, 1, **THREE_WINDOWS), (40, 75), "bfloat16"),
    Case(
        "layer_types",
        small_ids(32, 4, 2, head_dim=12, sliding_window=70, num_hidden_layers=3)
        | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
        (66, 120),
        "float16",
    ),
]
