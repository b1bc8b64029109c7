"""Model families: one file per Hugging Face model type."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from slmq.checkpoint import Checkpoint
from slmq.errors import CheckpointError, UnsupportedModelError

# model_type -> module in slmq.models
FAMILIES = {
    "llama": "llama",
}


def family_of(checkpoint: Checkpoint) -> tuple[Any, dict[str, Any]]:
    """The family module of a checkpoint, and its configuration in Hugging Face's terms.

    Raises
    ------
    UnsupportedModelError
        Names the architecture, the supported ones and the nearest.
    CheckpointError
        If the checkpoint does not say what it is.
    """
    gguf = checkpoint.kind == "gguf"
    key = "general.architecture" if gguf else "model_type"
    architecture = checkpoint.metadata.get(key)
    if not isinstance(architecture, str):
        raise CheckpointError(
            f"expected {key} to name the architecture, found {architecture!r}", file=checkpoint.path
        )
    if architecture not in FAMILIES:
        nearest = difflib.get_close_matches(architecture, FAMILIES, n=1, cutoff=0.5)
        hint = f"; the nearest is {nearest[0]}" if nearest else ""
        raise UnsupportedModelError(
            f"architecture {architecture!r} of {checkpoint.path} is not supported; "
            f"supported are {', '.join(FAMILIES)}{hint}"
        )
    family = importlib.import_module(f"slmq.models.{FAMILIES[architecture]}")
    metadata: Mapping[str, Any] = checkpoint.metadata
    config = family.GGUF.config(metadata, checkpoint.tensors) if gguf else dict(metadata)
    return family, config
