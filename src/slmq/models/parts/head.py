"""The output head: a matrix of its own, or the embedding once more."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from slmq.plan.linear import Linear
    from slmq.weights.base import Reader


class Sizes(Protocol):
    """What a head needs of a configuration."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""

    @property
    def hidden_size(self) -> int:
        """Its columns."""

    @property
    def tied(self) -> bool:
        """Whether the head is said to be the embedding."""


def load_head(
    r: Reader,
    cfg: Sizes,
    embed: Linear,
    *,
    embed_name: str,
    head: str = "lm_head",
    biased: bool = False,
) -> Linear:
    """The head of the module `head`, or `embed`, the weights of the module `embed_name`.

    `biased`: whether a bias belongs to it; one that is stored counts in any case.
    """
    bias = r.bias(f"{head}.bias", biased)
    if r.own_head(f"{head}.weight", f"{embed_name}.weight", cfg.tied):
        return r.linear(f"{head}.weight", cfg.vocab_size, cfg.hidden_size, bias=bias)
    return embed if bias is None else replace(embed, bias=r.vector(bias, cfg.vocab_size))
