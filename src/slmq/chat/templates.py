"""Chats to prompts: messages checked, then rendered by the model's own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slmq.chat.messages import checked_messages, checked_tools, plain
from slmq.errors import TemplateError

if TYPE_CHECKING:
    import jinja2

__all__ = ["ChatTemplates"]


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

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        extra: Mapping[str, Any],
    ) -> str:
        """Return the prompt; see `Tokenizer.render_chat`."""
        variables = {
            "documents": None,
            **self._special_tokens,
            **{name: plain(value, name) for name, value in extra.items()},
            "messages": checked_messages(messages),
            "tools": checked_tools(tools),
            "add_generation_prompt": bool(add_generation_prompt),
        }
        from slmq.chat.template import run_template

        return run_template(self._template(with_tools=tools is not None), variables)

    def _template(self, *, with_tools: bool) -> jinja2.Template:
        name = "tool_use" if with_tools and "tool_use" in self._sources else "default"
        if name not in self._sources:
            others = f" but {', '.join(map(repr, self._sources))}" if self._sources else ""
            raise TemplateError(
                f"the model has no default chat template{others}; pass the prompt as a string, "
                f"in the format that the model was trained on"
            )
        if name not in self._compiled:
            from slmq.chat.template import compile_template

            self._compiled[name] = compile_template(self._sources[name])
        return self._compiled[name]
