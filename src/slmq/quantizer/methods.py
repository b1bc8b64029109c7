"""Ways to round one matrix.

All that decides a stored byte is computed by our own code in one fixed order (`quantizer/search.h`,
`quantizer/feedback.h`), or element by element: never by a library's matrix product.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slmq import _native
from slmq.quantizer.grids import GRIDS, Rounded

__all__ = ["round_searched"]

F32 = npt.NDArray[np.float32]


def round_searched(w: F32, fmt: str, importance: F32 | None = None, *, threads: int = 1) -> Rounded:
    """Round to nearest, with scales (and mins) searched for the least squared error of a group.

    Parameters
    ----------
    w : float32[n, k]
    fmt : str
        One of `GRIDS`.
    importance : float32[k], optional
        Weights of the columns' squared errors: the mean square of each input. None: all alike.
    threads : int

    Raises
    ------
    ValueError
        A scale does not fit float16.
    """
    grid = GRIDS[fmt]
    codes, scales, mins = _native.search_scales(
        w, importance, grid.columns, grid.low, grid.high, grid.zero, grid.has_min, threads
    )
    return Rounded(fmt, codes, scales, mins)
