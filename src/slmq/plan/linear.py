"""A packed weight with its bias, as steps take it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import slmq._native as _native

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Linear:
    """A packed weight of n rows (outputs) and k columns (inputs), with its bias if it has one.

    Attributes
    ----------
    matrix : Matrix
    bias : float32[n], optional
    columns : int32[k], optional
        Where columns are stored in another order: column c of `matrix` reads input columns[c].
    """

    matrix: _native.Matrix
    bias: F32 | None = None
    columns: I32 | None = None

    @property
    def n(self) -> int:
        """Outputs."""
        return self.matrix.n

    @property
    def k(self) -> int:
        """Inputs."""
        return self.matrix.k
