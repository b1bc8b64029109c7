"""ELECTRA: BERT's layers over embeddings of another width.

Clark et al., "ELECTRA", 2020. What tells real tokens from replaced ones is the usual body; the
generator, a smaller one, fills masks.
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
from slmq.models.parts.encoder_head import HeadNames, load_bert
from slmq.models.parts.gguf import no_gguf
from slmq.models.parts.values import config_count

if TYPE_CHECKING:
    from slmq.models.parts.gguf import Weights
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording
    from slmq.weights.base import Reader

EMBED = "electra.embeddings.word_embeddings"


@dataclass(frozen=True)
class Config(EncoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    embedding_size : int
        Columns of the embeddings.
    n_types : int
        Texts that one input may have side by side.
    """

    embedding_size: int
    n_types: int

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `encoder_values`."""
        return cls(
            **encoder_values(config),
            embedding_size=config_count(config, "embedding_size", 128),
            n_types=config_count(config, "type_vocab_size", 2),
        )


def heads(cfg: Config) -> dict[str, HeadNames]:
    """The heads that the family has, by task."""
    predictions = "generator_predictions"
    return {
        "classify": HeadNames("classifier.out_proj", "classifier.dense", "gelu"),
        "tags": HeadNames("classifier"),
        "fill_mask": HeadNames(
            "generator_lm_head",
            f"{predictions}.dense",
            "gelu",
            f"{predictions}.LayerNorm",
            width=cfg.embedding_size,
        ),
    }


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses, and those of the head."""
    w = load_bert(r, cfg, "electra", heads(cfg), width=cfg.embedding_size, types=cfg.n_types)
    w.project = None
    if cfg.embedding_size != cfg.hidden_size:
        name = "electra.embeddings_project"
        w.project = r.linear(
            f"{name}.weight", cfg.hidden_size, cfg.embedding_size, bias=r.bias(f"{name}.bias", True)
        )
    return w


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the hidden states of all tokens."""
    x = embed(p, w, cfg)
    if w.project is not None:
        x = p.linear(x, w.project)
    return post_norm_layers(p, x, w.layers, cfg)


GGUF = no_gguf("electra", EMBED)
