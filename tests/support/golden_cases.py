"""The tiny models that make_goldens.py makes: what each family's configurations switch on."""

from __future__ import annotations

from typing import Any

from golden_case import LINEAR, LLAMA3, YARN, Case, scaled, sizes, two_ropes
from golden_cases_2025 import (
    APERTUS,
    ARCEE,
    EXAONE4,
    GRANITE,
    GRANITE_HYBRID,
    HELIUM,
    HUNYUAN,
    MINISTRAL3,
    NANOCHAT,
    OLMO2,
    SEED_OSS,
    SMOLLM3,
)
from golden_cases_2026 import BITNET, GEMMA4
from golden_cases_mixtures import GPT_OSS, GRANITE_MOE, LFM2_MOE, OLMOE, QWEN3_MOE
from golden_cases_stateful import LFM2, QWEN3_5

LLAMA = [
    Case("gqa_untied", sizes(64, 8, 2, 96), (40, 67)),
    Case(
        "mha_tied",
        sizes(64, 4, 4, 80) | {"tie_word_embeddings": True},
        (49, 64),
        dtype="bfloat16",
    ),
    Case(
        "odd_sizes",
        sizes(60, 3, 1, 172, vocab=259) | {"tie_word_embeddings": True},
        (41, 73),
        dtype="float16",
    ),
    Case(
        "rope_llama3",
        sizes(48, 3, 3, 64)
        | {"rope_parameters": LLAMA3 | {"rope_theta": 100.0}, "max_position_embeddings": 256},
        (45, 90),
        v4={"rope_theta": 100.0, "rope_scaling": LLAMA3},
    ),
    Case(
        "rope_linear",
        sizes(48, 2, 1, 64) | {"rope_parameters": LINEAR | {"rope_theta": 500.0}},
        (44, 81),
        dtype="bfloat16",
        v4={"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.5}},
    ),
    Case(
        "biases",
        sizes(36, 3, 1, 68) | {"attention_bias": True, "mlp_bias": True},  # head_dim 12
        (40, 66),
    ),
    Case("head_dim", sizes(48, 4, 2, 72) | {"head_dim": 20}, (47, 65), dtype="float16"),
    Case("sharded", sizes(48, 6, 3, 64), (42, 59), shard_size="100KB"),
]

# --- the other scalings, on a Llama ----------------------------------------------------------


# The second text of each is longer than the original context.
SCALINGS = [
    Case("scaled_dynamic", scaled("dynamic", 100.0, 24, factor=3.0), (24, 80), "float16"),
    Case(
        "scaled_yarn",
        scaled("yarn", 100.0, 96, **YARN, beta_fast=4.0, beta_slow=1.0),
        (20, 90),
        "float16",
        v4={
            "rope_theta": 100.0,
            "rope_scaling": YARN | {"type": "yarn", "beta_fast": 4.0, "beta_slow": 1.0},
        },
    ),
    Case(
        "scaled_yarn_mscale",
        scaled("yarn", 50.0, 96, **YARN, mscale=0.7, mscale_all_dim=1.3, truncate=False),
        (20, 90),
        "float16",
    ),
    Case(
        "scaled_longrope",
        scaled(
            "longrope",
            100.0,
            96,
            original_max_position_embeddings=24,
            short_factor=[1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5],
            long_factor=[1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.5, 6.0],
        ),
        (24, 90),
        "float16",
    ),
]

# --- the other families ------------------------------------------------------------------------

MISTRAL = [
    Case("window", sizes(32, 4, 2, 48, vocab=48) | {"sliding_window": 9}, (40, 75), "float16"),
    # Beyond a page of 64 positions, and heads that hidden_size does not give.
    Case(
        "wide_window",
        sizes(40, 3, 1, 56, vocab=50) | {"head_dim": 20, "sliding_window": 70},
        (66, 150),
        "float16",
    ),
    Case(
        "no_window",
        sizes(32, 2, 1, 48, vocab=48) | {"sliding_window": None, "tie_word_embeddings": True},
        (40, 75),
        "bfloat16",
    ),
]

QWEN2 = [
    Case("biases", sizes(32, 4, 2, 48, vocab=48), (40, 75), "float16"),
    Case(
        "window_in_last_layer",
        sizes(32, 2, 1, 48, vocab=48)
        | {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1},
        (40, 75),
        "float16",
        v4={"rope_theta": 10000.0, "layer_types": None},
    ),
    Case(
        "tied_yarn",
        scaled("yarn", 100.0, 96, **YARN) | {"tie_word_embeddings": True},
        (20, 90),
        "bfloat16",
    ),
    # Windows that are named but not turned on, as most published configurations have them.
    Case(
        "window_off",
        sizes(36, 3, 3, 44, vocab=50) | {"use_sliding_window": False, "sliding_window": 7},
        (40, 75),
        "float16",
    ),
    Case(
        "windows_in_two_of_four",
        sizes(32, 2, 1, 48, vocab=48)
        | {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 2}
        | {"num_hidden_layers": 4},
        (40, 75),
        "float16",
    ),
]

QWEN3 = [
    Case("head_norms", sizes(32, 4, 2, 48, vocab=48) | {"head_dim": 32}, (40, 75), "float16"),
    # Heads of 20 channels: the norm must not see the neighbour's.
    Case(
        "odd_heads_tied",
        sizes(36, 3, 1, 44, vocab=50) | {"head_dim": 20, "tie_word_embeddings": True},
        (40, 75),
        "bfloat16",
    ),
    Case(
        "biases_and_window",
        sizes(32, 2, 1, 48, vocab=48)
        | {"head_dim": 24, "attention_bias": True, "use_sliding_window": True}
        | {"sliding_window": 11, "max_window_layers": 1},
        (40, 75),
        "float16",
    ),
    Case(
        "windows_in_two_of_four",
        sizes(32, 2, 1, 48, vocab=48)
        | {"head_dim": 24, "use_sliding_window": True, "sliding_window": 11}
        | {"max_window_layers": 2, "num_hidden_layers": 4},
        (40, 75),
        "float16",
    ),
]


def phi3(hidden: int, heads: int, kv_heads: int, **values: Any) -> dict[str, Any]:
    """A Phi-3; its padding token must lie within the vocabulary."""
    return sizes(hidden, heads, kv_heads, 56, vocab=48) | {"pad_token_id": 0} | values


def su(pairs: int, share: float = 1.0) -> dict[str, Any]:
    """Longrope for an original context of 24, with as many divisors as a head has pairs."""
    return {
        "max_position_embeddings": 96,
        "original_max_position_embeddings": 24,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "partial_rotary_factor": share,
            "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
            "long_factor": [1.0 + 0.6 * i for i in range(pairs)],
        },
    }


PHI3 = [
    # Heads of 12 channels and 56 rows of gate: parts that begin and end within groups of rows.
    Case("fused_gqa", phi3(48, 4, 2), (40, 75), "float16"),
    Case("window", phi3(32, 2, 2, sliding_window=9), (40, 75), "bfloat16"),
    Case(
        "longrope",
        phi3(32, 2, 1, **su(8)),
        (24, 90),
        "float16",
        v4={
            "rope_theta": 100.0,
            "rope_scaling": {
                "type": "su",
                "short_factor": su(8)["rope_parameters"]["short_factor"],
                "long_factor": su(8)["rope_parameters"]["long_factor"],
            },
        },
    ),
    Case(
        "partial_longrope_tied",
        phi3(32, 2, 1, tie_word_embeddings=True, **su(6, 0.75)),
        (24, 90),
        "float16",
    ),
]

GEMMA = [
    # Heads of 24 channels where hidden_size would give 8; the embedding is the head.
    Case("wide_heads", sizes(32, 4, 1, 48, vocab=48) | {"head_dim": 24}, (40, 75), "float16"),
    Case(
        "untied_biases",
        sizes(36, 3, 3, 44, vocab=50)
        | {"head_dim": 12, "tie_word_embeddings": False, "attention_bias": True},
        (40, 75),
        "float16",
    ),
    Case(
        "linear_rope",
        scaled("linear", 100.0, 96, factor=3.0) | {"head_dim": 16, "hidden_act": "gelu"},
        (20, 90),
        "bfloat16",
    ),
]

# Caps near the scores and logits of these models, so that they bend most of them.
CAPS = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 6.0}
NO_CAPS = {"attn_logit_softcapping": None, "final_logit_softcapping": None}

GEMMA2 = [
    # Layer 0 has a window, layer 1 has none.
    Case(
        "caps_and_alternating_windows",
        sizes(32, 4, 2, 48, vocab=48)
        | {"head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 9}
        | CAPS,
        (40, 75),
        "float16",
    ),
    # Scores are not divided by the root of the head's size; windows beyond a page of 64 positions.
    Case(
        "query_scalar_and_wide_windows",
        sizes(36, 3, 1, 44, vocab=50)
        | {"head_dim": 20, "query_pre_attn_scalar": 7, "sliding_window": 70}
        | CAPS,
        (66, 150),
        "bfloat16",
    ),
    Case(
        "untied_biases_no_caps",
        sizes(36, 3, 3, 44, vocab=50)
        | {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 11}
        | {"tie_word_embeddings": False, "attention_bias": True}
        | NO_CAPS,
        (40, 75),
        "float16",
    ),
    Case(
        "layer_types_and_linear_rope",
        scaled("linear", 100.0, 96, factor=3.0)
        | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 13}
        | {"layer_types": ["full_attention", "sliding_attention"]}
        | CAPS,
        (20, 90),
        "float16",
    ),
    Case(
        "windows_in_two_of_four",
        sizes(32, 4, 2, 48, vocab=48)
        | {"head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 9}
        | {"num_hidden_layers": 4}
        | CAPS,
        (40, 75),
        "float16",
    ),
]


GEMMA3 = [
    # What the configuration leaves out: five layers with a window for one without, a base of 10,000
    # for those and of a million for this.
    Case(
        "five_windows_for_one_full",
        sizes(24, 2, 1, 32, vocab=48)
        | {"head_dim": 16, "query_pre_attn_scalar": 16}
        | {"sliding_window": 9, "num_hidden_layers": 7},
        (40, 75),
        "float16",
    ),
    # Texts beyond what the model was made for before its rope was scaled.
    Case(
        "two_ropes_and_linear_scaling",
        sizes(32, 4, 2, 48, vocab=48)
        | {"head_dim": 24, "query_pre_attn_scalar": 24}
        | {"sliding_window": 13, "sliding_window_pattern": 2, "max_position_embeddings": 96}
        | {"rope_parameters": two_ropes(40.0, 100.0, rope_type="linear", factor=4.0)},
        (24, 90),
        "float16",
        v4={
            "layer_types": None,
            "sliding_window_pattern": 2,
            "rope_theta": 100.0,
            "rope_local_base_freq": 40.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        },
    ),
    Case(
        "untied_biases_logit_cap",
        sizes(36, 3, 3, 44, vocab=50)
        | {"head_dim": 20, "query_pre_attn_scalar": 9, "final_logit_softcapping": 6.0}
        | {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 70}
        | {"tie_word_embeddings": False, "attention_bias": True},
        (66, 150),
        "bfloat16",
    ),
    Case(
        "windows_in_two_of_four",
        sizes(24, 2, 1, 32, vocab=48)
        | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 9}
        | {"sliding_window_pattern": 2, "num_hidden_layers": 4},
        (40, 75),
        "float16",
    ),
]

# A language model beside a vision tower, as the larger ones come.
GEMMA3.append(
    Case(
        "beside_a_vision_tower",
        {
            "text_config": sizes(24, 2, 1, 32, vocab=48)
            | {"head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 2}
            | {"sliding_window": 9, "sliding_window_pattern": 2, "max_position_embeddings": 128},
            "vision_config": {
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "image_size": 8,
                "patch_size": 4,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 50,
        },
        (40, 75),
        "float16",
        model_type="gemma3",
    )
)


def gpt2(hidden: int, heads: int, **values: Any) -> dict[str, Any]:
    """A GPT-2 with as many learned positions as the longer text needs."""
    sizes = {"n_embd": hidden, "n_head": heads, "vocab_size": 50}
    return sizes | {"max_position_embeddings": 80} | values


GPT2 = [
    # Heads of 12 channels, an inner width of 4 * 36; text up to the last position.
    Case("learned_positions", gpt2(36, 3), (40, 80), "float16"),
    Case("untied", gpt2(32, 2, n_inner=56, tie_word_embeddings=False), (40, 75), "bfloat16"),
    Case("scaled_by_layer", gpt2(32, 2, scale_attn_by_inverse_layer_idx=True), (40, 75), "float16"),
    Case(
        "unscaled_relu",
        gpt2(32, 4, n_inner=40, scale_attn_weights=False, activation_function="relu"),
        (40, 75),
        "float16",
    ),
]


def rotated(share: float, theta: float = 10000.0, **values: Any) -> dict[str, Any]:
    """Rope parameters with a share of a head's channels that turn."""
    rope = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": share}
    return {"rope_parameters": rope | values}


def neox(hidden: int, heads: int, ffn: int, **values: Any) -> dict[str, Any]:
    """A GPT-NeoX; its special tokens must lie within the vocabulary."""
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": ffn}
    return sizes | {"vocab_size": 50, "layer_norm_eps": 1e-5} | values


GPT_NEOX = [
    # Heads of 16 channels of which 4 turn.
    Case(
        "parallel",
        neox(32, 2, 48),
        (40, 75),
        "float16",
        v4={"rotary_pct": 0.25, "rotary_emb_base": 10000},
    ),
    # As rinna's: one after the other, and all channels turn. Heads of 12.
    Case(
        "one_after_the_other",
        neox(36, 3, 44, use_parallel_residual=False, **rotated(1.0, 500.0)),
        (40, 75),
        "bfloat16",
        v4={"rotary_pct": 1.0, "rotary_emb_base": 500},
    ),
    Case(
        "tied_without_attention_bias",
        neox(40, 2, 56, attention_bias=False, tie_word_embeddings=True)
        | rotated(0.5, 100.0, rope_type="linear", factor=3.0),
        (20, 90),
        "float16",
    ),
]

PHI = [
    # Heads of 16 channels of which 8 turn, as many keys as queries.
    Case(
        "half_rotary",
        sizes(32, 2, 2, 48, vocab=48) | {"layer_norm_eps": 1e-5},
        (40, 75),
        "float16",
        v4={"partial_rotary_factor": 0.5, "rope_theta": 10000.0},
    ),
    # Phi-2 turns 0.4 of a head.
    Case(
        "gqa_and_head_norms",
        sizes(40, 2, 1, 56, vocab=50)
        | {"layer_norm_eps": 1e-5, "qk_layernorm": True}
        | rotated(0.4, 500.0),
        (40, 75),
        "float16",
    ),
    Case(
        "odd_heads_exact_gelu",
        sizes(36, 3, 3, 44, vocab=50)
        | {"layer_norm_eps": 1e-5, "hidden_act": "gelu"}
        | rotated(0.5, 100.0),
        (40, 75),
        "bfloat16",
    ),
]


def stablelm(*numbers: int, **values: Any) -> dict[str, Any]:
    """A StableLM."""
    return sizes(*numbers, vocab=48) | {"layer_norm_eps": 1e-5} | values


STABLELM = [
    # StableLM 2 1.6B: heads of 16 channels of which 4 turn, biases of q, k and v.
    Case(
        "qkv_bias",
        stablelm(32, 2, 2, 48, use_qkv_bias=True),
        (40, 75),
        "float16",
        v4={"partial_rotary_factor": 0.25, "rope_theta": 10000},
    ),
    # StableLM 2 12B: attention and MLP behind one norm, a norm for every head.
    Case(
        "parallel_head_norms_gqa",
        stablelm(48, 4, 2, 56, use_parallel_residual=True, qk_layernorm=True) | rotated(0.5, 500.0),
        (40, 75),
        "float16",
    ),
    Case(
        "head_norms_tied",
        stablelm(40, 2, 1, 44, qk_layernorm=True, tie_word_embeddings=True) | rotated(0.3, 100.0),
        (40, 75),
        "bfloat16",
    ),
]

# By folder: the model type, except that the scalings are shown on Llamas.
CASES = {
    "llama": LLAMA,
    "rope": SCALINGS,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "phi3": PHI3,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "gemma4_text": GEMMA4,
    "bitnet": BITNET,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "phi": PHI,
    "stablelm": STABLELM,
    "smollm3": SMOLLM3,
    "seed_oss": SEED_OSS,
    "olmo2": OLMO2,
    "exaone4": EXAONE4,
    "granite": GRANITE,
    "granitemoehybrid": GRANITE_HYBRID,
    "hunyuan_v1_dense": HUNYUAN,
    "arcee": ARCEE,
    "nanochat": NANOCHAT,
    "helium": HELIUM,
    "apertus": APERTUS,
    "ministral3": MINISTRAL3,
    "lfm2": LFM2,
    "qwen3_5_text": QWEN3_5,
    "qwen3_moe": QWEN3_MOE,
    "olmoe": OLMOE,
    "granitemoe": GRANITE_MOE,
    "lfm2_moe": LFM2_MOE,
    "gpt_oss": GPT_OSS,
}
