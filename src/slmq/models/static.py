"""Static embeddings: "model2vec", a table of vectors of tokens, whose mean is that of a text.

Tulkens and van Dongen, "Model2Vec", 2024. There are no layers; a text takes microseconds. Tokens
may have weights, and share rows of a smaller table. sentence-transformers writes such tables
without a configuration, and takes unknown tokens into the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slmq.errors import CheckpointError
from slmq.models.parts.gguf import Weights, no_gguf
from slmq.models.parts.values import config_count, config_value

if TYPE_CHECKING:
    from slmq.models.parts.encoder_head import HeadNames
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording
    from slmq.weights.base import Reader

EMBED, EMBEDDING = (
    "embeddings",
    "embedding.weight",
)  # that of sentence-transformers
WEIGHTS, MAPPING = "weights", "mapping"  # of tokens, where model2vec has clustered the table
MOST_TOKENS = 1 << 16


@dataclass(frozen=True)
class Config:
    """What config.json says, checked.

    Attributes
    ----------
    vocab_size, hidden_size : int
        Rows and columns of the table.
    tokens : int
        Tokens, if they have weights or share rows.
    max_positions : int
        Most tokens of a text.
    table : str
        The tensor with the vectors.
    keep_unknown : bool
        Whether tokens that the vocabulary lacks count.
    """

    vocab_size: int
    hidden_size: int
    tokens: int
    max_positions: int
    table: str
    keep_unknown: bool
    task: str | None = None
    n_labels: int = 0
    tied: bool = True
    norm_eps: float = 0.0

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a config.json of model2vec that is `completed`; raises as `config_count`."""
        rows = config_count(config, "vocab_size")
        key = "max_length" if config.get("max_length") is not None else "seq_length"
        return cls(
            vocab_size=rows,
            hidden_size=config_count(config, "hidden_size"),
            tokens=config_count(config, "tokens", rows),
            max_positions=min(config_count(config, key, MOST_TOKENS), MOST_TOKENS),
            table=config_value(config, "table", str, EMBED),
            keep_unknown=config_value(config, "keep_unknown", bool, False),
        )


def completed(config: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the sizes of the table, which it does not tell."""
    name = EMBEDDING if EMBEDDING in tensors else EMBED
    table = tensors.get(name)
    if table is None or len(table.shape) != 2:
        raise CheckpointError(f"expected a table of vectors as the tensor {EMBED!r}")
    rows, columns = table.shape
    sizes: dict[str, Any] = {"vocab_size": rows, "hidden_size": columns, "table": name}
    for name in (MAPPING, WEIGHTS):
        if (found := tensors.get(name)) is not None:
            sizes.setdefault("tokens", math.prod(found.shape))
    return {**config, **sizes}


def heads(_cfg: Config) -> dict[str, HeadNames]:
    """There are none."""
    return {}


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the table, and weights and rows of tokens.

    Raises
    ------
    CheckpointError
        If a token has a row that the table lacks.
    """
    w = Weights(types=None, head=None, token_rows=None, token_weights=None)
    w.embed = r.linear(cfg.table, cfg.vocab_size, cfg.hidden_size)
    if r.has(WEIGHTS):
        w.token_weights = r.vector(WEIGHTS, cfg.tokens)
    if r.has(MAPPING):
        w.token_rows = r.vector(MAPPING, cfg.tokens, whole=True).astype(np.int32)
        low, high = int(w.token_rows.min()), int(w.token_rows.max())
        if low < 0 or high >= cfg.vocab_size:
            raise CheckpointError(
                f"tensor {MAPPING!r}: expected rows 0..{cfg.vocab_size - 1}, found {low}..{high}"
            )
    elif cfg.tokens != cfg.vocab_size:
        raise CheckpointError(
            f"expected a row for each of {cfg.tokens} tokens, or a tensor {MAPPING!r}; found "
            f"{cfg.vocab_size} rows"
        )
    return w


def forward(p: Recording, w: Weights, _cfg: Config) -> Handle:
    """Records the model; returns the vectors of all tokens."""
    return p.embed(w.embed)


GGUF = no_gguf("model2vec", EMBED)
