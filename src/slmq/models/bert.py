"""BERT, and the many models of sentences that are made of it: Hugging Face's model type "bert".

Learned positions, types that tell two texts apart, a norm behind every sum (Devlin et al., 2018).
MiniLM, BGE, E5, GTE, Arctic and the cross-encoders of MS MARCO are BERTs.
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
from slmq.models.parts.encoder_gguf import BERT_EMBEDDINGS, encoder_from_gguf
from slmq.models.parts.encoder_head import HeadNames, load_bert
from slmq.models.parts.gguf import GgufMap
from slmq.models.parts.values import config_count

if TYPE_CHECKING:
    from slmq.models.parts.gguf import Weights
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording
    from slmq.weights.base import Reader


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
        return cls(
            **encoder_values(config), n_types=config_count(config, "type_vocab_size", 2, low=0)
        )


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
    return load_bert(r, cfg, "bert", heads(cfg), types=cfg.n_types)


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the hidden states of all tokens."""
    return post_norm_layers(p, embed(p, w, cfg), w.layers, cfg)


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF metadata of architecture "bert", which RoBERTa and its kin have too."""
    return encoder_from_gguf(metadata, tensors, "bert")


GGUF = GgufMap(
    architecture="bert",
    config=config_from_gguf,
    names={
        **{f"bert.embeddings.{name}": gguf for name, gguf in BERT_EMBEDDINGS.items()},
        "bert.pooler.dense": "cls",
        "classifier": "cls.output",
    },
    layer_names={
        "attention.self.query": "attn_q",
        "attention.self.key": "attn_k",
        "attention.self.value": "attn_v",
        "attention.output.dense": "attn_output",
        "attention.output.LayerNorm": "attn_output_norm",
        "intermediate.dense": "ffn_up",
        "output.dense": "ffn_down",
        "output.LayerNorm": "layer_output_norm",
    },
    layers="bert.encoder.layer",
)
