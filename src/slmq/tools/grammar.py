"""A grammar of an answer, put together from the parts that a dialect is written of.

The text is Lark as llguidance takes it. A marker that is one token of the vocabulary stands there
as that token, so that the same characters as ordinary text are no marker.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["ANY", "COMMA", "EMPTY", "NEW_LINE", "Grammar", "any_text", "closed"]

NEW_LINE = '"\\n"'
COMMA = '", "'
ANY = r"(.|\n)"
WORDS = ("description", "title", "default", "examples")  # for people and models, not for masks
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as Python's json.dumps writes it, and templates with it: what models were trained on."""


class Grammar:
    """Rules under construction.

    Parameters
    ----------
    tokens : mapping of str to int
        Markers that are one token of the vocabulary.
    """

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self._tokens = tokens
        self._rules: list[str] = []

    def mark(self, text: str) -> str:
        """A marker: its token, or its text where it has none."""
        token = self._tokens.get(text)
        return self.text(text) if token is None else f"<[{token}]>"

    @staticmethod
    def text(text: str) -> str:
        """Fixed text; nothing for the empty one."""
        return json.dumps(text, ensure_ascii=False) if text else ""

    def rule(self, body: str) -> str:
        """Name a rule."""
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def until(self, mark: str, least: int = 0, most: int | None = None) -> str:
        """Any text up to the first marker, which is taken too; `least` to `most` characters."""
        text = f"/{any_text(least, most)}/"
        if mark in self._tokens:
            return f"{text} {self.mark(mark)}"
        return self.lazy(f"{text} {self.text(mark)}")

    def lazy(self, body: str) -> str:
        """A terminal that ends as soon as it can."""
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}[lazy]: {body}")
        return name

    @staticmethod
    def json(schema: Mapping[str, Any]) -> str:
        """A JSON value of a schema, with the white space of `STYLE`."""
        silent = {key: value for key, value in schema.items() if key not in WORDS}
        return f"%json {json.dumps({**silent, 'x-guidance': STYLE}, ensure_ascii=False)}"

    @staticmethod
    def one_of(bodies: Iterable[str]) -> str:
        """Alternatives."""
        return "( " + " | ".join(bodies) + " )"

    def repeated(self, item: str, between: str, most: int) -> str:
        """One to `most` of the same, with an expression between two."""
        return item if most == 1 else f"{item} ( {between} {item} ){{0,{most - 1}}}"

    def listed(self, items: list[tuple[str, bool]], between: str) -> str:
        """Items in this order, with a text between two; those that are not required may be absent.

        Parameters
        ----------
        items : list of (str, bool)
            Expression, and whether it has to be there.
        between : str
        """
        follows = ""  # what may come when something stands before
        begins = ""  # what may come when nothing does
        for body, required in reversed(items):
            later = self.rule(f"{self.text(between)} {body} {follows}")
            first = f"{body} {follows}"
            if not required:
                later = self.rule(f"{later} | {follows or EMPTY}")
                first = f"{first} | {begins or EMPTY}"
            follows, begins = later, self.rule(first)
        return begins

    def source(self, start: str) -> str:
        """The whole text."""
        lines = [f"start: {start}", *self._rules, f"TEXT: /{ANY}*/"]
        return "\n".join(lines) + "\n"


EMPTY = '""'


def any_text(least: int = 0, most: int | None = None) -> str:
    """The regular expression of any text of `least` to `most` characters."""
    if (least, most) == (0, None):
        return f"{ANY}*"
    return f"{ANY}{{{least},{'' if most is None else most}}}"


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of arguments without those that it does not name, unless it says otherwise."""
    return {"additionalProperties": False, **schema}
