"""What a family asks for, noted before any of it is read.

Folders of packed weights are written from it: the header needs every tensor's size, and a tensor is
read only when its turn has come. Published shapes are counted with it, over no file at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from slmq.checkpoint.base import Layout
from slmq.checkpoint.packed_folder import COLUMNS, PackedTensor
from slmq.plan.linear import Linear, Unread
from slmq.weights.rows import Rows

__all__ = ["Stock", "Survey", "Wish"]


class Stock(Protocol):
    """What is known of weights without reading them; a `WeightReader` knows it of a checkpoint."""

    @property
    def layout(self) -> Layout:
        """As of `Reader`."""

    def has(self, name: str) -> bool:
        """As of `Reader`."""

    def bias(self, name: str, announced: bool) -> str | None:
        """As of `Reader`."""

    def own_head(self, name: str, embed: str, tied: bool) -> bool:
        """As of `Reader`."""

    def note(self, name: str) -> None:
        """A tensor of this name will be read."""

    def format_of(
        self, name: str, n: int, k: int, rows: Rows | None = None, floats: bool = False
    ) -> str:
        """The format that a weight [n, k] is packed to."""

    def columns_of(
        self, name: str, n: int, k: int, rows: Rows | None = None
    ) -> npt.NDArray[np.int32] | None:
        """The order that its columns are stored in, int32[k]; None: as they are."""


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
    columns : int
        A vector that is stored as rows of so many; 0 for one that is stored as such.
    whole : bool
        A vector that may be stored as integers.
    """

    tensor: PackedTensor
    order: npt.NDArray[np.int32] | None = None
    rows: Rows | None = None
    stored: str = ""
    bias: str | None = None
    known: npt.NDArray[np.int32] | None = None
    floats: bool = False
    columns: int = 0
    whole: bool = False

    @property
    def name(self) -> str:
        """The name in a folder of packed weights."""
        return self.tensor.name

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


class Survey:
    """A `Reader` that notes what it is asked for, and reads nothing.

    Its matrices are `Linear`s that are not read, with names that `wish` knows. Its vectors are
    ones.

    Parameters
    ----------
    stock : Stock
        What there is.
    """

    def __init__(self, stock: Stock) -> None:
        self._stock = stock
        self._wishes: dict[str, Wish] = {}

    @property
    def wishes(self) -> list[Wish]:
        """What was asked for, in order."""
        return list(self._wishes.values())

    def wish(self, name: str) -> Wish:
        """The wish of this name, as a `Linear` carries it."""
        return self._wishes[name]

    @property
    def layout(self) -> Layout:
        return self._stock.layout

    def has(self, name: str) -> bool:
        return self._stock.has(name)

    def bias(self, name: str, announced: bool) -> str | None:
        return self._stock.bias(name, announced)

    def own_head(self, name: str, embed: str, tied: bool) -> bool:
        return self._stock.own_head(name, embed, tied)

    def vector(
        self, name: str, size: int, *, columns: int = 0, whole: bool = False
    ) -> npt.NDArray[np.float32]:
        """Note a vector; returns ones."""
        self._stock.note(name)
        self._note(Wish(PackedTensor(name, "f32", (size,)), columns=columns, whole=whole))
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
        """Note a matrix and its bias; returns the size of the matrix, under its name."""
        fmt = self._stock.format_of(name, n, k, rows, floats)
        written = name if rows is None else rows.name(name, n)
        self._note(Wish(PackedTensor(written, fmt, (n, k)), order, rows, name, bias, floats=floats))
        columns = self._stock.columns_of(name, n, k, rows)
        if columns is not None:
            self._note(Wish(PackedTensor(written + COLUMNS, "i32", (k,)), known=columns))
        if bias is not None:
            part = bias if rows is None else rows.name(bias, n)
            self._stock.note(bias)
            self._stock.note(part)  # as packed folders call it
            self._note(Wish(PackedTensor(part, "f32", (n,)), order, rows, bias))
        return Linear(Unread(n, k), name=written)

    def table(self, name: str, n: int, k: int) -> Linear:
        """Note a table, which is never rounded."""
        return self.linear(name, n, k, floats=True)

    def _note(self, wish: Wish) -> None:
        self._wishes[wish.name] = wish
