"""Ways to round one matrix.

All that decides a stored byte is computed by our own kernels in one fixed order
(`kernels/round_*.inl.h`), or element by element: never by a library's matrix product.
"""

from __future__ import annotations

from weakref import ReferenceType, ref

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.machine.exact import ordered_sum
from slmq.quantizer.calibration import Moments
from slmq.quantizer.grids import GRIDS, MULTIPLES, Grid, Rounded

__all__ = [
    "METHODS",
    "Inputs",
    "OutputErrors",
    "relative_error",
    "round_searched",
    "round_with",
]

METHODS = ("rtn", "weighted", "feedback")  # of a matrix; "rescaled" is one of an input
DAMPING = 0.01  # of the mean diagonal, added to it: what the text did not show may come, too

SWEEPS = 2  # of refinement
SMALLEST_HALF = np.float32(2**-24)

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


class Inputs:
    """An input of matrices, as methods need it; what is costly is computed once.

    Parameters
    ----------
    moments : Moments
    threads : int
    """

    def __init__(self, moments: Moments, threads: int) -> None:
        self.moments = moments
        self.importance = moments.importance
        self._threads = threads
        self._factors: _native.Factors | None = None
        self._gram: F32 | None = None
        self._units: tuple[ReferenceType[F32], str, _native.Units] | None = None
        self._test: _native.Matrix | None = None

    def factors(self) -> _native.Factors:
        """The coupling float32[k, k] and weight float32[k] of `rounding.h`."""
        if self._factors is None:
            gram = self.moments.gram.copy()
            gram[np.diag_indices_from(gram)] = self._diagonal()
            self._factors = _native.factorize(gram, self._threads)
        return self._factors

    def damped(self) -> F32:
        """The second moments, with something added to the diagonal: float32[k, k]."""
        if self._gram is None:
            self._gram = self.moments.gram.astype(np.float32)
            self._gram[np.diag_indices_from(self._gram)] = self._diagonal()
        return self._gram

    def units(self, w: F32, fmt: str) -> _native.Units | None:
        """What groups share in a format of two levels, for weighted rounding; kept for the next
        method that rounds the same matrix."""
        if GRIDS[fmt].stored != MULTIPLES:
            return None
        if self._units is None or self._units[0]() is not w or self._units[1] != fmt:
            units = _searched_units(w, fmt, self.importance, self._threads)
            self._units = ref(w), fmt, units
        return self._units[2]

    def outputs(self, w: F32) -> F32:
        """What a matrix [n, k] makes of the rows that errors are measured on: float32[n, rows]."""
        if self._test is None:
            x = self.moments.test
            raw = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
            shape = (len(x), x.shape[1])
            self._test = _native.Matrix.pack("f32", raw, *shape, "f32", None, None, self._threads)
        return self._test.matmul(w, self._threads)

    def _diagonal(self) -> npt.NDArray[np.float64]:
        diagonal = np.diagonal(self.moments.gram)
        mean = ordered_sum(diagonal) / len(diagonal)
        damped: npt.NDArray[np.float64] = diagonal + (DAMPING * mean if mean > 0 else 1.0)
        return damped


def round_with(
    method: str, w: F32, fmt: str, inputs: Inputs | F32 | None, *, threads: int = 1
) -> Rounded:
    """Round a matrix by one of `METHODS`; all but "rtn" need what its input is like.

    `inputs` may be no more than the importance of columns, float32[k]: the method is "weighted".

    Raises
    ------
    ValueError
        A scale does not fit float16.
    """
    if isinstance(inputs, np.ndarray):
        return round_searched(w, fmt, inputs, threads=threads)
    if method == "rtn" or inputs is None:
        return round_searched(w, fmt, threads=threads)
    if method == "weighted":
        units = inputs.units(w, fmt)
        return _search(w, fmt, inputs.importance, units, threads)
    return _round_with_feedback(w, fmt, inputs, threads)


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
    units = None
    if GRIDS[fmt].stored == MULTIPLES:
        units = _searched_units(w, fmt, importance, threads)
    return _search(w, fmt, importance, units, threads)


def _search(
    w: F32, fmt: str, importance: F32 | None, units: _native.Units | None, threads: int
) -> Rounded:
    found = _native.search_scales(w, importance, GRIDS[fmt].groups, units, threads)
    return Rounded(fmt, found.codes, found.scales, found.mins, units)


def _searched_units(w: F32, fmt: str, importance: F32 | None, threads: int) -> _native.Units:
    """Those of scales (and mins) that are searched as if each could be stored."""
    grid = GRIDS[fmt]
    return _units(grid, _native.search_scales(w, importance, grid.groups, None, threads))


def _round_with_feedback(w: F32, fmt: str, inputs: Inputs, threads: int) -> Rounded:
    grid = GRIDS[fmt]
    units = inputs.units(w, fmt)  # of groups that are rounded one after another
    found = _native.round_with_feedback(w, inputs.factors(), grid.groups, units, threads)
    found = _native.refine_rounding(w, found, inputs.damped(), grid.groups, units, SWEEPS, threads)
    return Rounded(fmt, found.codes, found.scales, found.mins, units)


def _units(grid: Grid, found: _native.Rounding) -> _native.Units:
    """d and dmin of every 256 columns, or of rows: float32[n, units], values that float16 holds."""
    n, groups = found.scales.shape
    lows = np.zeros_like(found.mins) if grid.values else -found.mins
    largest = np.abs(found.scales).reshape(n, -1, grid.per_unit(groups)).max(-1)
    lowest = lows.reshape(n, -1, grid.per_unit(groups)).max(-1)
    d, dmin = (
        (value / np.float32(grid.largest_scale)).astype(np.float16).astype(np.float32)
        for value in (largest, lowest)
    )
    return _native.Units(d=np.maximum(d, SMALLEST_HALF), dmin=dmin)


class OutputErrors:
    """How far roundings of one matrix change its outputs.

    Parameters
    ----------
    w : float32[n, k]
    inputs : Inputs
    """

    def __init__(self, w: F32, inputs: Inputs) -> None:
        self._w, self._inputs = w, inputs
        self._exact = _squares(inputs.outputs(w))

    def of(self, rounded: F32) -> float:
        """Squared error of the outputs over their squares."""
        if self._exact <= 0:
            return 0.0
        return _squares(self._inputs.outputs(self._w - rounded)) / self._exact


def relative_error(w: F32, rounded: F32, importance: F32 | None = None) -> float:
    """Squared error of the weights over their squares; columns count by their importance."""
    root = None if importance is None else np.sqrt(importance)
    exact = _squares(w if root is None else w * root)
    error = w - rounded
    return _squares(error if root is None else error * root) / exact if exact > 0 else 0.0


def _squares(values: F32) -> float:
    return ordered_sum(np.square(values, dtype=np.float64).reshape(-1))
