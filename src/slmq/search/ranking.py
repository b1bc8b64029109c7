"""Two searches made into one ranking, each counted as far as it is sure of itself.

Vectors are sure if the best cosine stands out: by more than the largest of so many random numbers
would. An encoder that does not know the language, or a question about nothing in particular, gives
cosines that do not. Words are sure if one passage has clearly more of them than the others: of
what half an article has, they say little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from slmq.machine.exact import exact_log

__all__ = ["fused", "share_of"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
# What words count beside vectors when both are as sure as can be; anything from 0.1 to 0.3 does.
WORDS = 0.15
LEAST = 1e-9  # what is divided by


def fused(
    cosines: F32, at: npt.NDArray[np.int64], numbers: Sequence[int], shares: Sequence[float]
) -> F64:
    """Scores of some passages, 1 for what is best in everything that counts: float64[len(at)].

    Parameters
    ----------
    cosines : float32[n]
        Of all passages.
    at : int64[m]
        Where those that are ranked stand among them.
    numbers : sequence of int
        Theirs; neighbours have sentences in common.
    shares : sequence of float
        What they have of the query's words, weighed by how rare they are: 1 is all.
    """
    values = cosines.astype(np.float64)
    # A running sum has an order; a plain one depends on the CPU.
    mean = float(np.cumsum(values)[-1]) / len(values)
    spread = math.sqrt(float(np.cumsum(np.square(values - mean))[-1]) / len(values))
    above = float(values.max()) - mean
    chance = max(math.sqrt(2 * exact_log(len(values))), LEAST)
    sure = max(0.0, above / max(spread, LEAST) / chance - 1)
    first = max(range(len(shares)), key=lambda i: (shares[i], -i))
    others = [s for s, n in zip(shares, numbers, strict=True) if abs(n - numbers[first]) > 1]
    most = max(shares[first], LEAST)
    lead = WORDS * (shares[first] - max(others, default=0.0)) / most
    near, has = (values[at] - mean) / max(above, LEAST), np.array(shares) / most
    return np.asarray((sure * near + lead * has) / max(sure + lead, LEAST))


def share_of(score: float, worth: float) -> float:
    """The share of a query's words, given BM25 and that of a passage that has all of them once."""
    return min(1.0, score / worth) if worth > 0 else 0.0
