"""For templates that know no tools: instructions, calls between tags, results as messages."""

from __future__ import annotations

import json
from collections.abc import Sequence

from slmq.tools.dialects.base import Call, Dialect, Message, json_call, with_names
from slmq.tools.grammar import Grammar
from slmq.tools.tool import Tool

__all__ = ["Generic"]

INSTRUCTIONS = """\
You can call these tools:
{tools}

To call a tool, answer with its name and arguments as JSON between tags:
<tool_call>{{"name": "...", "arguments": {{...}}}}</tool_call>
Its result comes in the next message. When you need no tool, answer in plain words."""

REMINDER = "Now answer my question with it."  # else the smallest models call again and again


class Generic(Dialect):
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, which instructions ask for."""

    name = "generic"
    openings = ("<tool_call>",)
    closing = "</tool_call>"
    several = False  # models that never learned it go on and on

    def body(self, tools: Sequence[Tool], grammar: Grammar, most: int) -> str:
        """See `Dialect`."""
        return f"{json_call(tools, grammar)} {grammar.mark(self.closing)}"

    def messages(
        self, messages: Sequence[Message], tools: Sequence[Tool], template: str
    ) -> tuple[list[Message], list[Message] | None]:
        """See `Dialect`. Nothing is left that a plain template would not know."""
        found: list[Message] = []
        if tools:
            declared = [tool.declaration["function"] for tool in tools]
            listed = "\n".join(json.dumps(item, ensure_ascii=False) for item in declared)
            found.append({"role": "system", "content": INSTRUCTIONS.format(tools=listed)})
        for message in with_names(messages):
            plain = self._plainer(message)
            if found and plain["role"] == found[-1]["role"]:  # results, and what the user says next
                joined = f"{found[-1]['content']}\n\n{plain['content']}"
                if plain["role"] == "system":
                    joined = f"{plain['content']}\n\n{found[-1]['content']}"
                found[-1] = {**found[-1], "content": joined}
            else:
                found.append(plain)
        return found, None

    def _plainer(self, message: Message) -> Message:
        content = message.get("content") or ""
        if message["role"] == "tool":
            name = message.get("name")
            about = f"Result of {name}" if name else "Result"
            return {"role": "user", "content": f"{about}: {content}\n\n{REMINDER}"}
        if not message.get("tool_calls"):
            return {"role": message["role"], "content": content}
        return self._with_calls_written({**message, "content": content and f"{content}\n"})

    def written(self, calls: Sequence[Call]) -> str:
        """See `Dialect`."""
        said = [
            json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
            for name, arguments in calls
        ]
        return "\n".join(f"{self.openings[0]}{call}{self.closing}" for call in said)
