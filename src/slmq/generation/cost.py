"""How long a run takes: a model fitted to the runs that were seen.

t = a + b rows + c positions + d outputs: reading the weights once; multiplying every row with them;
reading the cached positions that rows attend to; the output head. All four are at least 0. They are
fitted by recursive least squares with forgetting, so a neighbour who comes or goes is noticed
within some dozens of runs. Only that is forgotten of which a run tells anything new (Cao and
Schwartz, "A directional forgetting algorithm", 2000): decoding for hours does not blur what a
prompt takes.
"""

from __future__ import annotations

import numpy as np

__all__ = ["CostModel", "Work"]

FORGET = 0.98
LEAST_KNOWN = 1e-6  # in all directions: rounding must not make anything less than nothing
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
        self._units = self._terms.copy()
        self._known = np.eye(4) / 25.0  # the information matrix, in these units
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
        expected_s = float(self._terms @ x)
        scale = 1.0 / max(expected_s, 1e-5)
        error = (seconds - expected_s) * scale
        # One run that lost its cores must not turn everything over.
        weight = 1.0 / max(1.0, abs(error))
        x = x * scale * self._units
        known = self._known @ x
        # What is known in the direction of x fades; what x adds comes on top.
        fading = weight * (1 - FORGET) / max(float(x @ known), 1e-30)
        self._known += weight * np.outer(x, x) - fading * np.outer(known, known)
        gain = self._units * np.linalg.solve(self._known + LEAST_KNOWN * np.eye(4), x)
        self._terms = np.maximum(self._terms + gain * weight * error, 0.0)
        self._terms[1] = max(self._terms[1], 1e-7)
        self.runs += 1


def _features(work: Work) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([1.0, work.rows, work.positions / POSITIONS, work.outputs])
