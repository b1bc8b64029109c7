"""Chats to prompts: messages checked, then rendered by the model's own template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slmq.chat.messages import checked_messages, checked_tools, plain, without_nulls
from slmq.errors import TemplateError

if TYPE_CHECKING:
    import jinja2

__all__ = ["ChatTemplates"]

# A question whether a message's content is null.
TESTS_FOR_NULL = re.compile(r"content(?:['\"]\s*\])?\s+is\s+(?:not\s+)?none\b")
# A loop over the parts of a message's content.
TAKES_PARTS = re.compile(
    r"{%-?\s*for\s+\w+\s+in\s+"
    r"(?:[\w.]+\.content|[\w.]+\[(?P<quote>['\"])content(?P=quote)\]|content)(?!\w)"
)


class ChatTemplates:
    """The chat templates of a model, compiled on first use.

    Parameters
    ----------
    templates : Mapping
        Sources by name: ``"default"``, and ``"tool_use"`` for chats with tools.
    special_tokens : Mapping
        Variables that every template sees: ``bos_token``, ``eos_token``, ...
    """

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._sources = dict(templates)
        self._special_tokens = dict(special_tokens)
        self._compiled: dict[str, jinja2.Template] = {}

    @property
    def default(self) -> str | None:
        """The source of the usual template."""
        return self._sources.get("default")

    def source(self, *, tools: bool) -> str | None:
        """The source of the template for chats with tools, or without."""
        return self._sources.get("tool_use", self.default) if tools else self.default

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        extra: Mapping[str, Any],
    ) -> str:
        """Return the prompt; see `Tokenizer.render_chat`.

        Keys whose value is None, such as the content beside tool calls, are there for some
        templates to test for and for others to stumble over, who want them absent, as transformers
        leaves them. A template that tests for null content gets it; any other gets what it renders.
        """
        name = self._choice(with_tools=tools is not None)
        source = self._sources[name]
        variables = {
            "documents": None,
            **self._special_tokens,
            **{name: plain(value, name) for name, value in extra.items()},
            "tools": checked_tools(tools),
            "add_generation_prompt": bool(add_generation_prompt),
        }
        from slmq.chat.template import run_template

        kept = checked_messages(messages, parts=TAKES_PARTS.search(source) is not None)
        ways = [without_nulls(kept)]
        if ways[0] != kept:
            ways.insert(0 if TESTS_FOR_NULL.search(source) else 1, kept)
        failures: list[TemplateError] = []
        for way in ways:
            try:
                return run_template(self._template(name), variables | {"messages": way})
            except TemplateError as error:
                failures.append(error)
        raise failures[0]

    def _choice(self, *, with_tools: bool) -> str:
        name = "tool_use" if with_tools and "tool_use" in self._sources else "default"
        if name not in self._sources:
            others = f" but {', '.join(map(repr, self._sources))}" if self._sources else ""
            raise TemplateError(
                f"the model has no default chat template{others}; pass the prompt as a string, "
                f"in the format that the model was trained on"
            )
        return name

    def _template(self, name: str) -> jinja2.Template:
        if name not in self._compiled:
            from slmq.chat.template import compile_template

            self._compiled[name] = compile_template(self._sources[name])
        return self._compiled[name]
