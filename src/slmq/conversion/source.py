"""A checkpoint's weights as its family asks for them, to be read one at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.checkpoint import Checkpoint
from slmq.models.loading import open_weights, tensors_of
from slmq.plan.linear import Linear
from slmq.weights.survey import Survey, Wish

__all__ = ["Source"]

ROWS = 1024  # of a matrix that are decoded at a time
QUANT_KEYS = ("quantization_config", "compression_config")


class Source(Survey):
    """A checkpoint as its family reads it: noted first, then read tensor by tensor.

    Parameters
    ----------
    checkpoint : Checkpoint
    format : str, optional
        What weights become; None keeps them as they are stored.
    threads : int

    Attributes
    ----------
    config : dict
        In Hugging Face's terms.
    opened : OpenedWeights
    weights : Weights
        What load() made of the wishes.
    """

    def __init__(self, checkpoint: Checkpoint, format: str | None, threads: int) -> None:
        self.checkpoint = checkpoint
        opened = open_weights(checkpoint, threads=threads, format=format, keep=False)
        self.opened = opened
        super().__init__(opened.reader)
        self._reader = opened.reader
        # How the source was quantized says nothing of the packed weights.
        self.config = {k: v for k, v in opened.raw_config.items() if k not in QUANT_KEYS}
        self.config["model_type"] = checkpoint.metadata[checkpoint.architecture_key]
        if isinstance(licence := checkpoint.metadata.get(checkpoint.licence_key), str):
            self.config["license"] = licence
        with tensors_of(checkpoint):
            self.weights = opened.family.load(self, opened.config)
        opened.reader.tell()

    def read(self, wish: Wish) -> npt.NDArray[np.uint8]:
        """The bytes that are stored for a tensor: uint8[nbytes]."""
        if wish.known is not None:
            return wish.known.astype("<i4").view(np.uint8)
        if wish.is_matrix:
            return self.matrix(wish).packed
        return self.values(wish).astype("<f4").view(np.uint8)

    def matrix(self, wish: Wish) -> _native.Matrix:
        """A matrix, packed in its format; its columns may be in the order of another wish."""
        return self.held(wish).matrix

    def floats(self, wish: Wish) -> Iterator[npt.NDArray[np.float32]]:
        """The rows of a matrix, some at a time, columns in order: float32[rows, k]."""
        linear = self.held(wish)
        for begin in range(0, wish.n, ROWS):
            rows = linear.matrix.dequantize(begin, min(begin + ROWS, wish.n))
            yield rows if linear.columns is None else rows[:, np.argsort(linear.columns)]

    def pieces(self, wish: Wish) -> Iterator[npt.NDArray[np.float32]]:
        """A matrix as `floats`, or a vector in one piece."""
        if wish.is_matrix:
            yield from self.floats(wish)
        else:
            yield self.values(wish)

    def held(self, wish: Wish) -> Linear:
        """A matrix with the order of its columns."""
        n, k = wish.tensor.shape
        return self._reader.linear(
            wish.stored, n, k, order=wish.order, rows=wish.rows, floats=wish.floats
        )

    def values(self, wish: Wish) -> npt.NDArray[np.float32]:
        """A vector: float32[size]."""
        name = wish.stored or wish.name
        size = wish.tensor.shape[0]
        values = self._reader.vector(name, size, wish.rows, columns=wish.columns, whole=wish.whole)
        return values if wish.order is None else values[wish.order]
