"""Which tokens begin and end reasoning, whether a prompt has begun it, and how it is turned off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["HEADS", "begun", "pairs_of", "switch"]

PAIRS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<seed:think>": "</seed:think>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|channel>": "<channel|>",
}
HEADS = {"<|channel>": "thought\n"}  # what stands behind a marker, before the reasoning
SWITCHES = (("enable_thinking", r"\benable_thinking\b"), ("thinking", r"\bif (?:not )?thinking\b"))


def pairs_of(tokens: Mapping[str, int]) -> dict[str, str]:
    """Markers of reasoning that are tokens of a vocabulary."""
    return {open_: end for open_, end in PAIRS.items() if open_ in tokens and end in tokens}


def begun(prompt: str, said: str, pairs: Mapping[str, str]) -> str | None:
    """The marker that ends the reasoning which a template has begun, None if it has not.

    Parameters
    ----------
    prompt : str
        As the template has made it.
    said : str
        The last message: a marker at its end is text of whoever wrote it.
    pairs : mapping of str to str
    """
    tail, said = prompt.rstrip(), said.rstrip()
    for opening, end in pairs.items():
        if tail.endswith(opening) and not (said and tail.endswith(said)):
            return end
    return None


def switch(thinking: bool | None, template: str | None, pairs: Mapping[str, str]) -> dict[str, Any]:
    """The template's variable that turns reasoning on or off.

    Raises
    ------
    ValueError
        The model reasons, but its template has no such variable.
    """
    if thinking is None:
        return {}
    for name, pattern in SWITCHES:
        if re.search(pattern, template or ""):
            return {name: thinking}
    if thinking or pairs:
        raise ValueError(
            f"thinking: expected a model whose template can turn reasoning on and off, got one "
            f"that cannot; leave out thinking={thinking}"
        )
    return {}
