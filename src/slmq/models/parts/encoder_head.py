"""What stands on an encoder: a head that classifies texts or tokens, or fills masks.

All of them are a matrix, behind another one with an activation and sometimes a norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from slmq.errors import CheckpointError
from slmq.models.parts.encoder import (
    BERT_LAYER,
    EncoderConfig,
    LayerNames,
    load_embeddings,
    load_encoder_norm,
    load_post_norm_layers,
)
from slmq.models.parts.gguf import Weights

if TYPE_CHECKING:
    from slmq.plan.handle import Handle
    from slmq.plan.linear import Linear
    from slmq.plan.recorder import Recording
    from slmq.weights.base import Reader

__all__ = ["ROBERTA_HEADS", "HeadNames", "load_bert", "load_task_head", "task_head"]


@dataclass(frozen=True)
class HeadNames:
    """Names of a head's modules.

    Attributes
    ----------
    out : str
        The last matrix.
    dense, activation : str
        The matrix before it and what follows that; empty: there is none.
    norm : str
        The LayerNorm behind the activation; empty: there is none.
    bias : str
        The bias of `out` where it is stored under another name.
    pool : {"row", "last", "mean", "late"}
        What a text's label is made of: its first token, its last, the mean of all, or the mean of
        what the head makes of each.
    width : int
        Outputs of `dense`, if they are not as many as its inputs.
    """

    out: str
    dense: str = ""
    activation: str = ""
    norm: str = ""
    bias: str = ""
    pool: str = "row"
    width: int = 0


class HeadSizes(Protocol):
    """What a head needs of a configuration."""

    @property
    def task(self) -> str | None:
        """What it is for."""

    @property
    def n_labels(self) -> int:
        """Its outputs, if it classifies."""

    @property
    def hidden_size(self) -> int:
        """Its inputs."""

    @property
    def vocab_size(self) -> int:
        """Its outputs, if it fills masks."""

    @property
    def tied(self) -> bool:
        """Whether it is said to be the embedding, if it fills masks."""


# RoBERTa's, and those of models that took them over.
ROBERTA_HEADS = {
    "classify": HeadNames("classifier.out_proj", "classifier.dense", "tanh"),
    "tags": HeadNames("classifier"),
    "fill_mask": HeadNames(
        "lm_head.decoder", "lm_head.dense", "gelu", "lm_head.layer_norm", bias="lm_head.bias"
    ),
}


def load_bert(
    r: Reader,
    cfg: EncoderConfig,
    root: str,
    heads: Mapping[str, HeadNames],
    *,
    width: int | None = None,
    types: int = 0,
    first_position: int = 0,
    layers: str = "encoder.layer",
    names: LayerNames = BERT_LAYER,
) -> Weights:
    """A whole model of BERT's kind, whose names begin with `root`.

    `width` is that of the embeddings, if it is not that of the layers.
    """
    w = load_embeddings(
        r,
        cfg,
        f"{root}.embeddings",
        width=width or cfg.hidden_size,
        types=types,
        first_position=first_position,
    )
    w.layers = load_post_norm_layers(r, cfg, f"{root}.{layers}", names)
    w.head = load_task_head(r, cfg, heads, w.embed, f"{root}.embeddings.word_embeddings")
    return w


def load_task_head(
    r: Reader, cfg: HeadSizes, heads: Mapping[str, HeadNames], embed: Linear, embed_name: str
) -> Weights | None:
    """The head that the model was saved with, None if it has none.

    Models of sentences keep the name of the class that they were trained from, which filled masks,
    without its head.

    `embed` is the embedding, stored as `embed_name`, which may serve as the last matrix of a head
    that fills masks. Matrices of heads are small and stay floats.

    Raises
    ------
    CheckpointError
        If there should be one, and its tensors are missing.
    """
    if cfg.task is None:
        return None
    names = heads.get(cfg.task)
    if names is None:
        raise CheckpointError(f"a head for {cfg.task!r} is not known for this architecture")
    needed = names.dense or ("" if cfg.tied else names.out)
    if cfg.task == "fill_mask" and needed and not r.has(f"{needed}.weight"):
        return None
    head = Weights(names=names, dense=None, norm=None)
    width = names.width or cfg.hidden_size
    if names.dense:
        bias = _stored(r, f"{names.dense}.bias")
        dense = f"{names.dense}.weight"
        head.dense = r.linear(dense, width, cfg.hidden_size, bias=bias, floats=True)
    if names.norm:
        head.norm = load_encoder_norm(r, names.norm, width)
    bias = _stored(r, f"{names.out}.bias", names.bias)
    weight = f"{names.out}.weight"
    if cfg.task != "fill_mask":
        head.out = r.linear(weight, cfg.n_labels, width, bias=bias, floats=True)
    elif r.own_head(weight, f"{embed_name}.weight", cfg.tied):
        head.out = r.linear(weight, cfg.vocab_size, width, bias=bias)
    else:
        head.out = embed if bias is None else replace(embed, bias=r.vector(bias, cfg.vocab_size))
    return head


def _stored(r: Reader, *names: str) -> str | None:
    """The first of these tensors that there is."""
    return next((name for name in names if name and r.has(name)), None)


def task_head(p: Recording, x: Handle, head: Weights, eps: float) -> Handle:
    """What the head makes of selected rows: float32[rows, labels or tokens]."""
    if head.dense is not None:
        x = p.linear(x, head.dense, activation=head.names.activation)
    if head.norm is not None:
        x = p.layernorm(x, head.norm, eps)
    return p.linear(x, head.out)
