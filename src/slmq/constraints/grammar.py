"""From what people write (a schema, a regular expression, a grammar, a list) to one kind of text.

That text is the grammar of llguidance, which compiles it for a vocabulary. White space in JSON is
that of Python's ``json.dumps``: a model that may write any amount of it may write it for ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from slmq.errors import ConstraintError, printable

__all__ = [
    "Grammar",
    "any_json",
    "choice_grammar",
    "lark_grammar",
    "regex_grammar",
    "schema_grammar",
]

MOST_BYTES = 1 << 20  # of what is written; a larger one takes seconds
MOST_CHOICES = 10_000
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class Grammar:
    """What an answer may be, for any vocabulary.

    Attributes
    ----------
    text : str
        As llguidance reads it.
    about : str
        What it was made of, for errors: "schema", "regex", "grammar" or "choices".
    left_out : tuple of str
        Keywords of a lenient schema that nothing enforces.
    """

    text: str
    about: str
    left_out: tuple[str, ...] = ()


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
        If it is no schema, is too large, or has keywords that cannot be enforced.
    """
    from llguidance import LLMatcher

    text = written(schema)
    options: Any = {**JSON_STYLE, "lenient": lenient}
    return Grammar(LLMatcher.grammar_from_json_schema(text, overrides=options), "schema")


def written(schema: object) -> str:
    """A schema as JSON; raises ConstraintError if it is none, or too large."""
    if not isinstance(schema, (Mapping, bool)):
        raise ConstraintError(f"schema: expected a JSON object, got {type(schema).__name__}")
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConstraintError(f"schema: expected JSON values only; {reason}") from None
    check_length("schema", text)
    return text


def any_json() -> Grammar:
    """Any JSON object."""
    return schema_grammar({"type": "object"})


def regex_grammar(regex: str) -> Grammar:
    """Texts that a regular expression matches as a whole.

    Parameters
    ----------
    regex : str
        In the syntax of Rust's regex crate, without anchors and look-around.
    """
    from llguidance import LLMatcher

    check_length("regex", regex)
    return Grammar(LLMatcher.grammar_from_regex(regex), "regex")


def lark_grammar(grammar: str) -> Grammar:
    """Texts of a context-free grammar, in the syntax of Lark as llguidance extends it.

    Tokens that are no text are written as they are: ``start: /[^<]*/ <|tool_call|> %json {...}``
    lets a model write freely until it calls a tool.
    """
    from llguidance import LLMatcher

    check_length("grammar", grammar)
    return Grammar(LLMatcher.grammar_from_lark(grammar), "grammar")


def choice_grammar(choices: Iterable[str]) -> Grammar:
    """One of these texts."""
    from llguidance import LLMatcher

    found = list(dict.fromkeys(choices))
    if not found or not all(isinstance(choice, str) and choice for choice in found):
        raise ConstraintError(f"choices: expected non-empty strings, got {printable(repr(found))}")
    if len(found) > MOST_CHOICES:
        raise ConstraintError(f"choices: expected at most {MOST_CHOICES}, got {len(found)}")
    text = "start: " + " | ".join(json.dumps(choice) for choice in found)
    check_length("choices", text)
    return Grammar(LLMatcher.grammar_from_lark(text), "choices")


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
        raise ConstraintError(
            f"{about}: expected at most {MOST_BYTES} bytes, got {size}; divide it, or constrain "
            "less"
        )
