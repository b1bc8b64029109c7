"""Grammars in Lark before they are compiled: their patterns, and the schemas within them."""

from __future__ import annotations

import json
import re

from slmq.errors import ConstraintError
from slmq.generation.constraints.regexes import check_regex
from slmq.generation.constraints.schema import prepared

__all__ = ["checked_lark"]

MOST_JOINED = 8  # times &: twelve patterns take a second, and each further one twice as long
PIECE = re.compile(
    r'//[^\n]*|"(?:\\.|[^"\\\n])*"|/(?P<regex>(?:\\.|[^/\\\n])+)/|(?P<json>%json\s*)|(?P<both>&)'
)


def checked_lark(grammar: str) -> str:
    """The grammar, with schemas behind ``%json`` as `schema_grammar` would have them.

    Raises
    ------
    ConstraintError
        If a pattern repeats too often, too many are joined with ``&``, or a schema is wrong.
    """
    written: list[str] = []
    done = at = joined = 0
    while (piece := PIECE.search(grammar, at)) is not None:
        at = piece.end()
        joined += piece["both"] is not None
        if piece["regex"] is not None:
            check_regex("grammar", piece["regex"])
        if piece["json"] is not None:
            try:
                schema, end = json.JSONDecoder().raw_decode(grammar, at)
            except (ValueError, RecursionError):
                got = grammar[at : at + 40]
                raise ConstraintError(
                    f"grammar: expected a JSON schema behind %json, got {got!r}"
                ) from None
            written += [grammar[done:at], json.dumps(prepared(schema))]
            done = at = end
    if joined > MOST_JOINED:
        raise ConstraintError(
            f"grammar: expected at most {MOST_JOINED} times '&' between patterns, got {joined}"
        )
    return "".join(written) + grammar[done:]
