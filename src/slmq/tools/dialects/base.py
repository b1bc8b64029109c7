"""What a dialect is: how models of a family write calls, and read tools, calls and results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from slmq.tools.grammar import Grammar, closed
from slmq.tools.spans import SPACE, Balanced, Span
from slmq.tools.tool import Tool

__all__ = [
    "MOST_CALLS",
    "Call",
    "Dialect",
    "Message",
    "json_call",
    "json_calls",
    "named_call",
    "with_names",
]

Message = dict[str, Any]
Call = tuple[str, dict[str, Any]]

MOST_CALLS = 16  # in one answer


class Dialect:
    """How the models of a family write calls; a subclass is one family.

    Attributes
    ----------
    name : str
    openings : tuple of str
        Markers that begin a call; the first is the one that grammars use.
    bare : str
        Brackets with which a call may begin an answer without any marker.
    between : str
        What may stand between two such calls, besides white space.
    closing : str
        The marker that ends a call; may be empty.
    separator : str or None
        What a model writes between one call and the opening of the next; None if one opening holds
        all calls, or there is but one.
    marks : tuple of str
        Markers within a call, which may be tokens.
    several : bool
        Whether the family makes more than one call in an answer.
    """

    name: ClassVar[str]
    openings: tuple[str, ...] = ()
    bare: str = ""
    between: str = ""
    closing: str = ""
    separator: str | None = None
    marks: tuple[str, ...] = ()
    several: bool = True

    @property
    def all_marks(self) -> tuple[str, ...]:
        """Every marker of the dialect."""
        closing = (self.closing,) if self.closing else ()
        return (*self.openings, *closing, *self.marks)

    def span(self, opening: str) -> Span:
        """What finds the end of a call that begins with this marker."""
        return Balanced("{", '"', self.closing)

    def decode(self, opening: str, body: str) -> list[Call]:
        """The calls of a body; raises ValueError or SyntaxError if it is none."""
        return json_calls(body.strip(SPACE).removesuffix(self.closing))

    def body(self, tools: Sequence[Tool], grammar: Grammar, most: int) -> str:
        """What may follow the opening: a grammar's expression for at most so many calls."""
        return f"{json_call(tools, grammar)} {grammar.mark(self.closing)}"

    def bare_body(self, tools: Sequence[Tool], grammar: Grammar, most: int) -> str:
        """What an answer may be that is a call from its first character on."""
        return self.body(tools, grammar, most)

    def messages(
        self, messages: Sequence[Message], tools: Sequence[Tool], template: str
    ) -> tuple[list[Message], list[Message] | None]:
        """Messages and declarations as the template of such a model takes them.

        Parameters
        ----------
        messages : sequence of dict
            Checked; calls and results as in OpenAI's API, arguments as objects.
        tools : sequence of Tool
        template : str
            The source of the chat template.
        """
        found = list(messages)
        if "tool_calls" not in template:
            found = [self._with_calls_written(message) for message in messages]
        return found, [tool.declaration for tool in tools] or None

    def written(self, calls: Sequence[Call]) -> str:
        """Calls as such a model writes them, for templates that leave it to the content."""
        said = [{"name": name, "arguments": arguments} for name, arguments in calls]
        return f"{self.openings[0]}{json.dumps(said, ensure_ascii=False)}{self.closing}"

    def _with_calls_written(self, message: Message) -> Message:
        if not message.get("tool_calls"):
            return message
        calls = [call.get("function", call) for call in message["tool_calls"]]
        written = self.written([(call["name"], call["arguments"]) for call in calls])
        kept = {key: value for key, value in message.items() if key != "tool_calls"}
        return {**kept, "content": f"{message.get('content') or ''}{written}"}


def with_names(messages: Sequence[Message]) -> list[Message]:
    """The messages, results with the names of the tools that they come from."""
    names: dict[Any, str] = {}
    found = []
    for message in messages:
        for call in message.get("tool_calls") or ():
            names[call.get("id")] = call.get("function", call)["name"]
        known = names.get(message.get("tool_call_id")) if message["role"] == "tool" else None
        found.append(message if known is None else {"name": known, **message})
    return found


def named_call(value: Any) -> Call:
    """A call from a JSON object with a name and arguments.

    Raises
    ------
    ValueError
        It is no such object.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError("expected an object with a name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # JSON within JSON
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise ValueError("expected an object of arguments")
    return value["name"], arguments


def json_calls(body: str) -> list[Call]:
    """The calls of a JSON object, or of a list of them; errors as `named_call`."""
    value = json.loads(body)
    return [named_call(item) for item in (value if isinstance(value, list) else [value])]


def json_call(tools: Sequence[Tool], grammar: Grammar, key: str = "arguments") -> str:
    """One call as a JSON object."""
    return grammar.one_of(
        grammar.rule(
            grammar.text(f'{{"name": {json.dumps(tool.name)}, "{key}": ')
            + f" {grammar.json(closed(tool.parameters))} "
            + grammar.text("}")
        )
        for tool in tools
    )
