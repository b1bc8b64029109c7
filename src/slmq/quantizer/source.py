"""A checkpoint for the quantizer: matrices are noted, vectors are read and keep their names."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.checkpoint import Checkpoint
from slmq.conversion.source import Source
from slmq.plan.linear import Linear
from slmq.weights.survey import Wish

__all__ = ["FloatSource", "name_of"]

F32 = npt.NDArray[np.float32]


class _Vector(np.ndarray[Any, np.dtype[np.float32]]):
    """float32[n] with the name of its tensor. What is computed from it has no name."""

    name = ""


def _named(values: F32, name: str) -> _Vector:
    vector = values.view(_Vector)
    vector.name = name
    return vector


def name_of(values: F32) -> str:
    """The name of a stored vector; empty for one that was computed."""
    return values.name if isinstance(values, _Vector) else ""


class FloatSource(Source):
    """A checkpoint whose matrices are noted and whose vectors are read.

    Attributes
    ----------
    vectors : dict of str to float32[n]
        Those that were read, by name.
    """

    def __init__(self, checkpoint: Checkpoint, format: str | None, threads: int) -> None:
        self.vectors: dict[str, F32] = {}
        super().__init__(checkpoint, format, threads)

    def vector(self, name: str, size: int, *, columns: int = 0, whole: bool = False) -> F32:
        """Note a vector, and read it."""
        super().vector(name, size, columns=columns, whole=whole)
        self.vectors[name] = self._reader.vector(name, size, columns=columns, whole=whole)
        return _named(self.vectors[name], name)

    def linear_of(self, wish: Wish, matrix: _native.Matrix | None = None) -> Linear:
        """A matrix as `forward` takes it, as it is or as `matrix`, with its bias."""
        found = self.held(wish) if matrix is None else Linear(matrix)
        bias = None
        if wish.bias is not None:
            bias = self._reader.vector(wish.bias, wish.n, wish.rows)
            bias = bias if wish.order is None else bias[wish.order]
        return Linear(found.matrix, bias, found.columns, wish.name)
