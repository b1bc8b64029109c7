"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT without types that matter, and with another head.

Liu et al., "RoBERTa", 2019. Positions begin behind that of the padding, at 2 in every model that is
known. BGE-M3 and the larger multilingual E5 are XLM-RoBERTas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.models.parts.encoder import (
    EncoderConfig,
    embed,
    encoder_values,
    post_norm_layers,
)
from slmq.models.parts.encoder_head import ROBERTA_HEADS, HeadNames, load_bert
from slmq.models.parts.gguf import no_gguf
from slmq.models.parts.values import config_count

if TYPE_CHECKING:
    from slmq.models.parts.gguf import Weights
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording
    from slmq.weights.base import Reader

EMBED = "roberta.embeddings.word_embeddings"


@dataclass(frozen=True)
class Config(EncoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    n_types : int
        Types of tokens, of which all texts have the first.
    first_position : int
        The row of the position table that a text begins with.
    """

    n_types: int
    first_position: int

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `encoder_values`."""
        first = config_count(config, "pad_token_id", 1, low=0) + 1
        return cls(
            **encoder_values(config, first),
            n_types=config_count(config, "type_vocab_size", 2),
            first_position=first,
        )


def heads(_cfg: Config) -> dict[str, HeadNames]:
    """The heads that the family has, by task."""
    return ROBERTA_HEADS


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses, and those of the head."""
    first = cfg.first_position
    return load_bert(r, cfg, "roberta", ROBERTA_HEADS, types=cfg.n_types, first_position=first)


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the hidden states of all tokens."""
    return post_norm_layers(p, embed(p, w, cfg), w.layers, cfg)


GGUF = no_gguf("roberta", EMBED)
