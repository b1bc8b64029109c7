"""What an encoder's files say of its use, gathered in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slmq.embedding.folder import SentenceFolder
from slmq.embedding.scores import ACTIVATIONS
from slmq.errors import UnsupportedModelError
from slmq.models.parts.encoder import config_labels
from slmq.models.parts.values import config_value

__all__ = ["EncoderSettings", "settings_of"]

# Where cross-encoders of sentence-transformers keep the name of what follows their scores.
OLD_KEY, SECTION, KEY = (
    "sbert_ce_default_activation_function",
    "sentence_transformers",
    "activation_fn",
)


@dataclass(frozen=True)
class EncoderSettings:
    """How an encoder is used.

    Attributes
    ----------
    name : str
        What it is called in messages.
    folder : SentenceFolder
    max_length : int
        Most tokens of an input.
    labels : list of str
        Of a head that classifies.
    activation : str
        What makes probabilities of scores: a key of `scores.ACTIVATIONS`.
    """

    name: str
    folder: SentenceFolder
    max_length: int
    labels: list[str]
    activation: str


def settings_of(
    folder: SentenceFolder,
    config: Mapping[str, Any],
    checked: Any,
    name: str,
    *,
    judges: bool = False,
) -> EncoderSettings:
    """From what was read; raises as `config_value`, and UnsupportedModelError for an activation.

    `judges`: whether the model is a decoder that says whether a document fits.
    """
    longest = checked.max_positions
    labels = config_labels(config) if checked.task in ("classify", "tags") else []
    return EncoderSettings(
        name=name,
        folder=folder,
        max_length=min(longest, folder.max_length or longest),
        labels=labels,
        activation=_activation(config, 1 if judges else len(labels), folder.activation),
    )


def _activation(config: Mapping[str, Any], labels: int, stated: str | None) -> str:
    section = config_value(config, SECTION, dict, {})
    # What the folder says counts more than the configuration of the model within.
    given = stated or section.get(KEY) or config.get(OLD_KEY)
    if given is not None:
        name = str(given).rpartition(".")[2]
        if name not in ACTIVATIONS:
            raise UnsupportedModelError(
                f"{KEY} {given!r:.80} is not supported; supported: {', '.join(ACTIVATIONS)}"
            )
        return name
    kind = config_value(config, "problem_type", str, "")
    if kind == "regression":
        return "Identity"
    return "Sigmoid" if labels == 1 or kind == "multi_label_classification" else "Softmax"
