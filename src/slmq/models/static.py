"""Static embeddings: "model2vec", a table of vectors of tokens, whose mean is that of a text.

Tulkens and van Dongen, "Model2Vec", 2024. There are no layers; a text takes microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.models.parts.gguf import Weights, no_gguf
from slmq.models.parts.values import config_count

if TYPE_CHECKING:
    from slmq.models.parts.encoder_head import HeadNames
    from slmq.plan.handle import Handle
    from slmq.plan.recorder import Recording
    from slmq.weights.base import Reader

EMBED = "embeddings"
# What model2vec stores beside the table where it has cut the vocabulary.
OTHERS = ("weights", "mapping")
MOST_TOKENS = 1 << 16


@dataclass(frozen=True)
class Config:
    """What config.json says, checked.

    Attributes
    ----------
    vocab_size, hidden_size : int
        Rows and columns of the table.
    max_positions : int
        Most tokens of a text.
    """

    vocab_size: int
    hidden_size: int
    max_positions: int
    task: str | None = None
    n_labels: int = 0
    tied: bool = True
    norm_eps: float = 0.0

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Config:
        """From a config.json of model2vec that is `completed`; raises as `config_count`."""
        longest = min(config_count(config, "seq_length", MOST_TOKENS), MOST_TOKENS)
        return cls(config_count(config, "vocab_size"), config_count(config, "hidden_size"), longest)


def completed(config: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the sizes of the table, which it does not tell."""
    table = tensors.get(EMBED)
    if table is None or len(table.shape) != 2:
        raise CheckpointError(f"expected a table of vectors as the tensor {EMBED!r}")
    rows, columns = table.shape
    return {"vocab_size": rows, "hidden_size": columns, **config}


def heads(_cfg: Config) -> dict[str, HeadNames]:
    """There are none."""
    return {}


def load(r: Reader, cfg: Config) -> Weights:
    """Reads the table.

    Raises
    ------
    UnsupportedModelError
        If tokens have weights, or share rows.
    """
    for name in OTHERS:
        if r.has(name):
            raise UnsupportedModelError(f"a table of vectors with {name!r} is not supported")
    table = r.linear(EMBED, cfg.vocab_size, cfg.hidden_size)
    return Weights(embed=table, types=None, head=None)


def forward(p: Recording, w: Weights, _cfg: Config) -> Handle:
    """Records the model; returns the vectors of all tokens."""
    return p.embed(w.embed)


GGUF = no_gguf("model2vec", EMBED)
