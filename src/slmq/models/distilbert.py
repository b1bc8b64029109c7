"""DistilBERT: half of BERT's layers, no types, and names of its own.

Sanh et al., "DistilBERT", 2019. Many classifiers of short texts are made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.errors import UnsupportedModelError
from slmq.models.parts.encoder import (
    EncoderConfig,
    LayerNames,
    embed,
    encoder_values,
    post_norm_layers,
)
from slmq.models.parts.encoder_head import HeadNames, load_bert
from slmq.models.parts.gguf import no_gguf

if TYPE_CHECKING:
    from slmq.models.parts.gguf import Weights
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording
    from slmq.weights.base import Reader

EMBED = "distilbert.embeddings.word_embeddings"
LAYER = LayerNames(
    q="attention.q_lin",
    k="attention.k_lin",
    v="attention.v_lin",
    o="attention.out_lin",
    attn_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    mlp_norm="output_layer_norm",
)
# BERT's words for what the configuration names in its own way.
OTHER_NAMES = {
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}


@dataclass(frozen=True)
class Config(EncoderConfig):
    """What config.json says, checked."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `encoder_values`.

        Raises
        ------
        UnsupportedModelError
            For positions that are computed and not stored.
        """
        if config.get("sinusoidal_pos_embds"):
            raise UnsupportedModelError("sinusoidal_pos_embds is not supported")
        named = {ours: config[theirs] for ours, theirs in OTHER_NAMES.items() if theirs in config}
        return cls(**encoder_values({**config, **named, "layer_norm_eps": 1e-12}))


def heads(cfg: Config) -> dict[str, HeadNames]:
    """The heads that the family has, by task."""
    return {
        "classify": HeadNames("classifier", "pre_classifier", "relu"),
        "tags": HeadNames("classifier"),
        "fill_mask": HeadNames(
            "vocab_projector", "vocab_transform", cfg.activation, "vocab_layer_norm"
        ),
    }


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses, and those of the head."""
    return load_bert(r, cfg, "distilbert", heads(cfg), layers="transformer.layer", names=LAYER)


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the hidden states of all tokens."""
    return post_norm_layers(p, embed(p, w, cfg), w.layers, cfg)


GGUF = no_gguf("distilbert", EMBED)
