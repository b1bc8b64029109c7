"""gpt-oss: a message of the channel "commentary" that is addressed to a tool."""

from __future__ import annotations

import json
from collections.abc import Sequence

from slmq.tools.channels import CHANNEL, CONSTRAIN, MESSAGE, RECIPIENT
from slmq.tools.dialects.base import Call, Dialect
from slmq.tools.grammar import Grammar, closed
from slmq.tools.spans import LONGEST_HEAD, SPACE, Balanced, Span
from slmq.tools.tool import Tool

__all__ = ["Harmony"]


class _Addressed(Balanced):
    """A head that ends with the marker of a message, and an object."""

    def __init__(self) -> None:
        super().__init__("{", '"')
        self._address = ""

    def _next(self, sign: str) -> bool:
        if self._address.endswith(MESSAGE):
            return super()._next(sign)
        self._address += sign
        return len(self._address) <= LONGEST_HEAD


class Harmony(Dialect):
    """``<|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}``.

    The token that ends such a message, ``<|call|>``, ends the answer.
    """

    name = "harmony"
    openings = (CHANNEL,)
    marks = (CONSTRAIN, MESSAGE)
    several = False

    def span(self, opening: str) -> Span:
        """See `Dialect`."""
        return _Addressed()

    def decode(self, opening: str, body: str) -> list[Call]:
        """See `Dialect`."""
        head, _, arguments = body.partition(MESSAGE)
        _, addressed, name = head.replace(CONSTRAIN, " ").partition(RECIPIENT)
        found = json.loads(arguments.strip(SPACE))
        if not addressed or not isinstance(found, dict):
            raise ValueError("expected a name and an object of arguments")
        return [(name.split()[0] if name.split() else "", found)]

    def body(self, tools: Sequence[Tool], grammar: Grammar, most: int) -> str:
        """See `Dialect`."""
        behind = f'{grammar.mark(CONSTRAIN)} "json" {grammar.mark(MESSAGE)}'
        return grammar.one_of(
            grammar.rule(
                grammar.text(f"commentary {RECIPIENT}{tool.name} ")
                + f" {behind} {grammar.json(closed(tool.parameters))}"
            )
            for tool in tools
        )
