"""Rows of a stored matrix that are a weight of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """A weight that is some rows of a stored matrix, as q is of a fused q/k/v.

    Attributes
    ----------
    first : int
        Its first row in the stored matrix.
    stored : int
        Rows of the stored matrix.
    heads : int
        If not 0, a folder of safetensors stores all parts of a head together (say q, k and v),
        then those of the next head, so many of them.
    transposed : bool
        A folder of safetensors stores the matrix as [k, stored].
    everywhere : bool
        A GGUF file stores the heads together, too.
    """

    first: int
    stored: int
    heads: int = 0
    transposed: bool = False
    everywhere: bool = False

    def name(self, name: str, n: int) -> str:
        """The name of these `n` rows in a folder of packed weights, where they lie alone."""
        return name if n == self.stored else f"{name}[{self.first}:{self.first + n}]"

    def of(self, values: Array, n: int) -> Array:
        """These `n` rows of an array [stored, ...] that a folder of safetensors holds."""
        if self.heads == 0:
            return values[self.first : self.first + n]
        by_head = values.reshape(self.heads, self.stored // n, -1, *values.shape[1:])
        return np.ascontiguousarray(by_head[:, self.first // n].reshape(n, *values.shape[1:]))

    def whole(self, parts: list[Array]) -> Array:
        """All rows of these parts, in order, as a folder of safetensors holds them."""
        if self.heads != 0:
            by_head = [part.reshape(self.heads, -1, *part.shape[1:]) for part in parts]
            values = np.concatenate(by_head, axis=1).reshape(self.stored, *parts[0].shape[1:])
        else:
            values = np.concatenate(parts)
        return values.T if self.transposed and values.ndim == 2 else values
