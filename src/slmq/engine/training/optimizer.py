"""AdamW with its schedule (Loshchilov and Hutter, 2019), in float32 and the same on every CPU.

Its float32 sums, products, quotients and roots are each rounded once, in whatever vectors they are
computed, and no sum is over many values but that of `clip`, whose order is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.machine.exact import exact_sincos

__all__ = ["AdamW", "Schedule", "clip"]

F32 = npt.NDArray[np.float32]
PI = 3.141592653589793


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step.

    Attributes
    ----------
    kind : {"constant", "linear", "cosine"}
        Behind the warm-up it stays, or falls to 0 along a line or half a wave.
    rate : float
        The highest.
    warmup : int
        Steps on the way up to it.
    steps : int
        All of them.
    """

    kind: str
    rate: float
    warmup: int
    steps: int

    def at(self, step: int) -> float:
        """The rate of step `step` = 0, 1, ..., steps - 1: transformers' schedules."""
        if step < self.warmup:
            return self.rate * step / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.kind == "linear":
            return self.rate * max(0.0, 1.0 - done)
        if self.kind == "cosine":
            return self.rate * max(0.0, 0.5 * (1.0 + exact_sincos(PI * done)[1]))
        return self.rate


class AdamW:
    """Moments of the gradients of one vector of parameters.

    Parameters
    ----------
    operators : _native.Operators
    count : int
    betas, eps, weight_decay
        As of PyTorch's, whose operations it has, one by one, in float32. All parameters decay.

    Attributes
    ----------
    mean, square : float32[parameters]
        First and second moments.
    step : int
        Updates that were made.
    """

    def __init__(
        self,
        operators: _native.Operators,
        count: int,
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        # Written, not only promised by the system: a forecast looks at the memory that is held.
        self.mean = np.full(count, 0.0, np.float32)
        self.square = np.full(count, 0.0, np.float32)
        self.step = 0
        self._operators = operators
        self._betas = betas
        self._eps = eps
        self._decay = weight_decay

    def update(self, values: F32, slopes: F32, rate: float) -> None:
        """One step down the gradient."""
        self.step += 1
        first, second = self._betas
        corrections = [1.0 - _power(beta, self.step) for beta in self._betas]
        self._operators.adam(
            values,
            slopes,
            self.mean,
            self.square,
            (
                1.0 - rate * self._decay,
                1.0 - first,
                1.0 - second,
                second,
                rate / corrections[0],
                float(np.sqrt(corrections[1])),
                self._eps,
            ),
        )


def clip(slopes: F32, most: float) -> float:
    """Scale a gradient to a norm of at most `most` (0: as it is); returns the norm before."""
    norm = float(np.sqrt(_native.sum_of_squares(slopes)))
    if most > 0 and norm > most:
        np.multiply(slopes, np.float32(most / (norm + 1e-6)), out=slopes)
    return norm


def _power(base: float, n: int) -> float:
    """base ** n by products alone, which every machine rounds alike."""
    result = 1.0
    while n:
        if n & 1:
            result *= base
        base *= base
        n >>= 1
    return result
