"""A weight with its bias, as steps take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import slmq._native as _native

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


class Unread(NamedTuple):
    """The size of a matrix that was asked for and not read."""

    n: int
    k: int


@dataclass(frozen=True)
class Linear:
    """A weight of n rows (outputs) and k columns (inputs), with its bias if it has one.

    Attributes
    ----------
    held : Matrix, RowTable or Unread
        The packed weight; or a table whose rows stay in their file, for `Recording.embed` alone; or
        its size where nobody needs more.
    bias : float32[n], optional
    columns : int32[k], optional
        Where columns are stored in another order: column c of `matrix` reads input columns[c].
    name : str
        The tensor's, as a folder of packed weights has it; empty for a weight that no file has.
    """

    held: _native.Matrix | _native.RowTable | Unread
    bias: F32 | None = None
    columns: I32 | None = None
    name: str = ""

    @property
    def matrix(self) -> _native.Matrix:
        """The packed weight. Raises ValueError if it was not read, or stays in its file."""
        if isinstance(self.held, Unread):
            raise ValueError(f"{self.name}: a weight that was noted only has a size, no values")
        if isinstance(self.held, _native.RowTable):
            raise ValueError(
                f"{self.name}: its rows stay in their file, and only embed() reads them"
            )
        return self.held

    @property
    def n(self) -> int:
        """Outputs."""
        return self.held.n

    @property
    def k(self) -> int:
        """Inputs."""
        return self.held.k
