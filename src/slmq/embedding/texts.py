"""From texts to what runs: prompts, pairs, and what happens to texts that are too long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from slmq.embedding.runner import EncodedText
from slmq.errors import ContextOverflowError
from slmq.tokenizer import Tokenizer
from slmq.tokenizer.encoding import Encoding

__all__ = ["Piece", "TextEncoder", "several"]

# A text of more characters for each token that fits is looked at in part: the beginning says
# whether it is too long, and what is cut off is never tokenized.
CHARACTERS = 32
F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Piece = tuple[EncodedText, int]  # and how many tokens of the text itself it has


T = TypeVar("T")


def several(texts: Iterable[T], name: str) -> Iterable[T]:
    """What can be iterated, of the argument of this name; raises TypeError for anything else."""
    if not isinstance(texts, Iterable) or isinstance(texts, bytes):
        raise TypeError(f"{name}: expected texts, got {type(texts).__name__} {texts!r:.40}")
    return texts


class TextEncoder:
    """Makes inputs of texts.

    Parameters
    ----------
    tokenizer : Tokenizer
    max_length : int
        Most tokens of an input, those around the text included.
    lower_case : bool
        Whether texts are written in small letters first.
    bare : bool
        Whether nothing stands around a text.
    known : bool
        Whether unknown tokens are left out.
    token_rows : int32[tokens], optional
        The rows of tokens in the embedding, where they are not the tokens' own numbers.
    token_weights : float32[tokens], optional
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_length: int,
        *,
        lower_case: bool = False,
        bare: bool = False,
        known: bool = False,
        token_rows: I32 | None = None,
        token_weights: F32 | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._lower_case = lower_case
        self._bare = bare
        self._rows, self._weights = token_rows, token_weights
        self._unknown = tokenizer.unknown_id if known else None
        frame = tokenizer.encode_parts("a", add_special=not bare)
        inside = [i for i, source in enumerate(frame.sources) if source is not None]
        first, behind = (inside[0], inside[-1] + 1) if inside else (len(frame), len(frame))
        self._before, self._behind = frame.ids[:first], frame.ids[behind:]

    @property
    def frame(self) -> int:
        """Tokens that stand around every text."""
        return len(self._before) + len(self._behind)

    def encoding(
        self,
        number: int,
        text: str,
        pair: str | None,
        *,
        truncate: bool,
        marked: bool = False,
        whole_pair: bool = False,
    ) -> Encoding:
        """The tokens of one text or pair, cut off if that is allowed.

        With `marked`, control tokens that are written out in a text are those tokens. With
        `whole_pair` only the first text is cut.

        Raises
        ------
        TypeError
            If it is no text; `number` says which one.
        ValueError
            If nothing is left of it to compute.
        ContextOverflowError
            If it is too long.
        """
        one, other = self.checked(number, text), pair
        if other is not None:
            other = self.checked(number, other)
        most = self.max_length
        parts = [self.beginning(part) for part in (one, other) if part is not None]
        found = self.tokenizer.encode_parts(
            *parts,
            most=most if truncate else None,
            add_special=not self._bare,
            parse_special=marked,
            whole_pair=whole_pair,
        )
        if len(found) == 0:
            raise ValueError(f"text {number}: expected at least one token, got {one!r:.40}")
        if len(found) > most:
            whole = parts == [part for part in (one, other) if part is not None]
            raise ContextOverflowError(
                f"text {number} has {'' if whole else 'at least '}{len(found)} tokens with those "
                f"around it, the model takes {most}; truncate=True leaves out the rest"
                + ("" if pair is not None else ", chunk=True takes the mean of its parts")
            )
        return found

    def encoded(
        self,
        number: int,
        text: str,
        pair: str | None = None,
        *,
        truncate: bool = False,
        marked: bool = False,
        whole_pair: bool = False,
    ) -> EncodedText:
        """What runs for one text or pair; errors as `encoding`."""
        found = self.encoding(
            number, text, pair, truncate=truncate, marked=marked, whole_pair=whole_pair
        )
        ids, types = np.array(found.ids, np.int32), np.array(found.types, np.int32)
        if self._unknown is not None:
            known = ids != self._unknown
            if not known.any():
                raise ValueError(f"text {number}: expected a token that is known, got {text!r:.40}")
            ids, types = ids[known], types[known]
        return self._made(ids, types)

    def pieces(self, number: int, text: str, prompt: str) -> Iterator[Piece]:
        """Consecutive parts of a text that fit, each behind the prompt; errors as `encoding`."""
        whole = self.checked(number, text)
        inside = self.tokenizer.encode_parts(self.checked(number, prompt), add_special=False)
        before, some = self._known(inside.ids), False
        room = self.max_length - self.frame - len(before)
        if room < 1:
            raise ContextOverflowError(
                f"text {number}: the prompt leaves no room for a text in {self.max_length} tokens"
            )
        start = 0
        while True:
            part = self.beginning(whole[start:])
            found = self.tokenizer.encode_parts(part, add_special=False)
            ids = self._known(found.ids[:room])
            last = len(found.ids) <= room and start + len(part) >= len(whole)
            tokens = np.array([*self._before, *before, *ids, *self._behind], np.int32)
            # The frame and the prompt alone are a part where there is no other.
            if ids or (last and not some and len(tokens)):
                some = True
                yield self._made(tokens, np.zeros(len(tokens), np.int32)), len(ids)
            if last and not some:
                raise ValueError(f"text {number}: expected a token that is known, got {text!r:.40}")
            if last:
                return
            # Where the next token begins; a part without tokens is passed over.
            begins = found.offsets[room][0] if len(found.ids) > room else len(part)
            start += max(1, begins)

    def _known(self, ids: list[int]) -> list[int]:
        """Tokens that have a vector."""
        if self._unknown is None:
            return ids
        return [token for token in ids if token != self._unknown]

    def prompt_tokens(self, prompt: str) -> int:
        """Tokens that a prompt takes at the beginning of an input, with those before it."""
        if not prompt:
            return 0
        inside = self.tokenizer.encode_parts(prompt, add_special=False)
        return len(self._before) + len(inside)

    def _made(self, ids: I32, types: I32) -> EncodedText:
        weights = None if self._weights is None else self._weights[ids]
        return EncodedText(ids if self._rows is None else self._rows[ids], types, weights=weights)

    def checked(self, number: int, text: object) -> str:
        """A text, in small letters if the model wants them; raises TypeError for what is none."""
        if not isinstance(text, str):
            raise TypeError(
                f"text {number}: expected a str, got {type(text).__name__} {text!r:.40}"
            )
        return text.lower() if self._lower_case else text

    def beginning(self, text: str) -> str:
        """As much of a text as can matter, ended by a blank if it has one there."""
        most = CHARACTERS * (self.max_length + 1)
        if len(text) <= most:
            return text
        while most < len(text):
            blank = text.rfind(" ", most // 2, most)
            part = text[: blank if blank > 0 else most]
            if len(self.tokenizer.encode_parts(part, add_special=False)) > self.max_length:
                return part
            most *= 4
        return text
