"""What an encoder's answers are made of."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Filled", "Ranked", "Scored", "Tagged"]


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
