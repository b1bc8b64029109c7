"""How long a run takes: a model fitted to the runs that were seen.

t = a + b rows + c positions + d outputs: reading the weights once; multiplying every row with them;
reading the cached positions that rows attend to; the output head. All four are at least 0. They are
fitted by recursive least squares with forgetting (Ljung, "System Identification", 1999, section
11.2), so a neighbour who comes or goes is noticed within some dozens of runs.
"""

from __future__ import annotations

import numpy as np

__all__ = ["CostModel", "Work"]

FORGET = 0.98
POSITIONS = 1024.0  # the unit of positions, so that all four terms are of one size


class Work:
    """What a run does: rows, cached positions that they read, and rows of logits."""

    __slots__ = ("outputs", "positions", "rows")

    def __init__(self, rows: int = 0, positions: int = 0, outputs: int = 0) -> None:
        self.rows = rows
        self.positions = positions
        self.outputs = outputs

    def add(self, rows: int, cached: int, outputs: int) -> None:
        """Count `rows` more tokens of a sequence that holds `cached` already."""
        self.rows += rows
        self.positions += rows * cached + rows * (rows + 1) // 2
        self.outputs += outputs


class CostModel:
    """Seconds of a run, from what it does."""

    def __init__(self) -> None:
        # A guess to begin with, of a model of some hundred million weights; the first runs mend it.
        self._terms = np.array([4e-3, 8e-4, 5e-5, 2e-4])
        self._spread = np.diag(self._terms**2) * 25.0
        self.runs = 0

    def seconds(self, work: Work) -> float:
        """How long a run is expected to take."""
        return float(self._terms @ _features(work))

    @property
    def step_s(self) -> float:
        """Seconds of a run beside its rows."""
        return float(self._terms[0])

    @property
    def row_s(self) -> float:
        """Seconds that one more row takes, with its logits."""
        return float(self._terms[1] + self._terms[3])

    def rows_within(self, budget_s: float, work: Work, cached: int) -> int:
        """How many more rows of a sequence that holds `cached` tokens fit into a run of `budget_s`.

        Solves the quadratic that rows, each reading all before it, add to what `work` takes.
        """
        left = budget_s - self.seconds(work)
        if left <= 0:
            return 0
        _, row, position, _ = self._terms
        per_pair = position / POSITIONS / 2
        linear = row + position / POSITIONS * (cached + 0.5)
        if per_pair <= 0:
            return int(left / linear) if linear > 0 else 1 << 30
        root = np.sqrt(linear * linear + 4 * per_pair * left)
        return int((root - linear) / (2 * per_pair))

    def learn(self, work: Work, seconds: float) -> None:
        """Take a run into account."""
        x = _features(work)
        # Runs are unequal in length: errors count as shares of what was expected.
        scale = 1.0 / max(float(self._terms @ x), 1e-5)
        x = x * scale
        gain = self._spread @ x / (FORGET + x @ self._spread @ x)
        error = seconds * scale - float(self._terms @ x)
        # One run that lost its cores must not turn everything over.
        self._terms = np.maximum(self._terms + gain * float(np.clip(error, -1.0, 1.0)), 0.0)
        self._terms[1] = max(self._terms[1], 1e-7)
        self._spread = (self._spread - np.outer(gain, x @ self._spread)) / FORGET
        # What the runs say nothing about (decoding alone never varies) must not drift without end.
        bound = 25.0 * np.maximum(self._terms, 1e-6) ** 2
        excess = np.sqrt(np.minimum(1.0, bound / np.maximum(np.diag(self._spread), 1e-30)))
        self._spread *= np.outer(excess, excess)
        self.runs += 1


def _features(work: Work) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([1.0, work.rows, work.positions / POSITIONS, work.outputs])
