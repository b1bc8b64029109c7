"""The list of modules that sentence-transformers keeps: a model, and what follows it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from slmq.errors import CheckpointError

__all__ = ["MODELS", "MODULES", "TABLE", "TABLE_CONFIG", "Module", "read_modules"]

MODULES = "modules.json"
TABLE = "StaticEmbedding"  # a table of vectors, which has no configuration
MODELS = ("Transformer", TABLE)  # kinds of modules that are a model
# What such a table would say of itself. Unlike in model2vec's own, unknown tokens have a vector.
TABLE_CONFIG = {"model_type": "model2vec", "keep_unknown": True}
MAX_BYTES = 4 << 20
MOST_MODULES = 64


@dataclass(frozen=True)
class Module:
    """One of them.

    Attributes
    ----------
    type : str
        Its class, as it is written there.
    place : str
        Its folder within that of the list; may be empty.
    """

    type: str
    place: str

    @property
    def kind(self) -> str:
        """The last part of its class, which is all that releases agree on."""
        return self.type.rpartition(".")[2]


def read_modules(path: Path) -> list[Module]:
    """All modules, in order; none for a file, and for a folder without a list.

    Raises
    ------
    CheckpointError
        If the list is damaged, or names a place outside.
    """
    file = path / MODULES
    if not path.is_dir() or not file.exists():
        return []
    try:
        data = file.read_bytes()[: MAX_BYTES + 1]
        entries = json.loads(data) if len(data) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot be read: {error}", file=file) from None
    if not isinstance(entries, list) or not 1 <= len(entries) <= MOST_MODULES:
        raise CheckpointError("expected a list of modules", file=file)
    modules = []
    for entry in entries:
        found = entry if isinstance(entry, dict) else {}
        kind, place = found.get("type"), found.get("path")
        if not isinstance(kind, str) or not isinstance(place, str):
            raise CheckpointError(f"expected type and path, found {entry!r:.80}", file=file)
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise CheckpointError(f"expected a folder inside, found {place!r:.80}", file=file)
        modules.append(Module(kind, place))
    return modules
