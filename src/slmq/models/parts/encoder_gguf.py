"""Encoders in GGUF files: sizes, heads and pooling in the words of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slmq.errors import UnsupportedModelError
from slmq.models.parts.gguf import layers_value, refuse_experts
from slmq.models.parts.values import config_count, config_eps, config_layers, config_value

__all__ = ["BERT_EMBEDDINGS", "HEAD_NAMES", "encoder_from_gguf", "pooling_of"]

# What stands behind the embeddings' own name in BERT and its kin.
BERT_EMBEDDINGS = {
    "word_embeddings": "token_embd",
    "position_embeddings": "position_embd",
    "token_type_embeddings": "token_types",
    "LayerNorm": "token_embd_norm",
}
# Of a head with two matrices and perhaps a norm.
HEAD_NAMES = ("cls", "cls.norm", "cls.output")
# `pooling_type`; 0 leaves it to who uses the file, 4 is a head's.
POOLS = {0: "mean", 1: "mean", 2: "cls", 3: "last", 4: "cls"}


def encoder_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], architecture: str
) -> dict[str, Any]:
    """GGUF metadata that all encoders have, as a Hugging Face configuration.

    Raises
    ------
    UnsupportedModelError
        For a mixture of experts, layers of different sizes, or half a head.
    CheckpointError
        If a value is missing or makes no sense.
    """
    a = architecture
    refuse_experts(metadata, a)
    embed, types = tensors.get("token_embd.weight"), tensors.get("token_types.weight")
    found: dict[str, Any] = {
        "vocab_size": config_count(
            metadata, f"{a}.vocab_size", embed.shape[0] if embed is not None else None
        ),
        "hidden_size": config_count(metadata, f"{a}.embedding_length"),
        "intermediate_size": layers_value(metadata, f"{a}.feed_forward_length"),
        "num_hidden_layers": config_layers(metadata, f"{a}.block_count"),
        "num_attention_heads": layers_value(metadata, f"{a}.attention.head_count"),
        "max_position_embeddings": config_count(metadata, f"{a}.context_length"),
        "type_vocab_size": 0 if types is None else types.shape[0],
        "layer_norm_eps": config_eps(metadata, f"{a}.attention.layer_norm_epsilon"),
    }
    dense, out = (f"{name}.weight" in tensors for name in ("cls", "cls.output"))
    if dense != out:
        raise UnsupportedModelError(
            "half of the head that classifies is missing, as llama.cpp's converter leaves it out; "
            "load the folder that the file was made of"
        )
    if out:
        labels = config_value(metadata, f"{a}.classifier.output_labels", list, [])
        count = tensors["cls.output.weight"].shape[0]
        named = labels if len(labels) == count else [f"LABEL_{i}" for i in range(count)]
        found["architectures"] = ["ForSequenceClassification"]
        found["id2label"] = {str(i): str(name) for i, name in enumerate(named)}
    return found


def pooling_of(metadata: Mapping[str, Any]) -> str | None:
    """The kind of pooling that a GGUF file names, as of `SentenceFolder`; None if it names none.

    Raises
    ------
    UnsupportedModelError
        If there is no kind of this number.
    """
    key = f"{metadata.get('general.architecture')}.pooling_type"
    if metadata.get(key) is None:
        return None
    number = config_value(metadata, key, int)
    if number not in POOLS:
        raise UnsupportedModelError(f"{key}: {number} is not supported; supported: 0 to 4")
    return POOLS[number]
