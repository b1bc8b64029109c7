"""Which layer a weight belongs to, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["last_layers", "layer_of"]

LAYER = re.compile(r"\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """The layer of a tensor of this name; None if it is before or behind all layers."""
    found = LAYER.search(name)
    return None if found is None else int(found[1])


def last_layers(names: Iterable[str], count: int) -> list[int]:
    """The last `count` layers that tensors of these names belong to, or all if it is -1."""
    layers = sorted({layer for name in names if (layer := layer_of(name)) is not None})
    return layers if count < 0 else layers[-count:]
