"""What was asked of an answer's form: the constraint that it is made under, and its value."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slmq.errors import ConstraintError
from slmq.generation.constraints import (
    Constraint,
    Grammar,
    Vocabulary,
    any_json,
    behind,
    choice_grammar,
    lark_grammar,
    made_grammar,
    regex_grammar,
    schema_grammar,
)
from slmq.generation.params import SamplingParams
from slmq.tools.annotations import is_type, whole_schema
from slmq.tools.speech import Speech
from slmq.tools.tool import Tool
from slmq.tools.values import reader_of

__all__ = ["Shape", "shape_of"]

Read = Callable[[str], Any]


@dataclass(frozen=True)
class Shape:
    """The form of an answer.

    Attributes
    ----------
    constraint : Constraint
    read : callable or None
        From the text of a complete answer to its value; None if it has none.
    """

    constraint: Constraint
    read: Read | None


def shape_of(
    params: SamplingParams, vocabulary: Vocabulary, speech: Speech | None = None
) -> Shape | None:
    """What the parameters ask for, or the tools of a chat; None if any text will do.

    Raises
    ------
    ConstraintError
        If it is wrong, too complex, or cannot be enforced.
    """
    if speech is not None and speech.grammar is not None:
        for tool in params.wish.callable:
            check_tool(tool)
        return Shape(vocabulary.compile(made_grammar(speech.grammar, "tools")), None)
    wanted = _grammar_of(params)
    if wanted is None:
        return None
    grammar, read = wanted
    if speech is not None and speech.thought:
        grammar = behind(speech.thought, grammar)
    return Shape(vocabulary.compile(grammar), read)


def check_tool(tool: Tool) -> None:
    """Raise ConstraintError if the schema of a tool cannot be enforced."""
    try:
        schema_grammar(tool.parameters)
    except ConstraintError as error:
        raise ConstraintError(f"tool {tool.name!r}: {error}") from None


def _grammar_of(params: SamplingParams) -> tuple[Grammar, Read] | None:
    schema: Any = params.schema
    read: Read = json.loads
    if schema is not None and is_type(schema):
        schema, read = _described(schema), reader_of(schema)
    if schema is not None:
        return schema_grammar(schema, lenient=params.lenient), read
    if params.json:
        return any_json(), json.loads
    if params.regex is not None:
        return regex_grammar(params.regex), str
    if params.grammar is not None:
        return lark_grammar(params.grammar), str
    if params.choices is not None:
        return choice_grammar(params.choices), str
    return None


def _described(kind: Any) -> dict[str, Any]:
    try:
        return whole_schema(kind, "schema")
    except TypeError as error:
        raise ConstraintError(f"{error}, or a JSON schema") from None
