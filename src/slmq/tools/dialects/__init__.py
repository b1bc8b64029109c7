"""How each family of models writes calls of tools, and which family a chat template is of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from slmq.tools.dialects.apertus import Apertus
from slmq.tools.dialects.base import Dialect
from slmq.tools.dialects.function_gemma import FunctionGemma
from slmq.tools.dialects.gemma4 import Gemma4
from slmq.tools.dialects.generic import Generic
from slmq.tools.dialects.harmony import Harmony
from slmq.tools.dialects.hermes import Hermes
from slmq.tools.dialects.llama3 import Llama3
from slmq.tools.dialects.mistral import Mistral, MistralNamed
from slmq.tools.dialects.phi4 import Phi4
from slmq.tools.dialects.pythonic import Lfm2, Olmo3, Pythonic
from slmq.tools.dialects.qwen_xml import QwenXml
from slmq.tools.tool import Tool

__all__ = ["DIALECTS", "Dialect", "dialect_named", "dialect_of"]

_ALL: tuple[type[Dialect], ...] = (
    Hermes,
    QwenXml,
    Llama3,
    Mistral,
    MistralNamed,
    Phi4,
    FunctionGemma,
    Gemma4,
    Apertus,
    Harmony,
    Pythonic,
    Olmo3,
    Lfm2,
    Generic,
)
DIALECTS: dict[str, type[Dialect]] = {kind.name: kind for kind in _ALL}

# What stands in the templates of a family, all of it, and not in those of a family before it.
SIGNS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<start_function_call>",), "functiongemma"),
    (("<|tool_call>", "<tool_call|>"), "gemma4"),
    (("<|tools_prefix|>",), "apertus"),
    (("<|channel|>commentary", "functions."), "harmony"),
    (("[TOOL_CALLS]", "[ARGS]"), "mistral-args"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<tool_call>", "<function="), "qwen3-coder"),
    (("<tool_call>", '"arguments"'), "hermes"),
    (("<|tool|>",), "phi4-mini"),
    (("<|tool_call|>",), "phi4-mini"),
    (("<function_calls>",), "olmo3"),
    (("<|tool_list_start|>",), "lfm2"),
    (("<|tool_call_start|>",), "lfm2"),
    (("List of tools: [", "keep_past_thinking"), "lfm2"),
    (("[func_name1(",), "pythonic"),
    (("<|start_header_id|>", '"parameters": '), "llama3"),
)


def dialect_of(template: str | None) -> str:
    """The name of the dialect that a chat template speaks; "generic" if it knows no tools."""
    if template is not None and "tools" in template:
        for signs, name in SIGNS:
            if all(sign in template for sign in signs):
                return name
    return Generic.name


def dialect_named(name: str, tools: Sequence[Tool]) -> Dialect:
    """A dialect, for these tools.

    Raises
    ------
    ValueError
        There is none of this name.
    """
    if name not in DIALECTS:
        raise ValueError(f"dialect: expected one of {', '.join(DIALECTS)}; got {name!r}")
    make: Callable[..., Dialect] = DIALECTS[name]
    return make(tools) if DIALECTS[name] is QwenXml else make()
