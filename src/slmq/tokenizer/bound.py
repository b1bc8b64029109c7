"""The fewest tokens that a text can have, without tokenizing it.

No token stands for more bytes than the longest one of the vocabulary. That bounds a text from below
where nothing of it can vanish: blanks, which some steps strip, are not counted, nor are bytes that
have no token; and where a normalizer or a model is of a kind that may shorten text, there is no
bound at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import tokenizers

from slmq.tokenizer.pieces import BYTE_OF, Pieces, byte_level_bytes

__all__ = ["TokenBound"]

# Composing: three bytes become one at most, as those of three parts of a Hangul syllable.
COMPOSING = {"NFC": 3}
# What these leave out is blank.
KEEPING = {"Prepend", "Strip", "ByteLevel", "Metaspace", "Digits", "Split", "Punctuation"}


class TokenBound:
    """Bounds for texts of one tokenizer.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
    pieces : Pieces
        The bytes of every token.
    """

    def __init__(self, backend: tokenizers.Tokenizer, pieces: Pieces) -> None:
        silent, shrinking = _silent_bytes(backend, pieces), _shrinking(backend)
        self._silent = silent or b""
        self._longest = 0
        if silent is not None and shrinking is not None:
            longest = max(len(pieces[i]) for i in range(pieces.n_vocab))
            self._longest = max(longest, 1) * shrinking

    def least(self, text: str) -> int:
        """The fewest tokens of `text`; 0 where nothing is known."""
        if not self._longest:
            return 0
        # Blanks of all kinds first: their bytes occur in other characters, too.
        data = "".join(text.split()).encode("utf-8")
        return -(-len(data.translate(None, self._silent)) // self._longest)


def _silent_bytes(backend: tokenizers.Tokenizer, pieces: Pieces) -> bytes | None:
    """Bytes that may have no token; None if whole characters may have none."""
    model = backend.model
    if not isinstance(model, tokenizers.models.BPE):
        return None
    if pieces.spell is byte_level_bytes:
        known = {byte for sign, byte in BYTE_OF.items() if backend.token_to_id(sign) is not None}
        return bytes(sorted(set(range(256)) - known))
    every = all(backend.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
    return b"" if model.byte_fallback and every else None


def _shrinking(backend: tokenizers.Tokenizer) -> int | None:
    """How many bytes of a text may become one before it is divided; None if that is unknown."""
    factor = 1
    for step in (*_steps(backend.normalizer), *_steps(backend.pre_tokenizer)):
        kind = step.get("type")
        if kind in COMPOSING:
            factor *= COMPOSING[kind]
        elif kind == "Replace":
            pattern = step.get("pattern", {}).get("String")
            if not isinstance(pattern, str) or not (pattern == "" or pattern.isspace()):
                return None
        elif kind not in KEEPING or step.get("behavior") == "Removed":
            return None
    return factor


def _steps(stage: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer as its file describes them."""
    if stage is None:
        return
    try:
        state = json.loads(stage.__getstate__())
    except Exception:  # written in Python: ours, which divides text and loses none of it
        return
    parts = state.get("normalizers") or state.get("pretokenizers")
    yield from [state] if parts is None else parts
