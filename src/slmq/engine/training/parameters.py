"""What a run trains: a vector of numbers, whatever they are of a model."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from slmq.engine.training.tape import Tape

__all__ = ["Parameters"]

F32 = npt.NDArray[np.float32]


class Parameters(Protocol):
    """All that is trained, so that an optimizer and a checkpoint need not know what it is."""

    values: F32
    slopes: F32

    @property
    def count(self) -> int:
        """Trained parameters; the vectors may be longer, with zeros that stay zero."""

    @property
    def modules(self) -> list[str]:
        """What is trained, in the order of the vectors."""

    def attach(self, tape: Tape) -> None:
        """Give the steps of a model what they train, and where its gradients go."""

    def turn(self) -> None:
        """Bring copies up to date, after the values were changed."""
