"""Arithmetic on a few numbers, with the same bits everywhere.

NumPy's own sums and exponentials depend on the CPU; the functions here do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import slmq._native as _native

__all__ = ["ACTIVATIONS", "checked_vectors", "sigmoid", "similarities", "softmax", "unit_rows"]

F32 = npt.NDArray[np.float32]
SMALLEST = 1e-12  # what a length is at least, as in sentence-transformers


def softmax(scores: F32) -> F32:
    """Probabilities of a row of scores."""
    return _native.softmax(np.ascontiguousarray(scores, np.float32))


def sigmoid(scores: F32) -> F32:
    """Probabilities of scores, each by itself: the first of the softmax of it and 0."""
    pairs = [softmax(np.array([s, 0], np.float32))[0] for s in scores.reshape(-1)]
    return np.array(pairs, np.float32).reshape(scores.shape)


def _same(scores: F32) -> F32:
    return scores


# What follows the scores of a head, by the names of classes in configurations.
ACTIVATIONS: dict[str, Callable[[F32], F32]] = {
    "Identity": _same,
    "Sigmoid": sigmoid,
    "Softmax": softmax,
}


def checked_vectors(given: npt.NDArray[Any]) -> F32:
    """One vector or rows of them, as float32[n, numbers].

    Raises
    ------
    ValueError
        If they are no vectors, or hold NaN or infinity.
    """
    rows = np.atleast_2d(given)
    if rows.ndim != 2 or rows.dtype.kind not in "fiu" or rows.shape[1] == 0:
        shape = ", ".join(map(str, given.shape))
        raise ValueError(f"expected vectors, float32[n, numbers]; got {given.dtype}[{shape}]")
    found = rows.astype(np.float32)
    if not np.isfinite(found).all():
        raise ValueError("expected vectors of finite numbers, got NaN or infinity")
    return found


def unit_rows(rows: F32) -> F32:
    """Rows divided by their lengths."""
    lengths = np.sqrt(_sums(np.square(rows, dtype=np.float64)))
    return (rows / np.maximum(lengths, SMALLEST)[:, None]).astype(np.float32)


def similarities(a: F32, b: F32, kind: str) -> F32:
    """How alike vectors are, float32[len(a), len(b)]; of distances the negative."""
    if kind == "cosine":
        a, b = unit_rows(a), unit_rows(b)
    if kind in ("cosine", "dot"):
        return _products(a, b)
    out = np.empty((len(a), len(b)), np.float32)
    for i, row in enumerate(a):
        gaps = row - b.astype(np.float64)
        if kind == "euclidean":
            out[i] = -np.sqrt(_sums(np.square(gaps)))
        else:
            out[i] = -_sums(np.abs(gaps))
    return out


def _products(a: F32, b: F32) -> F32:
    """a @ b.T, by our own kernels."""
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)), np.float32)
    rows = np.ascontiguousarray(b, np.float32)
    n, k = rows.shape
    matrix = _native.Matrix.pack("f32", rows.reshape(-1).view(np.uint8), n, k, "f32")
    return matrix.matmul(np.ascontiguousarray(a, np.float32))


def _sums(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Sums of rows, from the first column to the last."""
    # A running sum has an order; a plain one is cut into pieces that depend on the CPU.
    return np.asarray(np.cumsum(rows, axis=1, dtype=np.float64)[:, -1])
