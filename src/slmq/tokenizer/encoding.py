"""A text, or two side by side, as the tokens of an encoder, with where each stands in the text."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Encoding"]


@dataclass(frozen=True)
class Encoding:
    """Tokens with what an encoder asks of them.

    Attributes
    ----------
    ids, types : list of int
        Tokens, and which of two texts each belongs to, as the model's own frame says.
    offsets : list of (int, int)
        The characters of its text that each token stands for; (0, 0) where it stands for none.
    words : list of int or None
        The word of its text that each token belongs to; None for those of the frame.
    sources : list of int or None
        0 for tokens of the first text, 1 for those of the second, None for those of the frame.
    """

    ids: list[int]
    types: list[int]
    offsets: list[tuple[int, int]]
    words: list[int | None]
    sources: list[int | None]

    def __len__(self) -> int:
        return len(self.ids)
