"""Channel scales: what weights are multiplied by and the norm before them is divided by.

A column that is multiplied by a scale is rounded as finely as before relative to its group, and its
error is divided by the scale again: channels with large inputs gain, the others pay (Lin et al.,
"AWQ", 2023). Powers of the inputs' root mean square are tried.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slmq.machine.exact import ordered_sum
from slmq.quantizer.calibration import Moments

__all__ = ["channel_scales"]

SMALLEST = 1e-3  # of the largest root mean square: a channel that is hardly used stays as it is

F32 = npt.NDArray[np.float32]


def channel_scales(moments: Moments) -> list[F32]:
    """Scales to be tried, float32[k] each: the power 1/4 and the power 1/2, with a mean of one.

    Only square roots are taken, which are the same everywhere.
    """
    size = np.sqrt(np.diagonal(moments.gram))
    largest = size.max()
    if not largest > 0:
        return []
    found = []
    scales = np.maximum(size, SMALLEST * largest)
    for _ in range(2):
        scales = np.sqrt(scales)
        mean = ordered_sum(scales) / len(scales)
        found.append((scales / mean).astype(np.float32))
    return found[::-1]
