"""Which goldens a GGUF file can say."""

from __future__ import annotations

from family_files import language_model
from golden import read_golden

# Another scale of attention, another activation, norms of Phi's heads, ties that llama.cpp lacks.
NOT_IN_GGUF = (
    *("scaled_by_layer", "unscaled_relu", "odd_heads_exact_gelu", "gqa_and_head_norms"),
    *("tied_without_attention_bias", "head_norms_tied", "listed_layers_and_biases"),
    # Layers without experts, a head; weights that add up to 1, or do not; the limit of units.
    *("dense_layers_between", "scaled_biases_untied"),
    *("normalized_weights", "no_bias_weights_as_they_are", "tight_limit_odd_heads"),
)


# What llama.cpp has no architecture for.
NO_GGUF = ("rope", "nanochat", "helium")


def in_gguf(family: str, name: str) -> bool:
    """Whether a GGUF file can say what the case is."""
    config = language_model(read_golden(family, name).folder)[0]
    if family == "bitnet":  # of which llama.cpp knows the first models
        return config["hidden_act"] == "silu"
    if family == "gemma4_text":  # which llama.cpp knows without biases, and tied
        return config["tie_word_embeddings"] is True
    if family.startswith("gemma"):  # which scale scores by the size of their heads, and are tied
        head_dim = config["head_dim"]
        scalar = config.get("query_pre_attn_scalar", head_dim)
        return config["tie_word_embeddings"] is True and scalar == head_dim
    # No window for these (nor does llama.cpp read one), no kind of rope scaling for the others.
    plain = "window" not in name or name in ("no_window", "window_off")
    said = family in ("phi3", "olmo2", "exaone4", "gpt_oss")
    return family not in NO_GGUF and name not in NOT_IN_GGUF and (said or plain)
