"""Shapes of models that take no time: for tests of what measures them."""

from __future__ import annotations

from slmq.speed.shapes import Shape


def small_shape(positions: int, name: str = "small") -> Shape:
    """A Llama of two layers, its sizes no multiples of a group."""
    config = {
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "tie_word_embeddings": False,
        "max_position_embeddings": positions,
    }
    return Shape(name, config)
