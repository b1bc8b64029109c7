"""What a checkpoint holds and its configuration says otherwise: decided once, and said once.

The weights that are there count. People fine-tune heads, add biases, save half a model; what is
stored is what was trained, and a configuration is a page beside it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Doubts"]

log = logging.getLogger("slmq")

# Tensors that need no word: buffers that are computed, and what reads pictures, which text lacks.
NO_WEIGHTS = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|attn_rot_embd|(attn|attention)\.(masked_)?bias)(\.weight)?$"
    r"|(^|\.)(vision_tower|vision_model|visual|multi_modal_projector)\."
    r"|(^|\.)(audio_tower|embed_vision|embed_audio)\."
)
SHOWN = 4


class Doubts:
    """Notes what does not fit together while weights are read, and says it at the end.

    Parameters
    ----------
    path : Path
        The checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._added: list[str] = []
        self._missing: list[str] = []

    def added(self, name: str) -> None:
        """A bias that the configuration does not speak of."""
        self._added.append(name)

    def missing(self, name: str) -> None:
        """A bias that it speaks of, and that is not there."""
        self._missing.append(name)

    def untied(self, head: str) -> None:
        """A head that is said to be the embedding, and differs from it."""
        log.warning(
            "%s: the configuration ties the output head to the embedding, but %s is stored and "
            "differs: the stored head is used (tie_word_embeddings false says so)",
            self._path,
            head,
        )

    def headless(self, head: str) -> None:
        """A head that is said to be there, and is not."""
        log.warning(
            "%s: %s is missing, though the configuration does not tie it to the embedding: the "
            "embedding is used in its place. Was the model saved without its head?",
            self._path,
            head,
        )

    def tell(self, unread: Iterable[str]) -> None:
        """Says what was noted, and which tensors nobody read."""
        if self._added:
            log.warning(
                "%s: biases are stored that the configuration does not announce; they are used: %s",
                self._path,
                listed(self._added),
            )
        if self._missing:
            log.warning(
                "%s: the configuration announces biases that are not stored; none are used: %s",
                self._path,
                listed(self._missing),
            )
        left = [name for name in unread if not NO_WEIGHTS.search(name)]
        if left:
            log.warning(
                "%s: tensors that this architecture has no use for were left out, so the answers "
                "may not be those of the model that was trained: %s",
                self._path,
                listed(left),
            )
        self._added, self._missing = [], []


def listed(names: list[str]) -> str:
    """Some names, and how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"{name:.80}" for name in names[:SHOWN]) + more
