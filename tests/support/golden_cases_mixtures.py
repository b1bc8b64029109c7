"""Tiny mixtures of experts: few rows for many experts, and many for few."""

from __future__ import annotations

from typing import Any

from golden_case import LLAMA3, YARN, Case
from golden_cases_2025 import small_ids
from golden_cases_stateful import CONV, FULL, lfm2


def yarn(theta: float) -> dict[str, Any]:
    """A rope whose bounds of channels are not rounded."""
    bounds = {"beta_fast": 4.0, "beta_slow": 1.0, "truncate": False}
    return YARN | bounds | {"rope_type": "yarn", "rope_theta": theta}


def experts(count: int, top_k: int, **values: Any) -> dict[str, Any]:
    """So many experts, of which a row goes to `top_k`, as configurations with local experts say."""
    return {"num_local_experts": count, "num_experts_per_tok": top_k} | values


QWEN3_MOE = [
    # As published: weights of a row's experts add up to 1.
    Case(
        "two_of_eight",
        small_ids(32, 4, 2, head_dim=16, num_hidden_layers=3)
        | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        | {"norm_topk_prob": True},
        (40, 75),
        "float16",
    ),
    Case(
        "dense_layers_between",
        small_ids(36, 3, 1, num_hidden_layers=5, decoder_sparse_step=2, mlp_only_layers=[1])
        | {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
        | {"norm_topk_prob": True, "tie_word_embeddings": True},
        (40, 75),
        "bfloat16",
    ),
    Case(
        "window_biases_weights_as_they_are",
        small_ids(32, 2, 2, attention_bias=True, use_sliding_window=True, sliding_window=20)
        | {"num_experts": 5, "num_experts_per_tok": 4, "moe_intermediate_size": 40}
        | {"norm_topk_prob": False},
        (40, 75),
        "float16",
    ),
]

OLMOE = [
    # As published: weights are the softmax of all logits, as they are.
    Case(
        "two_of_eight",
        small_ids(32, 4, 4, num_experts=8, num_experts_per_tok=2, intermediate_size=24),
        (40, 75),
        "float16",
    ),
    Case(
        "gqa_biases_tied",
        small_ids(36, 3, 1, num_experts=3, num_experts_per_tok=3, intermediate_size=20)
        | {"attention_bias": True, "tie_word_embeddings": True, "num_hidden_layers": 3},
        (40, 75),
        "bfloat16",
    ),
    Case(
        "normalized_weights",
        small_ids(32, 2, 2, num_experts=6, num_experts_per_tok=1, norm_topk_prob=True)
        | {"intermediate_size": 40},
        (40, 75),
        "float16",
    ),
]

GRANITE_MOE = [
    Case(
        "factors",
        small_ids(32, 4, 2, num_hidden_layers=3, tie_word_embeddings=True)
        | experts(8, 2, intermediate_size=24)
        | {"embedding_multiplier": 6.0, "residual_multiplier": 0.4}
        | {"attention_multiplier": 0.2, "logits_scaling": 3.0},
        (40, 75),
        "float16",
    ),
    Case(
        "rope_llama3",
        small_ids(48, 3, 1, max_position_embeddings=256)
        | experts(5, 4, intermediate_size=40)
        | {"rope_parameters": LLAMA3 | {"rope_theta": 100.0}},
        (40, 75),
        "bfloat16",
        seed=6000,
    ),
    Case(
        "one_expert_of_three",
        small_ids(36, 3, 3, attention_bias=True) | experts(3, 1, intermediate_size=20),
        (40, 75),
        "float16",
        seed=1000,
    ),
]

LFM2_MOE = [
    # As published: two dense layers, then experts that are chosen by a bias.
    Case(
        "biased_choice",
        lfm2(32, 4, 2, [CONV, CONV, FULL, CONV, FULL], num_dense_layers=2)
        | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        (40, 150),
        "float16",
    ),
    Case(
        "scaled_biases_untied",
        lfm2(36, 3, 1, [FULL, CONV, CONV, FULL], conv_L_cache=4, conv_bias=True)
        | {"num_dense_layers": 1, "tie_word_embeddings": False, "routed_scaling_factor": 1.7}
        | {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20},
        (64, 75),
        "bfloat16",
    ),
    Case(
        "no_bias_weights_as_they_are",
        lfm2(32, 2, 2, [CONV, FULL, CONV, FULL], num_dense_layers=0, use_expert_bias=False)
        | {"num_experts": 5, "num_experts_per_tok": 4, "moe_intermediate_size": 40}
        | {"norm_topk_prob": False},
        (40, 90),
        "float16",
    ),
]

GPT_OSS = [
    # As published: windows in every other layer, sinks, yarn.
    Case(
        "sinks_and_windows",
        small_ids(32, 4, 2, head_dim=16, num_hidden_layers=4, sliding_window=20)
        | experts(8, 2, intermediate_size=24)
        | {"rope_parameters": yarn(150.0)},
        (40, 75),
        "float16",
    ),
    Case(
        "tight_limit_odd_heads",
        small_ids(36, 3, 1, head_dim=20, num_hidden_layers=3, sliding_window=70)
        | experts(5, 4, intermediate_size=40, swiglu_limit=1.5, swiglu_alpha=1.2)
        | {"rope_parameters": yarn(500.0), "tie_word_embeddings": True},
        (40, 75),
        "bfloat16",
        seed=1000,
    ),
    Case(
        "full_first_no_scaling",
        small_ids(64, 2, 2, head_dim=32, num_hidden_layers=3, sliding_window=30)
        | experts(3, 3, intermediate_size=32, attention_bias=False)
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        (40, 75),
        "float16",
    ),
]
