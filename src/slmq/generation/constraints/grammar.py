"""From what people write (a schema, a regular expression, a grammar, a list) to one kind of text.

That text is the grammar of llguidance, which compiles it for a vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from slmq.errors import ConstraintError, printable
from slmq.generation.constraints.faults import library_faults
from slmq.generation.constraints.lark import checked_lark
from slmq.generation.constraints.regexes import check_regex
from slmq.generation.constraints.schema import JSON_STYLE, prepared

__all__ = [
    "Grammar",
    "any_json",
    "behind",
    "choice_grammar",
    "embedded_schema",
    "lark_grammar",
    "made_grammar",
    "regex_grammar",
    "schema_grammar",
]

MOST_BYTES = 1 << 18  # of what is written; a larger one takes seconds
MOST_CHOICES = 10_000


@dataclass(frozen=True)
class Grammar:
    """What an answer may be, for any vocabulary.

    Attributes
    ----------
    text : str
        As llguidance reads it.
    about : str
        What it was made of, for errors: "schema", "regex", "grammar" or "choices".
    schema : dict, optional
        What it was made of, if that is a schema.
    """

    text: str
    about: str
    schema: Mapping[str, Any] | None = field(default=None, compare=False)


def schema_grammar(schema: Mapping[str, Any] | bool, *, lenient: bool = False) -> Grammar:
    """Values that a JSON schema allows, in the order of its properties.

    Parameters
    ----------
    schema : mapping or bool
        A JSON schema, draft 2020-12 or older.
    lenient : bool
        Whether keywords that cannot be enforced are left out instead of refused.

    Raises
    ------
    ConstraintError
        If it is no schema, is too large, or refers to another document; compiling it tells of
        keywords that cannot be enforced.
    """
    ready = prepared(schema)
    if lenient:
        ready["x-guidance"] = {**JSON_STYLE, "lenient": True, "coerce_one_of": True}
    return Grammar(_library(grammar_from_json_schema=json.dumps(ready)), "schema", ready)


def embedded_schema(schema: Mapping[str, Any] | bool) -> str:
    """A schema to be written behind ``%json`` in a grammar; errors as in `schema_grammar`."""
    return json.dumps(prepared(schema))


def any_json() -> Grammar:
    """Any JSON object."""
    return schema_grammar({"type": "object"})


def _library(**made: str) -> str:
    """A text in one of the library's notations, as it reads all of them."""
    from llguidance import LLMatcher

    ((maker, text),) = made.items()
    with library_faults(maker.rpartition("_")[2]):
        return str(getattr(LLMatcher, maker)(text))


def regex_grammar(regex: str) -> Grammar:
    """Texts that a regular expression matches as a whole.

    Parameters
    ----------
    regex : str
        In the syntax of Rust's regex crate, without anchors and look-around.
    """
    check_length("regex", regex)
    check_regex("regex", regex)
    return Grammar(_library(grammar_from_regex=regex), "regex")


def lark_grammar(grammar: str) -> Grammar:
    """Texts of a context-free grammar, in the syntax of Lark as llguidance extends it, or in GBNF.

    Tokens that are no text are written as they are: ``start: /[^<]*/ <|tool_call|> %json {...}``
    lets a model write freely until it calls a tool; what follows ``%json`` is a schema as
    `schema_grammar` takes it.
    """
    from llguidance.gbnf_to_lark import any_to_lark

    check_length("grammar", grammar)
    try:
        lark = any_to_lark(grammar)
    except Exception as error:
        raise ConstraintError(f"grammar: expected Lark or GBNF: {printable(str(error))}") from None
    return Grammar(_library(grammar_from_lark=checked_lark(lark)), "grammar")


def made_grammar(lark: str, about: str) -> Grammar:
    """A grammar that slmq has made itself, in Lark; `about` names what it was made of."""
    check_length(about, lark)
    return Grammar(_library(grammar_from_lark=lark), about)


def behind(lead: str, grammar: Grammar) -> Grammar:
    """A grammar behind something else: an expression of Lark, in which TEXT is any text."""
    text = grammar.text.strip()
    parts = json.loads(text)["grammars"] if text.startswith("{") else [{"lark_grammar": text}]
    first = {"lark_grammar": f"start: {lead} @value\nTEXT: /(.|\\n)*/\n"}
    whole = [first, {**parts[0], "name": "value"}, *parts[1:]]
    return replace(grammar, text=json.dumps({"grammars": whole}))


def choice_grammar(choices: Iterable[str]) -> Grammar:
    """One of these texts."""
    found = list(dict.fromkeys(choices))
    if not found or not all(isinstance(choice, str) and choice for choice in found):
        raise ConstraintError(f"choices: expected non-empty strings, got {printable(repr(found))}")
    if len(found) > MOST_CHOICES:
        raise ConstraintError(f"choices: expected at most {MOST_CHOICES}, got {len(found)}")
    text = "start: " + " | ".join(json.dumps(choice) for choice in found)
    check_length("choices", text)
    return Grammar(_library(grammar_from_lark=text), "choices")


def check_length(about: str, text: object) -> None:
    """Raise unless it is a string of a size that compiles in a moment."""
    if not isinstance(text, str):
        raise ConstraintError(f"{about}: expected a str, got {type(text).__name__}")
    if not text:
        raise ConstraintError(f"{about}: expected a text, got ''")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise ConstraintError(f"{about}: expected Unicode text, got a lone surrogate") from None
    if size > MOST_BYTES:
        raise ConstraintError(f"{about}: expected at most {MOST_BYTES} bytes, got {size}")
