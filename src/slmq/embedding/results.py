"""What an encoder's answers are made of."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Filled", "Ranked", "Scored", "Tagged", "check_top_k"]


@dataclass(frozen=True)
class Ranked:
    """A document and how well it fits a query.

    Attributes
    ----------
    index : int
        Its place among the documents that were given.
    score : float
    text : str
    """

    index: int
    score: float
    text: str


@dataclass(frozen=True)
class Scored:
    """A label of a text and how likely it is."""

    label: str
    score: float


@dataclass(frozen=True)
class Tagged:
    """A part of a text with its label.

    Attributes
    ----------
    label : str
        Without B- and I- where parts were put together.
    score : float
    text : str
        As it stands in the text.
    start, end : int
        Characters of the text.
    """

    label: str
    score: float
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Filled:
    """A token that may stand for a mask.

    Attributes
    ----------
    text : str
        The token's.
    score : float
        Its probability.
    token : int
        Its id.
    """

    text: str
    score: float
    token: int


def check_top_k(top_k: object) -> None:
    """Raise ValueError unless it is None or a positive number of results."""
    if top_k is None or (isinstance(top_k, int) and not isinstance(top_k, bool) and top_k > 0):
        return
    raise ValueError(f"top_k: expected at least 1, got {top_k!r:.40}")
