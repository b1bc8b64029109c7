"""Elementary functions in float64 that give the same bits on every machine.

The C library's own differ in the last bit from one system to the next, and NumPy's from one CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from slmq._native import exact_exp, exact_log, exact_pow, exact_sincos

__all__ = ["exact_each", "exact_exp", "exact_log", "exact_pow", "exact_sincos"]

F32 = npt.NDArray[np.float32]


def exact_each(function: Callable[[float], float], values: F32) -> F32:
    """A function of every value, rounded to float32."""
    found = [function(one) for one in values.reshape(-1).tolist()]
    return np.array(found, np.float32).reshape(values.shape)
