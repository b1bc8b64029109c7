"""Mixtures of experts, as steps take them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slmq.plan.linear import Linear

__all__ = ["Experts", "Routing"]

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Routing:
    """How the experts of a row are found, and what each counts.

    Attributes
    ----------
    top_k : int
        Experts of a row: those of the largest scores, of equal ones the lower numbers.
    scores : {"softmax", "sigmoid", "chosen"}
        Scores, which are the weights, too, are the softmax of all logits or their sigmoid. Or they
        are the logits, and the weights the softmax of those that were chosen.
    normalized : bool
        Weights are divided by their sum and `eps`.
    eps : float
    scale : float
        What weights are multiplied with at last.
    bias : float32[experts], optional
        What is added to scores where experts are chosen.
    """

    top_k: int
    scores: str = "softmax"
    normalized: bool = False
    eps: float = 0.0
    scale: float = 1.0
    bias: F32 | None = None


@dataclass(frozen=True)
class Experts:
    """The matrices of a layer's experts, in order.

    Attributes
    ----------
    gate, up, down : tuple of Linear
    limit, alpha : float
        With a limit, an expert's values in the middle are g sigmoid(alpha g) (u + 1), g being the
        gate's, at most the limit, and u the other's, within it on either side.
    """

    gate: tuple[Linear, ...]
    up: tuple[Linear, ...]
    down: tuple[Linear, ...]
    limit: float = 0.0
    alpha: float = 1.0

    @property
    def matrices(self) -> list[Linear]:
        """All of them."""
        return [*self.gate, *self.up, *self.down]
