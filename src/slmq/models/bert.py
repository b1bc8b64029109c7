"""BERT, and the many models of sentences that are made of it: Hugging Face's model type "bert".

Learned positions, types that tell two texts apart, a norm behind every sum (Devlin et al., 2018).
MiniLM, BGE, E5, GTE, Arctic and the cross-encoders of MS MARCO are BERTs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.parts.encoder import (
    BERT_LAYER,
    EncoderConfig,
    embed,
    encoder_values,
    load_embeddings,
    load_post_norm_layers,
    no_gguf,
    post_norm_layers,
)
from slmq.models.parts.encoder_head import HeadNames, load_task_head
from slmq.models.parts.values import config_count

if TYPE_CHECKING:
    from slmq.models.parts.gguf import Weights
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording
    from slmq.weights.base import Reader

EMBED = "bert.embeddings.word_embeddings"


@dataclass(frozen=True)
class Config(EncoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    n_types : int
        Texts that one input may have side by side.
    """

    n_types: int

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `encoder_values`."""
        return cls(**encoder_values(config), n_types=config_count(config, "type_vocab_size", 2))


def heads(cfg: Config) -> dict[str, HeadNames]:
    """The heads that the family has, by task."""
    transform = "cls.predictions.transform"
    return {
        "classify": HeadNames("classifier", "bert.pooler.dense", "tanh"),
        "tags": HeadNames("classifier"),
        "fill_mask": HeadNames(
            "cls.predictions.decoder",
            f"{transform}.dense",
            cfg.activation,
            f"{transform}.LayerNorm",
            bias="cls.predictions.bias",
        ),
    }


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses, and those of the head."""
    w = load_embeddings(r, cfg, "bert.embeddings", width=cfg.hidden_size, types=cfg.n_types)
    w.layers = load_post_norm_layers(r, cfg, "bert.encoder.layer", BERT_LAYER)
    w.head = load_task_head(r, cfg, heads(cfg), w.embed, EMBED)
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the hidden states of all tokens."""
    return post_norm_layers(p, embed(p, w, cfg), w.layers, cfg)


GGUF = no_gguf("bert", EMBED)
