"""Logistic regression on some thousand vectors: fitted, cross-validated and calibrated in seconds.

Weights are found by L-BFGS (Liu and Nocedal, 1989) and need not have the same bits on every CPU;
what a finished head computes has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
TEMPERATURES = np.exp(np.linspace(np.log(0.2), np.log(5), 201))


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
        return np.asarray(x @ self.weights.T + self.bias)


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
    rows, columns = x.shape
    wanted = np.eye(classes)[y]
    shape = (classes, columns + 1)

    def cost(flat: F64) -> tuple[float, F64]:
        theta = flat.reshape(shape)
        logits = x @ theta[:, :-1].T + theta[:, -1]
        logits -= logits.max(axis=1, keepdims=True)
        powers = np.exp(logits)
        sums = powers.sum(axis=1, keepdims=True)
        loss = float((np.log(sums[:, 0]) - (logits * wanted).sum(axis=1)).mean())
        gap = (powers / sums - wanted) / rows
        slope = np.empty(shape)
        slope[:, :-1] = gap.T @ x + penalty * theta[:, :-1]
        slope[:, -1] = gap.sum(axis=0)
        return loss + penalty / 2 * float((theta[:, :-1] ** 2).sum()), slope.reshape(-1)

    begin = np.zeros(shape)
    if start is not None:
        begin = np.concatenate([start.weights, start.bias[:, None]], axis=1)
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
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def calibration_error(sure: F64, right: npt.NDArray[np.bool_]) -> float:
    """By how much confidence and accuracy differ, in ten bins of equal width, weighted."""
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [
        (bins == b).mean() * abs(sure[bins == b].mean() - right[bins == b].mean())
        for b in np.unique(bins)
    ]
    return float(sum(gaps))


def _loss(logits: F64, y: I64) -> float:
    top = logits.max(axis=1)
    sums = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
    return float((sums - logits[np.arange(len(y)), y]).mean())


def _minimum(cost: Callable[[F64], tuple[float, F64]], at: F64, tolerance: float) -> F64:
    """Where a smooth convex function is least, by L-BFGS."""
    value, slope = cost(at)
    steps: list[tuple[F64, F64]] = []  # of the point and of the slope
    for _ in range(MOST_STEPS):
        if np.abs(slope).max() < tolerance:
            break
        way = _direction(slope, steps)
        length, fall = 1.0 if steps else 1 / max(1.0, float(np.linalg.norm(slope))), slope @ way
        while True:
            there = at + length * way
            next_value, next_slope = cost(there)
            if next_value <= value + 1e-4 * length * fall or length < 1e-12:
                break
            length /= 2
        if next_value >= value:
            break
        moved, turned = there - at, next_slope - slope
        if moved @ turned > 0:
            steps = [*steps[1 - MEMORY :], (moved, turned)]
        at, value, slope = there, next_value, next_slope
    return at


def _direction(slope: F64, steps: list[tuple[F64, F64]]) -> F64:
    way = -slope
    held = []
    for moved, turned in reversed(steps):
        share = (moved @ way) / (moved @ turned)
        way = way - share * turned
        held.append(share)
    if steps:
        moved, turned = steps[-1]
        way = way * ((moved @ turned) / (turned @ turned))
    for (moved, turned), share in zip(steps, reversed(held), strict=True):
        way = way + (share - (turned @ way) / (moved @ turned)) * moved
    return way
