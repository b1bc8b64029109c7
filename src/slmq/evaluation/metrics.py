"""Numbers with their standard errors.

Every error treats tokens or items as independent draws, as other tools do; neighbouring tokens
are not quite, so differences of less than two errors say nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Metric", "exp_of_mean", "mean", "root_of_mean"]


@dataclass(frozen=True)
class Metric:
    """A measured number.

    Attributes
    ----------
    value : float
    standard_error : float or None
        None where it says nothing: for a single item, for a quantile.
    """

    value: float
    standard_error: float | None

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" +- {self.standard_error:.4f}"
        return f"{self.value:.4f}{error}"


def mean(values: npt.ArrayLike) -> Metric:
    """The mean, and the deviation of the sample (over n - 1) over the root of n."""
    sample = np.asarray(values, np.float64)
    if len(sample) < 2:
        return Metric(float(sample.mean()), None)
    return Metric(float(sample.mean()), math.sqrt(sample.var() / (len(sample) - 1)))


def exp_of_mean(values: npt.ArrayLike) -> Metric:
    """exp of the mean; the error of the mean times it (first order)."""
    inner = mean(values)
    value = math.exp(inner.value)
    return Metric(value, None if inner.standard_error is None else value * inner.standard_error)


def root_of_mean(values: npt.ArrayLike) -> Metric:
    """The root of the mean of squares that are given; its error to first order."""
    inner = mean(values)
    value = math.sqrt(inner.value)
    if inner.standard_error is None or value == 0:
        return Metric(value, None)
    return Metric(value, inner.standard_error / (2 * value))
