"""What a family asks its weights of, whatever stands behind it: a file, a note, random numbers."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from slmq.checkpoint.base import Layout
from slmq.plan.linear import Linear
from slmq.weights.rows import Rows

__all__ = ["Reader"]


class Reader(Protocol):
    """Weights by their Hugging Face names. `r` in model files."""

    @property
    def layout(self) -> Layout:
        """How tensors are named where they are stored, and how their values lie."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""

    def bias(self, name: str, announced: bool) -> str | None:
        """The name of a bias where there is one, None where there is none.

        `announced`: whether the configuration speaks of it. What is stored counts, and a warning
        says where the two disagree.
        """

    def own_head(self, name: str, embed: str, tied: bool) -> bool:
        """Whether the output head is a tensor of its own, and not the embedding.

        `tied`: whether the configuration says that it is the embedding. A stored head that differs
        counts, and a warning says where the two disagree.
        """

    def vector(
        self, name: str, size: int, *, columns: int = 0, whole: bool = False
    ) -> npt.NDArray[np.float32]:
        """A float32[size] tensor: a norm or a bias; if `whole` it may be stored as integers.

        With `columns` it is stored as rows of so many: the taps of a convolution, as
        [channels, taps] or [channels, 1, taps].

        Raises
        ------
        CheckpointError
            If it is missing, has another shape or type, or holds NaN or infinity.
        """

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
        """A weight [n, k], with its bias if one is named.

        Parameters
        ----------
        order : int32[n], optional
            Row r of the weight is row order[r] of what is stored.
        rows : Rows, optional
            The weight is some rows of a stored matrix of `rows.stored` rows.
        floats : bool
            It stays what it is where others become integers: positions, which are added.

        Raises
        ------
        CheckpointError
            If it is missing, has another shape or type, or holds NaN or infinity.
        """

    def table(self, name: str, n: int, k: int) -> Linear:
        """A table [n, k] of which a run reads the rows of its tokens.

        Where it can, it stays in its file, mapped, whatever other weights become: only `embed`
        takes it. What it holds is first looked at when it is used.

        Raises
        ------
        CheckpointError
            If it is missing, or has another shape or type.
        """
