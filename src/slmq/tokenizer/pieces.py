"""What a token stands for: its exact bytes, which need not be whole characters.

Three ways of writing bytes as text are in use. Byte-level BPE (GPT-2, Llama 3, Qwen) writes each
byte as one printable character. SentencePiece (Llama 2, Mistral) writes characters as they are, a
space as U+2581, and bytes that have no token of their own as ``<0x0A>``. WordPiece (BERT) writes
words, and ``##`` before a piece that goes on with one.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

__all__ = ["Pieces", "byte_level_bytes", "sentencepiece_bytes", "spelled", "wordpiece_speller"]

SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """The 256 characters of GPT-2: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }


BYTE_OF = _byte_alphabet()


def text_bytes(text: str) -> bytes:
    """UTF-8; the checkpoint reader keeps bytes of a token that are no UTF-8 as lone surrogates."""
    return text.encode("utf-8", "surrogateescape")


def byte_level_bytes(text: str) -> bytes:
    """Return the bytes of a byte-level token, or its UTF-8 if it is not written in the alphabet."""
    try:
        return bytes(map(BYTE_OF.__getitem__, text))
    except KeyError:
        return text_bytes(text)


def sentencepiece_bytes(text: str) -> bytes:
    """Return the bytes of a SentencePiece token: ``<0x0A>`` is one byte, U+2581 is a space."""
    byte = byte_token(text)
    return text_bytes(text.replace(SPACE_MARK, " ")) if byte is None else bytes((byte,))


def wordpiece_speller(prefix: object) -> Callable[[str], bytes]:
    """How a vocabulary of words spells: a space before each that `prefix` does not continue."""
    mark = prefix if isinstance(prefix, str) and prefix else "##"

    def spell(text: str) -> bytes:
        return text_bytes(text.removeprefix(mark) if text.startswith(mark) else f" {text}")

    return spell


def byte_token(text: str) -> int | None:
    """Return the byte of a token like ``<0x0A>``, None for any other token."""
    match = BYTE_TOKEN.fullmatch(text)
    return int(match[1], 16) if match else None


def spelled(text: str | None, spell: Callable[[str], bytes]) -> bytes:
    """Return the bytes of a token as the vocabulary writes it; none where there is no token."""
    return b"" if text is None else spell(text)


@dataclass(frozen=True)
class Pieces:
    """The bytes of every token of a vocabulary, found on first use and kept.

    Parameters
    ----------
    n_vocab : int
        Ids are ``0 ... n_vocab - 1``. Some may have no text: rows that pad the embedding.
    text_of : callable
        Id to the token as the vocabulary writes it, or None.
    spell : callable
        `byte_level_bytes`, `sentencepiece_bytes` or what `wordpiece_speller` makes.
    verbatim : Mapping
        Ids whose text is meant literally (control and user-defined tokens) or who are silent.
    special : Set
        Ids that are no text: ends of turns, roles, padding.
    drops_leading_space : bool
        Whether one space at the start of a text is the tokenizer's own and not part of the text.
    known : Mapping
        Ids whose bytes are given.
    """

    n_vocab: int
    text_of: Callable[[int], str | None]
    spell: Callable[[str], bytes]
    verbatim: Mapping[int, str]
    special: Set[int]
    drops_leading_space: bool = False
    known: Mapping[int, bytes] = field(default_factory=dict)
    _found: dict[int, bytes] = field(default_factory=dict, repr=False)

    def __getitem__(self, token: int) -> bytes:
        """Return the bytes of a token.

        Raises
        ------
        TypeError
            The id is not an integer.
        ValueError
            The id is outside the vocabulary.
        """
        try:
            token = operator.index(token)
        except TypeError:
            raise TypeError(
                f"expected a token id (an integer), got {type(token).__name__} {token!r:.40}"
            ) from None
        piece = self._found.get(token)
        if piece is None:
            piece = self._found[token] = self._find(token)
        return piece

    def _find(self, token: int) -> bytes:
        if not 0 <= token < self.n_vocab:
            raise ValueError(f"expected a token id from 0 to {self.n_vocab - 1}, got {token}")
        if token in self.known:
            return self.known[token]
        if token in self.verbatim:
            return text_bytes(self.verbatim[token])
        return spelled(self.text_of(token), self.spell)
