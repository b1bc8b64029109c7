"""What a family asks of a checkpoint, noted before any of it is read.

Folders of packed weights are written from it: the header needs every tensor's size, and a tensor is
read only when its turn has come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.checkpoint import Checkpoint
from slmq.checkpoint.packed_folder import COLUMNS, PackedTensor
from slmq.models.loading import open_weights
from slmq.weights.rows import Rows

if TYPE_CHECKING:
    from slmq.plan.linear import Linear
    from slmq.weights.reader import WeightReader

__all__ = ["Source", "Wish"]

ROWS = 1024  # of a matrix that are decoded at a time
QUANT_KEYS = ("quantization_config", "compression_config")


@dataclass(frozen=True)
class Wish:
    """What a family asks for: a vector, or a matrix.

    Attributes
    ----------
    tensor : PackedTensor
    order : int32[n], optional
        Which stored row each row is.
    rows : Rows, optional
        The matrix is some rows of a stored one.
    stored : str
        The name in the source, of a matrix or a part of a vector.
    bias : str or None
        The name of the bias that a matrix has.
    known : int32[k], optional
        Values that need no reading: in which order a matrix takes its columns.
    floats : bool
        A matrix that is never rounded to integers: positions, which are added.
    """

    tensor: PackedTensor
    order: npt.NDArray[np.int32] | None = None
    rows: Rows | None = None
    stored: str = ""
    bias: str | None = None
    known: npt.NDArray[np.int32] | None = None
    floats: bool = False

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix, not a vector."""
        return len(self.tensor.shape) == 2

    @property
    def rounds(self) -> bool:
        """Whether it is a matrix that may be rounded to integers."""
        return self.is_matrix and not self.floats

    @property
    def n(self) -> int:
        """Outputs of a matrix."""
        return self.tensor.shape[0]

    @property
    def k(self) -> int:
        """Inputs of a matrix."""
        return self.tensor.shape[1]


class Source:
    """A checkpoint as its family reads it: noted first, then read tensor by tensor.

    It has the methods of `WeightReader` that a family's load() uses, and answers them with wishes.

    Parameters
    ----------
    checkpoint : Checkpoint
    quant : str, optional
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

    def __init__(self, checkpoint: Checkpoint, quant: str | None, threads: int) -> None:
        self.checkpoint = checkpoint
        self.layout = checkpoint.layout
        opened = open_weights(checkpoint, threads=threads, quant=quant, keep=False)
        self.opened = opened
        self._reader = opened.reader
        # How the source was quantized says nothing of the packed weights.
        self.config = {k: v for k, v in opened.raw_config.items() if k not in QUANT_KEYS}
        self.config["model_type"] = checkpoint.metadata[checkpoint.architecture_key]
        if isinstance(licence := checkpoint.metadata.get(checkpoint.licence_key), str):
            self.config["license"] = licence
        self._wishes: dict[str, Wish] = {}
        self.weights = opened.family.load(cast("WeightReader", self), opened.config)

    @property
    def wishes(self) -> list[Wish]:
        """What was asked for, in order."""
        return list(self._wishes.values())

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this tensor."""
        return self._reader.has(name)

    def vector(self, name: str, size: int) -> npt.NDArray[np.float32]:
        """Note a vector; returns ones."""
        self._note(Wish(PackedTensor(name, "f32", (size,))))
        return np.ones(size, np.float32)

    def linear(
        self,
        name: str,
        n: int,
        k: int,
        *,
        bias: str | None = None,
        order: npt.NDArray[np.int32] | None = None,
        rows: Rows | None = None,
        floats: bool = False,
    ) -> Linear:
        """Note a matrix and its bias; returns the wish in the place of the matrix."""
        fmt = self._reader.format_of(name, n, k, rows, floats)
        written = name if rows is None else rows.name(name, n)
        wish = Wish(PackedTensor(written, fmt, (n, k)), order, rows, name, bias, floats=floats)
        self._note(wish)
        columns = self._reader.columns_of(name, n, k, rows)
        if columns is not None:
            self._note(Wish(PackedTensor(written + COLUMNS, "i32", (k,)), known=columns))
        if bias is not None:
            written = bias if rows is None else rows.name(bias, n)
            self._note(Wish(PackedTensor(written, "f32", (n,)), order, rows, bias))
        return cast("Linear", wish)

    def _note(self, wish: Wish) -> None:
        self._wishes[wish.tensor.name] = wish

    def read(self, wish: Wish) -> npt.NDArray[np.uint8]:
        """The bytes that are stored for a tensor: uint8[nbytes]."""
        if wish.known is not None:
            return wish.known.astype("<i4").view(np.uint8)
        if wish.is_matrix:
            return self.matrix(wish).packed
        return self.values(wish).astype("<f4").view(np.uint8)

    def matrix(self, wish: Wish) -> _native.Matrix:
        """A matrix, packed in its format; its columns may be in the order of another wish."""
        return self._linear(wish).matrix

    def floats(self, wish: Wish) -> Iterator[npt.NDArray[np.float32]]:
        """The rows of a matrix, some at a time, columns in order: float32[rows, k]."""
        linear = self._linear(wish)
        for begin in range(0, wish.n, ROWS):
            rows = linear.matrix.dequantize(begin, min(begin + ROWS, wish.n))
            yield rows if linear.columns is None else rows[:, np.argsort(linear.columns)]

    def pieces(self, wish: Wish) -> Iterator[npt.NDArray[np.float32]]:
        """A matrix as `floats`, or a vector in one piece."""
        if wish.is_matrix:
            yield from self.floats(wish)
        else:
            yield self.values(wish)

    def _linear(self, wish: Wish) -> Linear:
        n, k = wish.tensor.shape
        return self._reader.linear(
            wish.stored, n, k, order=wish.order, rows=wish.rows, floats=wish.floats
        )

    def values(self, wish: Wish) -> npt.NDArray[np.float32]:
        """A vector: float32[size]."""
        name = wish.stored or wish.tensor.name
        values = self._reader.vector(name, wish.tensor.shape[0], wish.rows)
        return values if wish.order is None else values[wish.order]
