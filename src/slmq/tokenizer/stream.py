"""Text from tokens one at a time, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from slmq.tokenizer.pieces import Pieces

__all__ = ["StreamDecoder"]

LONGEST = 4  # bytes of a character


class StreamDecoder:
    """Turns tokens into text as they come; made by `Tokenizer.stream`.

    A token may end inside a character (an emoji is often three tokens). Such bytes wait for the
    tokens that complete them, so everything that `push` returns is whole. All returned parts and
    `flush` joined are exactly `Tokenizer.decode` of all tokens. Each push costs the length of its
    token, not of the text so far.

    Where tokens continue a prompt, what comes is the text of both without that of the prompt: a
    space that begins the first word belongs to it, and a character that the prompt has begun is
    whole.

    Parameters
    ----------
    pieces : Pieces
        The vocabulary.
    skip_special : bool
        Whether control tokens are silent.
    prompt : sequence of int
        Tokens before the first; none where a text begins.
    """

    def __init__(
        self, pieces: Pieces, *, skip_special: bool = True, prompt: Sequence[int] = ()
    ) -> None:
        self._pieces = pieces
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = pieces.drops_leading_space
        end = b""
        for token in reversed(prompt):
            end = self._bytes(token) + end
            if len(end) >= LONGEST:
                break
        if end:
            self._drop_space = False
            self._utf8.decode(end)

    def push(self, token: int) -> str:
        """Take the next token and return the text that it completes, possibly none.

        Raises
        ------
        TypeError
            The id is not an integer.
        ValueError
            The id is outside the vocabulary.
        """
        return self._text(self._utf8.decode(self._bytes(token)))

    def flush(self) -> str:
        """End the text: bytes of an unfinished character become U+FFFD. Pushing may go on."""
        return self._text(self._utf8.decode(b"", final=True))

    def _bytes(self, token: int) -> bytes:
        piece = self._pieces[token]
        return b"" if self._skip_special and token in self._pieces.special else piece

    def _text(self, text: str) -> str:
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text
