"""How much longer a text becomes before it is cut into tokens, at most.

A normalizer that writes ``aa`` for ``a``, forty times over, is a few hundred bytes of a file and a
terabyte of text. The library has no bound; here one is worked out from what the steps are, and a
text that could grow past it is refused before it is handed over.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import tokenizers

from slmq.errors import TokenizerError
from slmq.tokenizer.pieces import SPACE_MARK

__all__ = ["MAX_STEPS", "Growth", "TextLimit", "check_charsmap", "growth_of_steps", "steps_of"]

MAX_STEPS = 64  # real files have up to seven
MAX_FACTOR = 1024  # bytes for one byte of text
MAX_GROWN = 128 << 20
"""Bytes of one text with all that the rules put in; each takes 17 in memory."""
PIECE = 1 << 14  # characters that are tried at a time
MAX_ADDED = 1 << 16  # bytes that come on top, however short the text
MAX_RULE = 1024  # bytes that a compiled rule writes for a character; the longest in use has 33
MIN_CHARSMAP = 8  # bytes: the size of its table, and one entry

# Bytes that Unicode's forms make of one byte: U+FDFA has three, and eleven times as many in NFKC.
FORMS = {
    "NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 3, "StripAccents": 1, "Nmt": 1,
    "Strip": 1, "BertNormalizer": 6,
}  # fmt: skip
KEEPING = {
    "BertPreTokenizer", "CharDelimiterSplit", "Digits", "FixedLength", "Punctuation", "Split",
    "UnicodeScripts", "Whitespace", "WhitespaceSplit",
}  # fmt: skip
LISTS = {"normalizers", "pretokenizers", "processors", "decoders"}


class Growth(NamedTuple):
    """A text of ``n`` bytes becomes at most ``factor * n + added``."""

    factor: Fraction
    added: int

    def of(self, size: int) -> int:
        """Bytes that a text of so many can become."""
        return int(self.factor * size) + self.added


class TextLimit:
    """Refuses texts that a tokenizer's own rules would make too long.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._normalizer = backend.normalizer
        self._normalized = growth_of_steps(_steps_in(backend.normalizer), "tokenizer")
        self._cut = growth_of_steps(_steps_in(backend.pre_tokenizer), "tokenizer")

    def check(self, text: str, size: int) -> None:
        """Raise `TokenizerError` if a text, of `size` bytes, could become too long.

        Where the rules allow that but the text need not do it, it is tried, a piece at a time.
        """
        grown = self._normalized.of(size)
        if self._cut.of(grown) > MAX_GROWN and self._normalizer is not None:
            grown = 0
            for start in range(0, len(text), PIECE):
                piece = self._normalizer.normalize_str(text[start : start + PIECE])
                grown += len(piece.encode("utf-8"))
                if self._cut.of(grown) > MAX_GROWN:
                    break
        if self._cut.of(grown) > MAX_GROWN:
            raise TokenizerError(
                f"a text of {size} bytes, of which this tokenizer's own rules make more than "
                f"{MAX_GROWN}; split the text"
            )


def _steps_in(part: Any) -> list[dict[str, Any]]:
    try:
        state = None if part is None else json.loads(part.__getstate__())
    except Exception:  # of the library: a step in Python, one of ours, cannot be written out
        state = {"type": "Metaspace"}
    return steps_of(state, "tokenizer")


def steps_of(state: Any, where: str) -> list[dict[str, Any]]:
    """The steps of a section, taken out of the sequences that they lie in.

    Raises
    ------
    TokenizerError
        There are too many, or a step is no object.
    """
    steps = list(_steps(state, where))
    if len(steps) > MAX_STEPS:
        raise TokenizerError(f"{where}: expected at most {MAX_STEPS} steps, got {len(steps)}")
    return steps


def _steps(state: Any, where: str) -> Iterator[dict[str, Any]]:
    stack = [] if state is None else [state]
    while stack:
        step = stack.pop()
        if not isinstance(step, dict):
            raise TokenizerError(f"{where}: expected an object, got {type(step).__name__}")
        inner = [step[name] for name in LISTS & step.keys()]
        if inner and step.get("type", "Sequence") == "Sequence":
            for steps in inner:
                stack += reversed(steps if isinstance(steps, list) else [steps])
        else:
            yield step


def growth_of_steps(steps: list[dict[str, Any]], where: str) -> Growth:
    """The growth by these steps, one after the other.

    Raises
    ------
    TokenizerError
        It is beyond what any tokenizer needs, or a compiled rule is corrupt.
    """
    factor, added = Fraction(1), 0
    forms: set[str] = set()  # since a step that may have made other characters
    for step in steps:
        kind = str(step.get("type"))
        by, more = Fraction(1), 0
        if kind in FORMS:
            by = Fraction(1 if kind in forms else FORMS[kind])
            forms.add(kind)
        elif kind not in KEEPING:
            by, more = _rewritten(step, kind, where)
            forms.clear()
        factor *= by
        added = int(added * by) + more
        if factor > MAX_FACTOR or added > MAX_ADDED:
            raise TokenizerError(
                f"{where}: its steps can make {float(factor):.3g} bytes of one and add {added}, "
                f"expected at most {MAX_FACTOR} and {MAX_ADDED}; a file like this only fills memory"
            )
    return Growth(factor, added)


def _rewritten(step: dict[str, Any], kind: str, where: str) -> tuple[Fraction, int]:
    """Factor and addition of a step that writes text of its own."""
    if kind == "Replace":
        pattern = step.get("pattern")
        found = pattern.get("String") if isinstance(pattern, dict) else None
        written = len(str(step.get("content", "")).encode("utf-8", "replace"))
        if isinstance(found, str) and found:
            return max(Fraction(1), Fraction(written, len(found.encode("utf-8", "replace")))), 0
        return Fraction(1 + written), written  # a pattern may match between any two characters
    if kind == "Prepend":
        return Fraction(1), len(str(step.get("prepend", "")).encode("utf-8", "replace"))
    if kind == "Precompiled":
        return Fraction(_longest_rule(step.get("precompiled_charsmap"), where)), 0
    if kind == "ByteLevel":
        return Fraction(2), 2
    if kind == "Metaspace":  # a sign for every space, and one before every part
        sign = len(str(step.get("replacement", SPACE_MARK)).encode("utf-8", "replace"))
        return Fraction(1 + sign), sign
    raise TokenizerError(f"{where}: a step of kind {kind!r:.80} is not supported yet")


def _longest_rule(encoded: Any, where: str) -> int:
    try:
        charsmap = base64.b64decode(encoded or b"", validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise TokenizerError(f"{where}: precompiled_charsmap: expected base64") from None
    if not charsmap:
        return 1
    check_charsmap(charsmap)
    rules = charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0")
    longest = max(map(len, rules))
    if longest > MAX_RULE:
        raise TokenizerError(
            f"{where}: precompiled_charsmap: a rule of {longest} bytes, expected {MAX_RULE}"
        )
    return max(longest, 1)


def check_charsmap(charsmap: bytes) -> None:
    """Raise unless the table of compiled rules lies within what was given.

    The library takes the size that the first four bytes claim, and asks for so much memory.
    """
    table = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < MIN_CHARSMAP or table % 4 or not 4 <= table <= len(charsmap) - 4:
        raise TokenizerError(
            f"precompiled_charsmap: the rules of normalization are corrupt: a table of {table} "
            f"bytes in {len(charsmap)}"
        )
