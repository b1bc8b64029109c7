"""Elementary functions in float64 that give the same bits on every machine.

The C library's own differ in the last bit from one system to the next, and NumPy's from one CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from slmq._native import exact_exp, exact_log, exact_pow, exact_sincos

__all__ = ["exact_each", "exact_exp", "exact_log", "exact_pow", "exact_sincos", "ordered_sum"]

F32 = npt.NDArray[np.float32]


def exact_each(function: Callable[[float], float], values: F32) -> F32:
    """A function of every value of a float32 array of any shape, rounded to float32."""
    found = [function(one) for one in values.reshape(-1).tolist()]
    return np.array(found, np.float32).reshape(values.shape)


def ordered_sum(values: npt.NDArray[np.float64]) -> float:
    """The sum of float64[n] in the order of the values: that of a library would follow the CPU."""
    return float(np.add.accumulate(values)[-1]) if len(values) else 0.0
