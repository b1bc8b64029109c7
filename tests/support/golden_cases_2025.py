"""Tiny models of the families of 2025: normed behind, without rope, with factors or odd MLPs."""

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
    Case(
        "windows_in_six_of_eight",
        small_ids(32, 2, 1, sliding_window=9, num_hidden_layers=8),
        (40, 75),
        "float16",
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

# --- constant factors, other norms, other activations --------------------------------------------

FACTORS = {
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.5,
    "logits_scaling": 2.0,
}

GRANITE = [
    Case("factors", small_ids(32, 4, 2, **FACTORS), (40, 75), "float16"),
    Case(
        "factors_and_biases_tied",
        small_ids(36, 3, 1, **FACTORS, attention_bias=True, mlp_bias=True)
        | {"tie_word_embeddings": True},
        (40, 75),
        "bfloat16",
    ),
    Case(
        "factors_and_rope_llama3",
        small_ids(32, 2, 2, **FACTORS, max_position_embeddings=256)
        | {"rope_parameters": LLAMA3 | {"rope_theta": 100.0}},
        (45, 90),
        "float16",
        v4={"rope_theta": 100.0, "rope_scaling": LLAMA3},
    ),
]


def hybrid(hidden: int, heads: int, kv_heads: int, layers: int, **values: Any) -> dict[str, Any]:
    """A Granite 4 without experts and without layers of Mamba 2."""
    dense = {
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 56,
        "num_hidden_layers": layers,
        "layer_types": ["full_attention"] * layers,
        "mamba_n_heads": 4,
    }
    return small_ids(hidden, heads, kv_heads) | FACTORS | dense | values


GRANITE_HYBRID = [
    Case(
        "roped_tied",
        hybrid(32, 4, 2, 2, position_embedding_type="rope", tie_word_embeddings=True),
        (40, 75),
        "float16",
        v4={"rope_theta": 10000, "layer_types": ["attention"] * 2},
    ),
    Case("without_positions", hybrid(32, 2, 1, 3), (40, 75), "bfloat16"),
    Case(
        "biases",
        hybrid(36, 3, 3, 2, position_embedding_type="rope", attention_bias=True),
        (40, 75),
        "float16",
    ),
]

HUNYUAN = [
    Case("norms_behind_rope", small_ids(32, 4, 2, head_dim=16), (40, 75), "float16"),
    # As published: the base of rope is stretched by alpha, whatever the length.
    Case(
        "stretched_base_tied",
        small_ids(32, 2, 1, head_dim=16, tie_word_embeddings=True)
        | {
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 100.0,
                "alpha": 50.0,
                "factor": 1.0,
            }
        },
        (40, 75),
        "bfloat16",
        v4={"rope_theta": 100.0, "rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0}},
    ),
    Case(
        "odd_heads_and_biases",
        small_ids(36, 3, 1, head_dim=20, attention_bias=True),
        (40, 75),
        "float16",
    ),
]

ARCEE = [
    Case("squared_relu", small_ids(32, 4, 2), (40, 75), "float16"),
    Case(
        "biases_tied",
        small_ids(36, 3, 1, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        (40, 75),
        "bfloat16",
    ),
    Case(
        "yarn",
        small_ids(32, 2, 2, max_position_embeddings=96)
        | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0} | YARN},
        (20, 90),
        "float16",
        v4={"rope_theta": 100.0, "rope_scaling": {"type": "yarn"} | YARN},
    ),
]

NANOCHAT = [
    Case("norms_without_weights", small_ids(32, 4, 4), (40, 75), "float16"),
    Case(
        "biases_tied",
        small_ids(36, 3, 1, attention_bias=True, tie_word_embeddings=True),
        (40, 75),
        "bfloat16",
    ),
    Case(
        "no_softcap",
        small_ids(32, 2, 1, final_logit_softcapping=None),
        (40, 75),
        "float16",
        v4={"rope_theta": 10000.0},
    ),
]

HELIUM = [
    Case("neighbours_turn", small_ids(32, 2, 2, head_dim=16), (40, 75), "float16"),
    Case(
        "biases_tied",
        small_ids(36, 3, 1, head_dim=12, attention_bias=True, mlp_bias=True)
        | {"tie_word_embeddings": True},
        (40, 75),
        "bfloat16",
    ),
    Case(
        "gqa",
        small_ids(40, 4, 2, head_dim=10),
        (40, 75),
        "float16",
        v4={"rope_theta": 100000.0},
    ),
]

APERTUS = [
    Case(
        "xielu_rope_llama3",
        small_ids(32, 4, 2, max_position_embeddings=256)
        | {"rope_parameters": LLAMA3 | {"rope_theta": 100.0}},
        (45, 90),
        "float16",
        v4={"rope_theta": 100.0, "rope_scaling": LLAMA3},
    ),
    Case(
        "biases_tied",
        small_ids(36, 3, 1, attention_bias=True, tie_word_embeddings=True)
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        (40, 75),
        "bfloat16",
    ),
    Case(
        "three_layers",
        small_ids(32, 2, 2, num_hidden_layers=3)
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        (40, 75),
        "float16",
    ),
]


def grown(theta: float, **values: Any) -> dict[str, Any]:
    """Yarn over 96 positions made of 24, and queries that grow every 24 of them."""
    rope = {"rope_type": "yarn", "rope_theta": theta, "llama_4_scaling_beta": 0.6} | YARN
    scaled = rope | {"mscale": 1.0, "mscale_all_dim": 1.0} | values
    return {"rope_parameters": scaled, "max_position_embeddings": 96}


MINISTRAL3 = [
    Case("queries_grow", small_ids(32, 4, 2, head_dim=16) | grown(100.0), (20, 90), "float16"),
    Case(
        "tied_odd_heads",
        small_ids(36, 3, 1, head_dim=20, tie_word_embeddings=True)
        | grown(500.0, mscale_all_dim=0.5),
        (20, 90),
        "bfloat16",
    ),
    Case(
        "window_and_growth",
        small_ids(32, 2, 2, head_dim=12, sliding_window=9) | grown(100.0),
        (20, 90),
        "float16",
    ),
]
