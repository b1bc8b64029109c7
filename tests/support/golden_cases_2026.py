"""Tiny models of families that came in 2026: Gemma 4; and BitNet."""

from __future__ import annotations

from typing import Any

from golden_case import Case, sizes

NEAR, FULL = "sliding_attention", "full_attention"


def gemma4(
    *numbers: int, kinds: list[str], heads: tuple[int, int], **values: Any
) -> dict[str, Any]:
    """A Gemma 4; `heads` are the channels of a head with and without a window."""
    share = values.pop("share", 0.25)
    far = {"rope_type": "proportional", "partial_rotary_factor": share, "rope_theta": 500.0}
    near = {"rope_type": "default", "rope_theta": 100.0}
    return (
        sizes(*numbers)
        | {"num_hidden_layers": len(kinds), "layer_types": kinds, "sliding_window": 9}
        | {"max_position_embeddings": 128, "rms_norm_eps": 1e-5}
        | {"head_dim": heads[0], "global_head_dim": heads[1]}
        | {"rope_parameters": {FULL: far, NEAR: near}}
        | {"vocab_size_per_layer_input": numbers[4], "hidden_size_per_layer_input": 0}
        | values
    )


GEMMA4 = [
    # As E2B and E4B: a table of tokens, and each kind of layer twice with the keys of others.
    Case(
        "table_and_shared_keys",
        gemma4(32, 2, 1, 64, 48, kinds=[NEAR, FULL] * 4, heads=(16, 32))
        | {"num_kv_shared_layers": 4, "use_double_wide_mlp": True}
        | {"hidden_size_per_layer_input": 32, "final_logit_softcapping": 8.0},
        (40, 75),
        "float16",
    ),
    # As 31B: keys for values, and as many as there are heads, in layers without a window.
    Case(
        "keys_for_values",
        gemma4(48, 4, 1, 56, 50, kinds=[NEAR, FULL, NEAR, NEAR, FULL], heads=(12, 20), share=0.5)
        | {"attention_k_eq_v": True, "num_global_key_value_heads": 2},
        (40, 75),
        "bfloat16",
    ),
    # A table of more tokens than the model has; one layer whose keys two others see.
    Case(
        "untied_biases_larger_table",
        gemma4(36, 3, 3, 44, 50, kinds=[NEAR, FULL, NEAR, FULL, FULL], heads=(20, 12), share=1.0)
        | {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 64}
        | {"vocab_size_per_layer_input": 60, "attention_bias": True, "tie_word_embeddings": False},
        (66, 150),
        "float16",
    ),
    # Beside the towers that see and hear.
    Case(
        "beside_towers",
        {
            "text_config": gemma4(32, 2, 2, 40, 48, kinds=[NEAR, FULL] * 2, heads=(16, 16))
            | {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 32},
            "vision_config": {
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "num_key_value_heads": 1,
                "head_dim": 8,
                "patch_size": 4,
                "position_embedding_size": 16,
            },
            "audio_config": {
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "output_proj_dims": 8,
                "subsampling_conv_channels": [4, 4],
            },
        },
        (40, 75),
        "float16",
        model_type="gemma4",
    ),
]

BITNET = [
    Case("sub_norms", sizes(64, 4, 2, 96, vocab=48), (40, 75)),
    Case(
        "biases_untied",
        sizes(36, 3, 1, 68, vocab=50) | {"attention_bias": True, "tie_word_embeddings": False},
        (41, 70),
        "bfloat16",
    ),
    # As the first models, whose gate is a silu: those that llama.cpp reads.
    Case(
        "silu_tied",
        sizes(48, 2, 2, 64, vocab=48) | {"hidden_act": "silu", "tie_word_embeddings": True},
        (44, 66),
        "float16",
    ),
]
