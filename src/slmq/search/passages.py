"""Texts cut into passages that an encoder can take: whole sentences under one heading.

A passage ends before a heading, and where the next sentence would not fit. It begins with the last
sentences of the one before it, as far as they are short, so that what belongs together is together
somewhere.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from slmq.tokenizer import Tokenizer

__all__ = ["Passage", "passages_of", "sentences_of"]

BLOCK_CHARACTERS = 1 << 15  # tokenized at once
# Where a sentence ends: a mark and a blank, a mark of languages without blanks, an empty line,
END = re.compile(
    r"[.!?…][\"'”’)\]]*(?=\s)|[。！？．][」』）”’]*|\n[ \t]*\n|\n(?=[ \t]*(?:[-*|>]|\d+\.) )"
)
HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)


@dataclass(frozen=True)
class Passage:
    """A part of a text.

    Attributes
    ----------
    text : str
    line : int
        Of the text, where it begins; 1 is the first.
    heading : str
        The headings above it, outermost first.
    """

    text: str
    line: int
    heading: str

    @property
    def whole(self) -> str:
        """What is embedded: its headings, then itself."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text


def passages_of(
    text: str, tokenizer: Tokenizer, *, most: int, overlap: int, headings: bool
) -> Iterator[Passage]:
    """Cut a text.

    Parameters
    ----------
    text : str
    tokenizer : Tokenizer
        Of the encoder.
    most : int
        Tokens of a passage with its headings.
    overlap : int
        Most tokens that a passage has in common with the one before it.
    headings : bool
        Whether lines that begin with # are headings.
    """
    line, counted = 1, 0
    for heading, begin, end in _sections(text) if headings else [("", 0, len(text))]:
        kept = _tokens(tokenizer, heading) if heading else 0
        shown = heading if kept <= most // 2 else ""
        room = most - (kept if shown else 0)
        for start, stop in _cut(text, begin, end, tokenizer, room, overlap):
            part = text[start:stop]
            at = start + len(part) - len(part.lstrip())
            if part.strip():
                # An overlapping passage begins before the end of the last one.
                line += text.count("\n", counted, at) - text.count("\n", at, counted)
                counted = at
                yield Passage(part.strip(), line, shown)


def sentences_of(text: str) -> list[str]:
    """The sentences of a passage; line breaks in them are blanks."""
    cuts = [0, *(match.end() for match in END.finditer(text)), len(text)]
    parts = (" ".join(text[a:b].split()) for a, b in pairwise(cuts))
    return [part for part in parts if part]


def _sections(text: str) -> Iterator[tuple[str, int, int]]:
    """The headings above each part of a text, and where it stands."""
    above: list[tuple[int, str]] = []
    begin = 0
    fences = [found.start() for found in FENCE.finditer(text)]
    for found in HEADING.finditer(text):
        if bisect_left(fences, found.start()) % 2:
            continue  # a comment in code
        if text[begin : found.start()].strip():
            yield " > ".join(name for _, name in above), begin, found.start()
        level = len(found[1])
        above = [(depth, name) for depth, name in above if depth < level] + [(level, found[2])]
        begin = found.end()
    if text[begin:].strip():
        yield " > ".join(name for _, name in above), begin, len(text)


def _cut(
    text: str, begin: int, end: int, tokenizer: Tokenizer, most: int, overlap: int
) -> Iterator[tuple[int, int]]:
    """Passages of a section: where each begins and ends."""
    held: list[tuple[int, int, int]] = []  # sentences: begin, end, tokens
    total = 0
    fresh = False  # whether one is held that no passage has
    for start, stop, tokens in _sentences(text, begin, end, tokenizer, most):
        if held and total + tokens > most:
            if fresh:
                yield held[0][0], held[-1][1]
            while held and (total > overlap or total + tokens > most):
                total -= held.pop(0)[2]
        held.append((start, stop, tokens))
        total += tokens
        fresh = True
    if fresh:
        yield held[0][0], held[-1][1]


def _sentences(
    text: str, begin: int, end: int, tokenizer: Tokenizer, most: int
) -> Iterator[tuple[int, int, int]]:
    """Sentences of a section with their tokens; one that is too long comes in pieces."""
    for first, last in _blocks(text, begin, end):
        block = text[first:last]
        # Where each token begins, once for the whole block.
        found = tokenizer.encode_parts(block, add_special=False)
        begins = [offset[0] for offset in found.offsets]
        cuts = [match.end() for match in END.finditer(block)] + [len(block)]
        start = 0
        for cut in cuts:
            if cut <= start:
                continue
            lo, hi = bisect_left(begins, start), bisect_left(begins, cut)
            while hi - lo > most:
                middle = begins[lo + most]
                blank = block.rfind(" ", start + 1, middle)
                middle = blank if blank > start + (middle - start) // 2 else middle
                middle = max(middle, start + 1)
                at = bisect_left(begins, middle)
                yield first + start, first + middle, at - lo
                start, lo = middle, at
            yield first + start, first + cut, hi - lo
            start = cut


def _blocks(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Parts of a long section, cut at ends of paragraphs or lines if it has them."""
    while end - begin > BLOCK_CHARACTERS:
        stop = begin + BLOCK_CHARACTERS
        for mark in ("\n\n", "\n", "。", ". ", " "):
            found = text.rfind(mark, begin + BLOCK_CHARACTERS // 2, stop)
            if found > 0:
                stop = found + len(mark)
                break
        yield begin, stop
        begin = stop
    if begin < end:
        yield begin, end


def _tokens(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode_parts(text, add_special=False))
