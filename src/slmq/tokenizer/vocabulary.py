"""The vocabulary of a GGUF file: tokens, what kind each is, and which of them text can become."""

from __future__ import annotations

from enum import IntEnum

from slmq.tokenizer.fields import Fields
from slmq.tokenizer.special import END_OF_TURN

__all__ = ["Kind", "Vocabulary"]


MAX_TOKEN = 8192  # characters; the longest in use have some 1,000


class Kind(IntEnum):
    """``tokenizer.ggml.token_type``."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Vocabulary:
    """Tokens and kinds, checked.

    Attributes
    ----------
    tokens : list of str
        By id, as the file writes them; bytes that are no UTF-8 are lone surrogates.
    kinds : list of int
        `Kind` by id.
    ids : dict
        Id by token, of those that text can become: neither empty, nor unused, nor broken UTF-8.
    """

    def __init__(self, fields: Fields) -> None:
        key = "tokenizer.ggml.tokens"
        tokens = fields.array(key, str)
        if not tokens:
            fields.fail(f"{key}: expected the vocabulary, got nothing; the file has no tokenizer")
        if (longest := max(map(len, tokens))) > MAX_TOKEN:
            fields.fail(f"{key}: a token of {longest} characters, expected at most {MAX_TOKEN}")
        kinds = fields.array("tokenizer.ggml.token_type", int, len(tokens))
        self.has_kinds = kinds is not None
        self.tokens = tokens
        self.kinds = [int(Kind.NORMAL)] * len(tokens) if kinds is None else kinds
        known = {int(kind) for kind in Kind}
        if not known.issuperset(self.kinds):
            wrong = next(kind for kind in self.kinds if kind not in known)
            fields.fail(f"tokenizer.ggml.token_type: expected 0 to {max(known)}, got {wrong}")
        if len(set(tokens)) != len(tokens):
            self._refuse_twins(fields)
        self._number()

    def respell(self, tokens: list[str]) -> None:
        """Take other spellings of all tokens, no two alike."""
        self.tokens = tokens
        self._number()

    def _number(self) -> None:
        tokens = self.tokens
        self.ids = dict(zip(tokens, range(len(tokens)), strict=True))
        if Kind.UNUSED in self.kinds or "" in self.ids or not is_unicode("".join(tokens)):
            self.ids = {
                token: i
                for i, (token, kind) in enumerate(zip(tokens, self.kinds, strict=True))
                if token and kind != Kind.UNUSED and is_unicode(token)
            }

    def __len__(self) -> int:
        return len(self.tokens)

    def of_kind(self, *kinds: Kind) -> list[int]:
        """Return the ids of these kinds that text can become."""
        return [i for i in self.ids.values() if self.kinds[i] in kinds]

    def special(self, named: set[int]) -> set[int]:
        """Return the ids that are no text.

        Parameters
        ----------
        named : set of int
            Ids that the file names as BOS, EOS and the like. They count where the file does not
            tell the kinds of its tokens.
        """
        special = set(self.of_kind(Kind.CONTROL, Kind.UNKNOWN))
        marked = (Kind.CONTROL, Kind.USER_DEFINED)
        for token in END_OF_TURN & self.ids.keys():
            if not self.has_kinds or self.kinds[self.ids[token]] in marked:
                special.add(self.ids[token])
        return special if self.has_kinds else special | named

    def _refuse_twins(self, fields: Fields) -> None:
        first: dict[str, int] = {}
        for i, token in enumerate(self.tokens):
            if first.setdefault(token, i) != i and token:
                fields.fail(
                    f"tokens {first[token]} and {i} are both {token!r:.80}, expected no two alike"
                )


def is_unicode(text: str) -> bool:
    """Whether a string has no lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
