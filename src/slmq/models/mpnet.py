"""MPNet: BERT's layers with what the distance of two tokens adds to their score.

Song et al., "MPNet", 2020. One table serves all layers; distances share its rows as in T5 (Raffel
et al., 2020). all-mpnet-base-v2 is one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slmq.models.parts.encoder import (
    EncoderConfig,
    LayerNames,
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

EMBED = "mpnet.embeddings.word_embeddings"
LAYER = LayerNames(
    q="attention.attn.q",
    k="attention.attn.k",
    v="attention.attn.v",
    o="attention.attn.o",
    attn_norm="attention.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    mlp_norm="output.LayerNorm",
)
FIRST_POSITION = 2  # behind that of the padding, whose number is no matter of configuration
# Fixed by the code of transformers, whatever else a configuration says: rows of the table, and how
# many on each side are for one distance alone.
BUCKETS, NEAR = 32, 8


@dataclass(frozen=True)
class Config(EncoderConfig):
    """What config.json says, checked.

    Attributes
    ----------
    n_buckets : int
        Rows of the table of distances.
    """

    n_buckets: int

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a Hugging Face config.json; raises as `encoder_values`."""
        buckets = config_count(config, "relative_attention_num_buckets", BUCKETS, low=BUCKETS)
        return cls(**encoder_values(config, FIRST_POSITION), n_buckets=buckets)


def heads(_cfg: Config) -> dict[str, HeadNames]:
    """The heads that the family has, by task."""
    return ROBERTA_HEADS


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the tensors that `forward` uses, and those of the head."""
    w = load_bert(r, cfg, "mpnet", ROBERTA_HEADS, first_position=FIRST_POSITION, names=LAYER)
    table = "mpnet.encoder.relative_attention_bias.weight"
    w.distances = r.linear(table, cfg.n_buckets, cfg.n_heads, floats=True)
    return w


def buckets_of(distances: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The row of every distance (key minus query): near ones have their own, far ones share."""
    away = np.abs(distances)
    # From NEAR on a row reaches to the root of two of where it begins, squared to stay in integers.
    begins = NEAR**2 << np.arange(1, BUCKETS // 2 - NEAR)
    far = NEAR + (away[:, None] ** 2 >= begins).sum(axis=1)
    return np.asarray(np.where(away < NEAR, away, far) + BUCKETS // 2 * (distances > 0))


def forward(p: Recording, w: Weights, cfg: Config) -> Handle:
    """Records the model; returns the hidden states of all tokens."""
    table = w.distances.matrix.dequantize(0, BUCKETS)  # [buckets, heads]
    most = cfg.max_positions - 1
    bias = np.ascontiguousarray(table[buckets_of(np.arange(-most, most + 1))].T)
    return post_norm_layers(p, embed(p, w, cfg), w.layers, cfg, bias)


GGUF = no_gguf("mpnet", EMBED)
