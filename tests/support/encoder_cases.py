"""The tiny encoders that make_encoder_goldens.py makes: what their configurations switch on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EncoderCase:
    """One tiny model: what differs from the common config, and how it is stored.

    Attributes
    ----------
    name : str
    auto : str
        The class of transformers' Auto... that makes it: "Model", "ForMaskedLM" and so on.
    config : dict
    lengths : (int, int)
        Of two texts.
    dtype : str
        What its tensors are stored as.
    model_type : str
        Where it is not the family's.
    types : int
        Types that the tokens of the texts have.
    """

    name: str
    auto: str
    config: dict[str, Any]
    lengths: tuple[int, int] = (40, 67)
    dtype: str = "float32"
    model_type: str = ""
    types: int = 1


def sizes(hidden: int, heads: int, inner: int, vocab: int = 96) -> dict[str, Any]:
    """The size keys of a config, by short names."""
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
    }


def distil(dim: int, heads: int, inner: int) -> dict[str, Any]:
    """The same for DistilBERT."""
    return {"dim": dim, "n_heads": heads, "hidden_dim": inner, "vocab_size": 96, "n_layers": 2}


def euro(hidden: int, heads: int, inner: int) -> dict[str, Any]:
    """The same for EuroBERT, whose configuration has ids beyond the vocabulary of a tiny model."""
    return sizes(hidden, heads, inner) | IDS | {"mask_token_id": 1}


def decoder(hidden: int, heads: int, inner: int, kv_heads: int = 2) -> dict[str, Any]:
    """The same for a decoder."""
    return sizes(hidden, heads, inner) | IDS | {"num_key_value_heads": kv_heads}


def rope(theta: float) -> dict[str, Any]:
    """Rope parameters of transformers 5."""
    return {"rope_type": "default", "rope_theta": theta}


CLASSIFY, TAGS, MASKS = "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"
# Ids that ModernBERT's configuration has beyond the vocabulary of a tiny model.
IDS = {f"{name}_token_id": 1 for name in ("pad", "eos", "bos", "cls", "sep")}
THREE = {"id2label": {0: "no", 1: "maybe", 2: "yes"}}

CASES: dict[str, list[EncoderCase]] = {
    "bert": [
        EncoderCase("pairs_one_score", CLASSIFY, sizes(64, 4, 96) | {"num_labels": 1}, types=2),
        EncoderCase("masks_gelu_tanh", MASKS, sizes(48, 3, 80) | {"hidden_act": "gelu_new"}),
        EncoderCase(
            "tags_odd_sizes_relu",
            TAGS,
            sizes(60, 5, 70) | THREE | {"hidden_act": "relu", "type_vocab_size": 3},
            (33, 1),
            dtype="float16",
            types=3,
        ),
        EncoderCase("body", "Model", sizes(64, 2, 72, vocab=259), (128, 64), dtype="bfloat16"),
    ],
    "roberta": [
        EncoderCase("three_labels", CLASSIFY, sizes(64, 4, 96) | THREE | {"type_vocab_size": 1}),
        EncoderCase("masks", MASKS, sizes(48, 3, 80) | {"type_vocab_size": 1}, dtype="bfloat16"),
        EncoderCase(
            "camembert_tags",
            TAGS,
            sizes(60, 3, 70) | THREE | {"type_vocab_size": 1},
            model_type="camembert",
        ),
        EncoderCase(
            "xlm_roberta_body_early_padding",
            "Model",
            sizes(64, 2, 72) | {"type_vocab_size": 1, "pad_token_id": 0},
            (125, 64),
            model_type="xlm-roberta",
        ),
    ],
    "distilbert": [
        EncoderCase("three_labels", CLASSIFY, distil(64, 4, 96) | THREE),
        EncoderCase("masks_untied", MASKS, distil(48, 3, 80) | {"tie_word_embeddings": False}),
        EncoderCase("tags_relu", TAGS, distil(60, 5, 70) | {"activation": "relu"}, dtype="float16"),
    ],
    "electra": [
        EncoderCase(
            "narrow_embedding", CLASSIFY, sizes(64, 4, 96) | {"embedding_size": 40}, types=2
        ),
        EncoderCase("masks_narrow_embedding", MASKS, sizes(48, 3, 80) | {"embedding_size": 36}),
        EncoderCase(
            "tags_one_width",
            TAGS,
            sizes(60, 5, 70) | THREE | {"embedding_size": 60},
            dtype="bfloat16",
        ),
    ],
    "mpnet": [
        EncoderCase(
            "far_distances",
            CLASSIFY,
            sizes(64, 4, 96) | THREE | {"max_position_embeddings": 202},
            (150, 200),
        ),
        EncoderCase("masks", MASKS, sizes(48, 3, 80), dtype="float16"),
        EncoderCase("tags", TAGS, sizes(60, 5, 70) | THREE, (17, 126)),
        EncoderCase("body", "Model", sizes(64, 2, 72), (1, 90), dtype="bfloat16"),
    ],
    "modernbert": [
        EncoderCase(
            "windows_mean_pooled",
            CLASSIFY,
            sizes(64, 4, 96)
            | IDS
            | THREE
            | {"local_attention": 16, "classifier_pooling": "mean", "num_hidden_layers": 4},
        ),
        EncoderCase(
            "masks_two_bases",
            MASKS,
            sizes(48, 3, 80)
            | IDS
            | {
                "local_attention": 10,
                "num_hidden_layers": 3,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 500.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                },
            },
            dtype="bfloat16",
        ),
        EncoderCase(
            "tags_biases_silu",
            TAGS,
            sizes(60, 3, 70)
            | IDS
            | THREE
            | {
                "attention_bias": True,
                "mlp_bias": True,
                "norm_bias": True,
                "classifier_bias": True,
                "hidden_activation": "silu",
                "local_attention": 300,
            },
            dtype="float16",
        ),
    ],
    "nomic_bert": [
        EncoderCase("pairs_one_score", CLASSIFY, sizes(64, 4, 96) | {"num_labels": 1}, types=2),
        EncoderCase(
            "masks_gelu", MASKS, sizes(48, 3, 80) | {"hidden_act": "gelu"}, dtype="bfloat16"
        ),
        EncoderCase(
            "tags_another_base",
            TAGS,
            sizes(60, 5, 70) | THREE | {"rope_parameters": rope(77.0)},
            (33, 1),
            dtype="float16",
        ),
        EncoderCase("body", "Model", sizes(64, 2, 72), (128, 64), dtype="bfloat16"),
    ],
    "gte": [
        EncoderCase("three_labels", CLASSIFY, sizes(64, 4, 96) | THREE),
        EncoderCase("masks", MASKS, sizes(48, 3, 80), dtype="bfloat16"),
        EncoderCase(
            "tags_without_types",
            TAGS,
            sizes(60, 5, 70) | THREE | {"type_vocab_size": 0, "hidden_act": "silu"},
            (33, 1),
            dtype="float16",
        ),
        EncoderCase(
            "body_scaled_rope",
            "Model",
            sizes(64, 2, 72)
            | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 20000.0}},
            (128, 64),
        ),
    ],
    "eurobert": [
        EncoderCase(
            "labels_late_shared_keys",
            CLASSIFY,
            euro(64, 4, 96) | THREE | {"num_key_value_heads": 2},
        ),
        EncoderCase(
            "labels_of_the_mean",
            CLASSIFY,
            euro(48, 3, 80) | THREE | {"classifier_pooling": "mean"},
            dtype="bfloat16",
        ),
        EncoderCase(
            "labels_of_the_first",
            CLASSIFY,
            euro(60, 5, 70) | THREE | {"classifier_pooling": "bos", "attention_bias": True},
            (33, 1),
            dtype="float16",
        ),
        EncoderCase("masks_tied", MASKS, euro(64, 2, 72) | {"tie_word_embeddings": True}),
        EncoderCase("tags", TAGS, euro(60, 5, 70) | THREE | {"mlp_bias": True}, (17, 126)),
    ],
    "headless": [
        EncoderCase(
            "qwen3_body",
            "Model",
            decoder(64, 4, 96) | {"head_dim": 24, "tie_word_embeddings": True},
            model_type="qwen3",
            dtype="bfloat16",
        ),
        EncoderCase(
            "qwen3_three_labels",
            CLASSIFY,
            decoder(48, 4, 80) | THREE | {"head_dim": 12},
            model_type="qwen3",
        ),
        EncoderCase(
            "gemma3_both_ways",
            "Model",
            decoder(64, 4, 96)
            | {
                "head_dim": 16,
                "sliding_window": 16,
                "use_bidirectional_attention": True,
                "query_pre_attn_scalar": 20,
                "num_hidden_layers": 4,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (40, 67),
            model_type="gemma3_text",
            dtype="bfloat16",
        ),
        EncoderCase("llama_tags", TAGS, decoder(60, 5, 70, 1) | THREE, model_type="llama"),
        EncoderCase("qwen2_body", "Model", decoder(60, 5, 70, 1), (1, 90), model_type="qwen2"),
    ],
}
