"""A language model that is a part of a larger one, beside a tower that reads pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slmq.errors import CheckpointError
from slmq.weights.base import Reader

__all__ = ["language_config", "language_place", "names_elsewhere"]

# What the names of the language model's tensors, and of its head, begin with: alone, and beside a
# vision tower as the published files and as newer ones have them.
PLACES = (
    ("model", "lm_head"),
    ("language_model.model", "language_model.lm_head"),
    ("model.language_model", "lm_head"),
    ("language_model", "lm_head"),
)

OTHER_PARTS = ("vision_config", "audio_config", "speech_config")


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that is about text: `text_config`, or all of it.

    Raises
    ------
    CheckpointError
        If that part is no object, or missing beside others.
    """
    text = config.get("text_config", config)
    others = [part for part in OTHER_PARTS if part in config]
    if text is config and others and "hidden_size" not in config:
        raise CheckpointError(
            f"expected text_config, the part of the language model, beside {', '.join(others)}; "
            f"found none: there is no model of text in it"
        )
    if not isinstance(text, Mapping):
        raise CheckpointError(f"expected text_config to be an object, found {text!r:.80}")
    return text


def language_place(r: Reader) -> tuple[str, str]:
    """What the names of the model's tensors, and of its head, begin with.

    Raises
    ------
    CheckpointError
        If no language model is there.
    """
    for model, head in PLACES:
        if r.has(f"{model}.embed_tokens.weight"):
            return model, head
    names = ", ".join(f"{model}.embed_tokens.weight" for model, _ in PLACES)
    raise CheckpointError(f"expected the language model's tensors, found none of {names}")


def names_elsewhere(module: str) -> list[str]:
    """A module's name, and what it is called where its model stands in another of `PLACES`."""
    names = [module]
    for place, _ in PLACES:
        if module.startswith(f"{place}.layers."):
            inner = module.removeprefix(place)
            names += [other + inner for other, _ in PLACES if other != place]
    return names
