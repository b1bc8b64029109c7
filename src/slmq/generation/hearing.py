"""From the tokens of an answer to its text, its reasoning and its calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from slmq.tools.calls import Mark, Said

if TYPE_CHECKING:
    from slmq.tokenizer import Tokenizer
    from slmq.tools.speech import Speech

__all__ = ["Hearing"]


class Hearing:
    """Takes tokens one at a time; says what they add.

    Parameters
    ----------
    tokenizer : Tokenizer
    prompt : sequence of int
    speech : Speech or None
        What a chat has said; without it all is text.
    continues : bool
        Whether the answer goes on with the text of the prompt.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], speech: Speech | None, *, continues: bool
    ) -> None:
        self._decoder = tokenizer.stream(prompt if continues else ())
        self._reader = None if speech is None else speech.reader(prompt)
        self._marks = {} if speech is None or self._reader is None else speech.marks

    def push(self, token: int) -> Said:
        """Take the next token."""
        mark = self._marks.get(token)
        if mark is None:
            return self._read(self._decoder.push(token))
        said = self._read(self._decoder.flush())
        said.add(self._read(Mark(mark)))
        return said

    def flush(self) -> Said:
        """The end: what was held back."""
        said = self._read(self._decoder.flush())
        if self._reader is not None:
            said.add(self._reader.finish())
        return said

    def _read(self, piece: str) -> Said:
        return Said(piece) if self._reader is None else self._reader.push(piece)
