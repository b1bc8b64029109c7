"""How long a run takes: a model fitted to the runs that were seen.

t = a + b rows + c positions + d outputs: reading the weights once; multiplying every row with them;
reading the cached positions that rows attend to; the output head. All four are at least 0. They are
fitted by recursive least squares with forgetting, so a neighbour who comes or goes is noticed
within some dozens of runs. Only that is forgotten of which a run tells anything new (Cao and
Schwartz, "A directional forgetting algorithm", 2000): decoding for hours does not blur what a
prompt takes.
"""

from __future__ import annotations

import math
import operator

__all__ = ["CostModel", "Work"]

FORGET = 0.98
LEAST_KNOWN = 1e-6  # in all directions: rounding must not make anything less than nothing
# A guess to begin with, of a model of some hundred million weights; the first runs mend it.
UNITS = (4e-3, 8e-4, 5e-5, 2e-4)
SETTLED = 64  # runs, after which only one of
SAMPLED = 4  # that are alike in a row is looked at
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
        self._terms = list(UNITS)
        # The information matrix, in these units.
        self._known = [[0.04 if i == j else 0.0 for j in range(4)] for i in range(4)]
        self.runs = 0
        self._kind = (0, 0)  # rows and outputs of the last run

    def seconds(self, work: Work) -> float:
        """How long a run is expected to take."""
        return _dot(self._terms, _features(work))

    @property
    def step_s(self) -> float:
        """Seconds of a run beside its rows."""
        return self._terms[0]

    @property
    def row_s(self) -> float:
        """Seconds that one more row takes, with its logits."""
        return self._terms[1] + self._terms[3]

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
        root = math.sqrt(linear * linear + 4 * per_pair * left)
        return int((root - linear) / (2 * per_pair))

    def learn(self, work: Work, seconds: float) -> None:
        """Take a run into account."""
        self.runs += 1
        kind, self._kind = self._kind, (work.rows, work.outputs)
        decoding = work.rows == work.outputs
        if decoding and self._kind == kind and self.runs > SETTLED and self.runs % SAMPLED:
            return  # decoding goes on and on: some of its runs tell as much as all
        # Plain numbers: of four each, they take less time than arrays do to be made.
        x = _features(work)
        terms, known = self._terms, self._known
        # Runs are unequal in length: errors count as shares of what was expected.
        expected_s = _dot(terms, x)
        scale = 1.0 / max(expected_s, 1e-5)
        error = (seconds - expected_s) * scale
        # One run that lost its cores must not turn everything over.
        weight = 1.0 / max(1.0, abs(error))
        x = [value * scale * unit for value, unit in zip(x, UNITS, strict=True)]
        seen = [_dot(row, x) for row in known]
        # What is known in the direction of x fades; what x adds comes on top.
        fading = weight * (1 - FORGET) / max(_dot(x, seen), 1e-30)
        for i, row in enumerate(known):
            for j in range(4):
                row[j] += weight * x[i] * x[j] - fading * seen[i] * seen[j]
        step = weight * error
        for i, change in enumerate(_solved(known, x)):
            terms[i] = max(terms[i] + UNITS[i] * change * step, 0.0)
        terms[1] = max(terms[1], 1e-7)


def _dot(one: list[float], other: list[float]) -> float:
    return float(sum(map(operator.mul, one, other)))


def _solved(known: list[list[float]], x: list[float]) -> list[float]:
    """y with (known + a little) y = x, by elimination; `known` is symmetric, and no less than 0."""
    rows = [[*row, value] for row, value in zip(known, x, strict=True)]
    for i, row in enumerate(rows):
        row[i] += LEAST_KNOWN
    for i in range(3):
        pivot = rows[i]
        for row in rows[i + 1 :]:
            factor = row[i] / pivot[i]
            for j in range(i + 1, 5):
                row[j] -= factor * pivot[j]
    found = [0.0] * 4
    for i in (3, 2, 1, 0):
        row = rows[i]
        found[i] = (row[4] - sum(row[j] * found[j] for j in range(i + 1, 4))) / row[i]
    return found


def _features(work: Work) -> list[float]:
    return [1.0, work.rows, work.positions / POSITIONS, work.outputs]
