"""The sum of a weight and an adapter's product, and the lengths that DoRA gives its rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.formats import padded

__all__ = ["ProductSum", "row_factors"]

F32 = npt.NDArray[np.float32]


class ProductSum:
    """W + B @ A some rows at a time, sums over the rank in order: the same bits everywhere.

    Parameters
    ----------
    a : float32[rank, k]
    b : float32[n, rank]
    operators : _native.Operators
    """

    def __init__(self, a: F32, b: F32, operators: _native.Operators) -> None:
        rank, k = a.shape
        self._operators = operators
        self._a = _native.zero_rows(rank, k)
        self._a[:, :k] = a
        self._b = b

    def rows(self, first: int, weight: F32) -> F32:
        """Rows from `first` on, of which `weight` are those without the product."""
        count, k = weight.shape
        rank = len(self._a)
        b = _native.zero_rows(count, rank)
        b[:, :rank] = self._b[first : first + count]
        product = _native.zero_rows(count, k)
        self._operators.multiply(b, self._a, product, padded(k, 32), rank)
        found: F32 = weight + product[:, :k]
        return found


def row_factors(rows: F32, lengths: F32) -> npt.NDArray[np.float64]:
    """What makes each row as long as DoRA says (Liu et al., 2024)."""
    squares = [_native.sum_of_squares(np.ascontiguousarray(row)) for row in rows]
    with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros has no direction
        found: npt.NDArray[np.float64] = lengths / np.sqrt(squares)
    return found
