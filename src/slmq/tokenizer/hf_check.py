"""What a ``tokenizer.json`` may hold, checked before the library builds anything of it.

The library believes a file: it makes ten million ids of a post-processor that lists them, and ends
the process at a table that claims more memory than there is, or at a token so long that its tree of
characters cannot be taken down. Everything but the vocabulary is small in real files, so it is read
here first and bounded. The vocabulary, which is nearly all of the file, is not parsed twice: it is
enough to see that nothing else hides in it or behind it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

import numpy as np
from tokenizers import models

from slmq.errors import TokenizerError
from slmq.tokenizer.growth import growth_of_steps, steps_of

__all__ = ["check_added", "check_model", "check_tokenizer_json"]

WHERE = "tokenizer.json"
MAX_PIECE = 8192  # bytes of a token as the file writes it; the longest in use have some 1,000
MAX_TOKEN = 4096  # characters of an added token
MAX_TOKENS = 1 << 18  # added ones; speech models add 65,536
MAX_TOKEN_TEXT = 8 << 20  # characters of all of them
MAX_SECTION = 4 << 20  # characters of any other section
MAX_TEXT = 256  # characters of what a step writes
MAX_WORD = 1000  # of a word that is cut into pieces, which takes its square; usual is 100
MAX_PATTERN = 16 << 10  # of what it looks for
MAX_FRAME = 64  # ids around a text; real files add one or two
MAX_ENTRY = 64 << 10  # characters of an added token's entry
USUAL_ENTRY = 1 << 10  # of most of them
MAX_CONTAINERS = 4 << 20  # lists and objects of a file whose sections are not in the usual order

SPACE = re.compile(r"[ \t\n\r]*")
OPENS = re.compile(r":[ \t\n\r]*[{\[]")
DECODER = json.JSONDecoder()


def check_tokenizer_json(data: bytes, text: str) -> None:
    """Check a file before it is loaded.

    Parameters
    ----------
    data : bytes
        The file.
    text : str
        The same, decoded.

    Raises
    ------
    TokenizerError
        It is no JSON object, or a section holds what only a hostile file does.
    """
    _check_pieces(data)
    for name, value in _sections(text):
        if name == "added_tokens":
            check_added(value, f"{WHERE}: added_tokens")
        elif name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            where = f"{WHERE}: {name}"
            steps = steps_of(value, where)
            _check_texts(value, where)
            if name == "post_processor":
                _check_frame(steps, where)
            elif name != "decoder":
                growth_of_steps(steps, where)


def _check_pieces(data: bytes) -> None:
    """Refuse a string of the vocabulary that is far too long, by the places of the quotes."""
    octets = np.frombuffer(data, np.uint8)
    quotes = octets == ord('"')
    quotes[1:] &= octets[:-1] != ord("\\")
    places = np.flatnonzero(quotes)
    gaps = np.diff(places) if len(places) > 1 else np.zeros(1, np.int64)
    # Only compiled rules and patterns are longer, which are checked as what they are.
    for index in np.flatnonzero(gaps > MAX_PIECE):
        start = int(places[index])
        before = data[max(start - 40, 0) : start]
        if b"precompiled_charsmap" not in before and b'"Regex"' not in before:
            raise TokenizerError(
                f"{WHERE}: {int(gaps[index])} bytes without a quote at {start}, expected tokens, "
                f"and whatever else there is, of at most {MAX_PIECE}"
            )


def _sections(text: str) -> Iterator[tuple[str, Any]]:
    """Name and value of what the file holds, except for its model."""
    seen: set[str] = set()
    try:
        at = _expect(text, 0, "{")
        while text[at : at + 1] != "}":
            at = _expect(text, at, '"')
            name, at = scanstring(text, at)
            at = _expect(text, _space(text, at), ":")
            if name in seen:
                raise TokenizerError(f"{WHERE}: {name!r:.80} occurs twice")
            seen.add(name)
            if name == "model":
                if _is_last(text, at):
                    return
                value, at = _whole(text, at)
            elif name == "added_tokens":
                value, at = _entries(text, at)
                yield name, value
            else:
                value, at = _small(text, at, name)
                yield name, value
            at = _space(text, at)
            if text[at : at + 1] == ",":
                at = _space(text, at + 1)
    except (ValueError, RecursionError) as e:
        raise TokenizerError(f"{WHERE}: no usable JSON: {e!s:.200}") from None


def _space(text: str, at: int) -> int:
    match = SPACE.match(text, at)
    return match.end() if match else at


def _expect(text: str, at: int, sign: str) -> int:
    at = _space(text, at)
    if text[at : at + 1] != sign:
        raise TokenizerError(f"{WHERE}: expected {sign!r} at {at}, got {text[at : at + 1]!r}")
    return _space(text, at + 1) if sign != '"' else at + 1


def _small(text: str, at: int, name: str) -> tuple[Any, int]:
    """A section that is small in every real file: no more of it is parsed."""
    try:
        value, end = DECODER.raw_decode(text[at : at + MAX_SECTION])
    except ValueError:
        if len(text) - at <= MAX_SECTION:
            raise
        raise TokenizerError(
            f"{WHERE}: {name!r:.80}: expected at most {MAX_SECTION} characters"
        ) from None
    return value, at + end


def _entries(text: str, at: int) -> tuple[list[Any], int]:
    """The added tokens, one by one, so that there are never more than the limit."""
    if text[at : at + 1] != "[":
        return _small(text, at, "added_tokens")
    entries: list[Any] = []
    at = _space(text, at + 1)
    while text[at : at + 1] != "]":
        try:
            entry, end = DECODER.raw_decode(text[at : at + USUAL_ENTRY])
        except ValueError:
            entry, end = DECODER.raw_decode(text[at : at + MAX_ENTRY])
        entries.append(entry)
        if len(entries) > MAX_TOKENS:
            raise TokenizerError(f"{WHERE}: expected at most {MAX_TOKENS} added tokens")
        at = _space(text, at + end)
        if text[at : at + 1] == ",":
            at = _space(text, at + 1)
        elif text[at : at + 1] != "]":
            raise TokenizerError(f"{WHERE}: expected ',' at {at}")
    return entries, at + 1


def _is_last(text: str, at: int) -> bool:
    """Whether the model is the last section, as in every file that the library writes.

    In what is left of the file, only ``vocab`` and ``merges`` may be keys of an object or a list:
    any other could be a section. A key that the file spells with escapes is taken for another.
    """
    for match in OPENS.finditer(text, at):
        end = match.start()
        while text[end - 1] in " \t\n\r":
            end -= 1
        # The quote of a key stands behind a letter; one within a token, behind a backslash.
        if text[end - 1] != '"' or not text[end - 2].isalnum():
            continue
        if not text.endswith(('"vocab"', '"merges"'), at, end):
            return False
    return True


def _whole(text: str, at: int) -> tuple[Any, int]:
    """The model of a file with other sections behind it: parsed, to find its end."""
    if text.count("[") + text.count("{") > MAX_CONTAINERS:
        raise TokenizerError(f"{WHERE}: expected the model as the last section")
    value, end = DECODER.raw_decode(text, at)
    return value, end


# What the sections hold -----------------------------------------------------------------------


def check_added(entries: Any, where: str) -> None:
    """Check added tokens: how many there are, and how long they are.

    Parameters
    ----------
    entries : object
        A list of objects with ``content``; others are left to whoever reads them.
    where : str
        Their place, for errors.
    """
    contents = [
        entry["content"]
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and isinstance(entry.get("content"), str)
    ]
    longest = max(map(len, contents), default=0)
    total = sum(map(len, contents))
    for got, most, what in (
        (len(contents), MAX_TOKENS, "tokens"),
        (longest, MAX_TOKEN, "characters of a token"),
        (total, MAX_TOKEN_TEXT, "characters in all"),
    ):
        if got > most:
            raise TokenizerError(f"{where}: expected at most {most} {what}, got {got}")


def check_model(model: models.Model) -> None:
    """Check the settings of a model that every character or word of a text pays for.

    Raises
    ------
    TokenizerError
        One of them is far from what any model has.
    """
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        value = getattr(model, name, None)
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise TokenizerError(
                f"{WHERE}: model.{name}: expected at most {MAX_TEXT} characters, got {len(value)}"
            )
    longest = getattr(model, "max_input_chars_per_word", None)
    if longest is not None and longest > MAX_WORD:
        raise TokenizerError(
            f"{WHERE}: model.max_input_chars_per_word: expected at most {MAX_WORD}, got {longest}"
        )


def _check_texts(value: Any, where: str) -> None:
    """Check every text of a section: what a step looks for, and what it writes."""
    stack: list[tuple[str, Any]] = [("", value)]
    while stack:
        name, item = stack.pop()
        if isinstance(item, dict):
            stack += item.items()
        elif isinstance(item, list):
            stack += ((name, one) for one in item)
        elif isinstance(item, str) and name != "precompiled_charsmap":
            most = MAX_PATTERN if name in ("Regex", "String") else MAX_TEXT
            if len(item) > most:
                raise TokenizerError(
                    f"{where}: {name!r:.80}: expected at most {most} characters, got {len(item)}"
                )


def _check_frame(steps: list[dict[str, Any]], where: str) -> None:
    """Check what is put around a text: a few ids, and the text itself once."""
    total = 0
    for step in steps:
        special = step.get("special_tokens")
        counts = {
            name: len(entry["ids"]) if isinstance(entry.get("ids"), list) else 0
            for name, entry in (special.items() if isinstance(special, dict) else ())
            if isinstance(entry, dict)
        }
        for name in ("single", "pair"):
            pieces = step.get(name)
            pieces = [p for p in pieces if isinstance(p, dict)] if isinstance(pieces, list) else []
            texts = [str(p["Sequence"]) for p in pieces if "Sequence" in p]
            if len(set(texts)) != len(texts):
                raise TokenizerError(f"{where}: {name!r} repeats the text, expected it once")
            total += sum(
                counts.get(str(p["SpecialToken"].get("id")), 0)
                for p in pieces
                if isinstance(p.get("SpecialToken"), dict)
            )
            total += len(pieces)
        total += sum(counts.values())
    if total > MAX_FRAME:
        raise TokenizerError(
            f"{where}: expected at most {MAX_FRAME} ids and parts around a text, got {total}"
        )
