"""Logistic regression on some thousand vectors: fitted, cross-validated and calibrated in seconds.

Weights are found by L-BFGS (Liu and Nocedal, 1989). Costs, slopes and products are summed in a
written order, without a library whose sums follow the CPU: a head has the same bits everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.machine.exact import exact_exp, ordered_sum

__all__ = [
    "Fitted",
    "Validated",
    "calibration_error",
    "cross_validated",
    "fit_logistic",
    "folds_of",
]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
PENALTIES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)  # of half the squared weights
FOLDS = 5
MEMORY = 10  # steps that L-BFGS remembers
MOST_STEPS = 200
TOLERANCE, ROUGH = 1e-5, 1e-4  # of the largest slope; rough to compare penalties
PATIENCE = 2  # penalties in a row that are worse than the best: smaller ones will be, too
BINS = 10
LOG_25 = 3.2188758248682006
TEMPERATURES = tuple(0.2 * exact_exp(i * LOG_25 / 200) for i in range(201))  # up to 5


@dataclass(frozen=True)
class Fitted:
    """Weights of a head.

    Attributes
    ----------
    weights : float64[classes, columns]
    bias : float64[classes]
    """

    weights: F64
    bias: F64

    def logits(self, x: F64) -> F64:
        """Scores of rows: float64[rows, classes]."""
        if not len(x):
            return np.zeros((0, len(self.bias)))
        rows = _native.Regression(x, [0] * len(x), len(self.bias))
        return np.ascontiguousarray(rows.scores(self.flat()).T)

    def flat(self) -> F64:
        """Weights with the bias as their last column: float64[classes, columns + 1]."""
        return np.concatenate([self.weights, self.bias[:, None]], axis=1)


@dataclass(frozen=True)
class Validated:
    """What cross-validation found.

    Attributes
    ----------
    penalty : float
        The best one.
    temperature : float
        By which logits are divided, so that probabilities are what they say.
    probabilities : float64[rows, classes]
        Of rows that were not trained on.
    accuracy, log_loss, calibration_error : float
        On those.
    """

    penalty: float
    temperature: float
    probabilities: F64
    accuracy: float
    log_loss: float
    calibration_error: float


def fit_logistic(
    x: F64,
    y: I64,
    classes: int,
    penalty: float,
    *,
    start: Fitted | None = None,
    tolerance: float = TOLERANCE,
) -> Fitted:
    """Fit a multinomial logistic regression; the bias bears no penalty.

    Parameters
    ----------
    x : float64[rows, columns]
    y : int64[rows]
        0 <= y < classes.
    classes : int
    penalty : float
    start : Fitted, optional
        Where to begin: weights for another penalty save most of the steps.
    tolerance : float
        Of the slope.
    """
    rows = _native.Regression(x, y.tolist(), classes)
    shape = (classes, x.shape[1] + 1)

    def cost(flat: F64) -> tuple[float, F64]:
        value, slope = rows.cost(flat.reshape(shape), penalty)
        return value, slope.reshape(-1)

    begin = np.zeros(shape) if start is None else start.flat()
    found = _minimum(cost, begin.reshape(-1), tolerance).reshape(shape)
    return Fitted(found[:, :-1].copy(), found[:, -1].copy())


def cross_validated(
    x: F64,
    y: I64,
    classes: int,
    *,
    penalties: tuple[float, ...] = PENALTIES,
    folds: I64 | None = None,
) -> Validated:
    """Choose a penalty and a temperature by rows that were left out.

    `folds` says to which part each row belongs; None makes five of equal mixtures.
    """
    parts = folds_of(y) if folds is None else folds
    held = [parts == part for part in np.unique(parts)]
    fits: list[Fitted | None] = [None] * len(held)
    best: tuple[float, float, F64] | None = None
    worse = 0
    for penalty in sorted(penalties, reverse=True):
        logits = np.zeros((len(y), classes))
        for i, out in enumerate(held):
            fitted = fit_logistic(
                x[~out], y[~out], classes, penalty, start=fits[i], tolerance=ROUGH
            )
            logits[out], fits[i] = fitted.logits(x[out]), fitted
        loss = _loss(logits, y)
        if best is None or loss < best[0]:
            best, worse = (loss, penalty, logits), 0
        else:
            worse += 1
        if worse == PATIENCE:
            break
    assert best is not None
    _, penalty, logits = best
    losses = [_loss(logits / t, y) for t in TEMPERATURES]
    temperature = float(TEMPERATURES[int(np.argmin(losses))])
    likely = probabilities_of(logits / temperature)
    right = likely.argmax(axis=1) == y
    return Validated(
        penalty,
        temperature,
        likely,
        float(right.mean()),
        min(losses),
        calibration_error(likely.max(axis=1), right),
    )


def folds_of(y: I64, count: int = FOLDS) -> I64:
    """The part that each row belongs to: classes are dealt out evenly, in a fixed shuffle."""
    order = np.random.default_rng(0).permutation(len(y))
    parts = np.empty(len(y), np.int64)
    dealt = order[np.argsort(y[order], kind="stable")]
    parts[dealt] = np.arange(len(y)) % count
    return parts


def probabilities_of(logits: F64) -> F64:
    """The softmax of rows."""
    found = _native.log_probabilities(logits)
    return np.array([[exact_exp(one) for one in row] for row in found.tolist()])


def calibration_error(sure: F64, right: npt.NDArray[np.bool_]) -> float:
    """By how much confidence and accuracy differ, in ten bins of equal width, weighted."""
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [
        (bins == b).mean() * abs(sure[bins == b].mean() - right[bins == b].mean())
        for b in np.unique(bins)
    ]
    return float(sum(gaps))


def _loss(logits: F64, y: I64) -> float:
    right = _native.log_probabilities(logits)[np.arange(len(y)), y]
    return -ordered_sum(right) / len(y)


def _dot(a: F64, b: F64) -> float:
    return ordered_sum(a * b)


def _minimum(cost: Callable[[F64], tuple[float, F64]], at: F64, tolerance: float) -> F64:
    """Where a smooth convex function is least, by L-BFGS."""
    value, slope = cost(at)
    steps: list[tuple[F64, F64]] = []  # of the point and of the slope
    for _ in range(MOST_STEPS):
        if np.abs(slope).max() < tolerance:
            break
        way = _direction(slope, steps)
        length = 1.0 if steps else 1 / max(1.0, math.sqrt(_dot(slope, slope)))
        fall = _dot(slope, way)
        while True:
            there = at + length * way
            next_value, next_slope = cost(there)
            if next_value <= value + 1e-4 * length * fall or length < 1e-12:
                break
            length /= 2
        if next_value >= value:
            break
        moved, turned = there - at, next_slope - slope
        if _dot(moved, turned) > 0:
            steps = [*steps[1 - MEMORY :], (moved, turned)]
        at, value, slope = there, next_value, next_slope
    return at


def _direction(slope: F64, steps: list[tuple[F64, F64]]) -> F64:
    way = -slope
    held = []
    for moved, turned in reversed(steps):
        share = _dot(moved, way) / _dot(moved, turned)
        way = way - share * turned
        held.append(share)
    if steps:
        moved, turned = steps[-1]
        way = way * (_dot(moved, turned) / _dot(turned, turned))
    for (moved, turned), share in zip(steps, reversed(held), strict=True):
        way = way + (share - _dot(turned, way) / _dot(moved, turned)) * moved
    return way
