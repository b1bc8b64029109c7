"""Labels that a model was not trained for: what it says of the claim that a text is about each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from slmq.embedding import scores
from slmq.errors import UnsupportedModelError

__all__ = ["claims_of", "entailed", "likely_by_cosine"]

F32 = npt.NDArray[np.float32]
SHARPNESS = 20.0  # of cosines that become probabilities


def claims_of(labels: Sequence[str], template: str) -> tuple[list[str], list[str]]:
    """The labels, checked, and the claim of each.

    Raises
    ------
    TypeError, ValueError
        For one str, no labels, or a template without {}.
    """
    if isinstance(labels, str):
        raise TypeError("labels: expected several labels, got one str")
    names = list(labels)
    if not names or not all(isinstance(name, str) for name in names) or "{}" not in template:
        raise ValueError(
            f"expected at least one label and {{}} in the template, got {names!r:.80} and "
            f"{template!r:.80}"
        )
    return names, [template.replace("{}", name) for name in names]


def likely_by_cosine(cosines: F32) -> F32:
    """Probabilities of claims of which one holds, by how near each is to the text."""
    return scores.softmax(np.asarray(cosines * np.float32(SHARPNESS), np.float32))


def entailed(rows: F32, labels: Sequence[str], name: str, *, multi_label: bool) -> F32:
    """How likely a text entails each claim, of a head's scores: float32[claims, labels].

    Raises
    ------
    UnsupportedModelError
        If no label of the model `name` is that of entailment.
    """
    lowered = [label.lower() for label in labels]
    yes = next((i for i, label in enumerate(lowered) if label.startswith("entail")), None)
    no = next((i for i, label in enumerate(lowered) if label.startswith("contra")), None)
    if yes is None:
        raise UnsupportedModelError(
            f"{name}: zero_shot needs a label of entailment, this model has {', '.join(labels)}"
        )
    if not multi_label and len(rows) > 1:
        return scores.softmax(rows[:, yes])
    other = no if no is not None else (0 if yes else len(labels) - 1)
    return np.array([scores.softmax(row[[other, yes]])[1] for row in rows], np.float32)
