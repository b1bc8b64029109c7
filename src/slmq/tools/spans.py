"""Where the body of a call ends, found while it comes in pieces of any size."""

from __future__ import annotations

import re
from typing import Protocol

__all__ = ["Balanced", "MalformedError", "Span", "Tagged"]

SPACE = " \t\r\n"
PAIRS = {"{": "}", "[": "]", "(": ")"}
LONGEST_HEAD = 160  # characters before the first bracket: a name, and what stands around it


class MalformedError(Exception):
    """This is no body of a call.

    Parameters
    ----------
    at : int
        Which character of the text that was pushed cannot belong to one; all before it could.
    """

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


class Span(Protocol):
    """Reads the body of one call, its closing marker included."""

    def push(self, text: str) -> int | None:
        """Take text; return how much of it belongs to the body, or None if all does so far.

        Raises MalformedError at the first character that cannot belong to one.
        """


class Balanced:
    """Up to the bracket that closes the first one, and the closing marker behind it.

    Parameters
    ----------
    first : str
        Brackets with which the body may begin, after white space.
    quotes : str
        What begins and ends a string, in which brackets do not count.
    closing : str
        What follows the last bracket, white space between; may be empty.
    later : str
        Brackets that may come after a head of names, dots and square brackets; without them there
        is no head.
    """

    def __init__(self, first: str, quotes: str, closing: str = "", later: str = "") -> None:
        self._first = first
        self._later = later
        self._quotes = quotes
        self._closing = closing
        self._stack: list[str] = []
        self._quote = ""
        self._escaped = False
        self._head = ""
        self._tail = ""
        self._whole = False

    def push(self, text: str) -> int | None:
        """See `Span`."""
        for i, sign in enumerate(text):
            if self._quote:
                self._within_quotes(sign)
            elif not (self._after(sign) if self._whole else self._next(sign)):
                raise MalformedError(i)
            elif self._whole and self._tail == self._closing:
                return i + 1
        return None

    def _next(self, sign: str) -> bool:
        """Take a character of the head or of what brackets hold; whether it may stand there."""
        if not self._stack:
            return self._open(sign)
        if sign in self._quotes:
            self._quote = sign
        elif sign in PAIRS:
            self._stack.append(PAIRS[sign])
        elif sign in "}])":
            if sign != self._stack.pop():
                return False
            self._whole = not self._stack
        return True

    def _open(self, sign: str) -> bool:
        if sign in (self._later if self._head else self._first):
            self._stack.append(PAIRS[sign])
        elif sign in SPACE and not self._head:
            pass
        elif self._later and (sign.isalnum() or sign in "_-.[]" + SPACE):
            self._head += sign
            return len(self._head) <= LONGEST_HEAD
        else:
            return False
        return True

    def _within_quotes(self, sign: str) -> None:
        if self._escaped:
            self._escaped = False
        elif sign == "\\":
            self._escaped = True
        elif sign == self._quote:
            self._quote = ""

    def _after(self, sign: str) -> bool:
        """Take a character behind the last bracket; whether the closing marker may go on so."""
        if not self._tail and sign in SPACE:
            return True
        self._tail += sign
        return self._closing.startswith(self._tail)


class Tagged:
    """Up to a closing marker, except where one stands between the tags of a value.

    Parameters
    ----------
    closing : str
    values : list of (str, str)
        What begins and what ends a value.
    escapes : bool
        Whether a backslash in a value takes its meaning from the next character.
    """

    def __init__(
        self, closing: str, values: list[tuple[str, str]], *, escapes: bool = False
    ) -> None:
        self._closing = closing
        self._ends = dict(values)
        self._outside = _any_of([closing, *self._ends])
        self._inside = {end: _any_of([end, *(["\\"] * escapes)]) for end in self._ends.values()}
        self._end = ""
        self._text = ""
        self._at = 0

    def push(self, text: str) -> int | None:
        """See `Span`."""
        before = len(self._text)
        self._text += text
        while True:
            pattern = self._inside[self._end] if self._end else self._outside
            found = pattern.search(self._text, self._at)
            if found is None:
                longest = max(len(self._closing), *map(len, self._ends), len(self._end))
                self._at = max(self._at, len(self._text) - longest + 1)
                return None
            if found[0] == "\\":
                if found.end() == len(self._text):
                    self._at = found.start()
                    return None
                self._at = found.end() + 1
                continue
            self._at = found.end()
            if self._end:
                self._end = ""
            elif found[0] == self._closing:
                return self._at - before
            else:
                self._end = self._ends[found[0]]


def _any_of(texts: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))
