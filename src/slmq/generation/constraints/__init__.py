"""What an answer may be: grammars, compiled for a vocabulary, and where an answer stands in one."""

from __future__ import annotations

from slmq.generation.constraints.grammar import (
    Grammar,
    any_json,
    behind,
    choice_grammar,
    embedded_schema,
    lark_grammar,
    made_grammar,
    regex_grammar,
    schema_grammar,
)
from slmq.generation.constraints.matcher import Constraint, Matcher
from slmq.generation.constraints.vocabulary import Vocabulary

__all__ = [
    "Constraint",
    "Grammar",
    "Matcher",
    "Vocabulary",
    "any_json",
    "behind",
    "choice_grammar",
    "embedded_schema",
    "lark_grammar",
    "made_grammar",
    "regex_grammar",
    "schema_grammar",
]
