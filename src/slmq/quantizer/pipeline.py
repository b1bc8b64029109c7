"""A model's matrices, stage by stage: what their inputs are like, what rounding does, the rounding.

Every stage runs over the calibration text with what the stages before passed on. With rounded
weights it then runs once more, so that later stages are rounded for the inputs that they will get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from slmq import _native
from slmq.errors import CheckpointError
from slmq.formats import FORMATS
from slmq.quantizer.calibration import Calibration, collect, test_windows
from slmq.quantizer.grids import Rounded, pack_rounded
from slmq.quantizer.methods import METHODS, Inputs, output_error, relative_error, round_with
from slmq.quantizer.reports import TensorReport
from slmq.quantizer.stages import FloatSource, Stage, StageRun, survey
from slmq.quantizer.work import Work
from slmq.wanted import Wish
from slmq.weights import Linear

__all__ = ["Pipeline", "Progress"]

Progress = Callable[[str, int, int], None]
F32 = npt.NDArray[np.float32]


@dataclass
class Pipeline:
    """One run over a model.

    Attributes
    ----------
    source : FloatSource
    calibration : Calibration or None
        None: matrices are rounded for themselves.
    work : Work
    threads : int
    progress : callable or None
    """

    source: FloatSource
    calibration: Calibration | None
    work: Work
    threads: int
    progress: Progress | None = None

    def measure(self, formats: Iterable[str]) -> dict[str, dict[str, float]]:
        """The damage that each format does to each matrix, by name; see `TensorReport.damage`."""
        formats = sorted(formats, key=lambda fmt: FORMATS[fmt].bits_per_weight)
        found: dict[str, dict[str, float]] = {}
        if self.calibration is None:
            matrices = [wish for wish in self.source.wishes if wish.rounds]
            for i, wish in enumerate(matrices):
                saved = self.work.value(f"damage-{i}")
                if saved is None:
                    saved = self._weight_errors(wish, formats)
                    self.work.save_value(f"damage-{i}", saved)
                found[wish.tensor.name] = saved
                self._tell("measuring", i + 1, len(matrices))
            return found
        stages = survey(self.source)
        done, hidden = self._passed_on("exact", len(stages))
        for i, stage in enumerate(stages):
            if i >= done:
                saved, hidden = self._measure_stage(stages, stage, hidden, formats)
                self.work.save_value(f"damage-{i}", saved)
                self._pass_on("exact", i, hidden)
            saved = self.work.value(f"damage-{i}")
            for name, damage in saved.items():
                before = found.setdefault(name, dict.fromkeys(formats, 0.0))
                found[name] = {fmt: before[fmt] + damage[fmt] for fmt in formats}
            self._tell("measuring", i + 1, len(stages))
        return found

    def round(self, formats: Mapping[str, str], method: str) -> dict[str, TensorReport]:
        """Rounds every matrix to its format; packed bytes go into the work, under its name."""
        matrices = [wish for wish in self.source.wishes if wish.rounds]
        reports: dict[str, TensorReport] = {}
        if self.calibration is not None:
            stages = survey(self.source)
            last_use = {w.tensor.name: stage.number for stage in stages for w in stage.wishes}
            done, hidden = self._passed_on("hidden", len(stages))
            for i, stage in enumerate(stages):
                mine = [
                    w for w in stage.wishes if w.rounds and last_use[w.tensor.name] == stage.number
                ]
                if i >= done:
                    hidden = self._round_stage(stages, stage, mine, hidden, formats, method)
                    self._pass_on("hidden", i, hidden)
                reports |= {w.tensor.name: self._report(w) for w in mine}
                self._tell("quantizing", i + 1, len(stages))
        left = [wish for wish in matrices if wish.tensor.name not in reports]
        for i, wish in enumerate(left):
            name = wish.tensor.name
            if self.work.value(name) is None:
                self._round_matrix(wish, formats[name], None, "rtn")
            reports[name] = self._report(wish)
            self._tell("quantizing", i + 1, len(left))
        return reports

    # --- one stage ------------------------------------------------------------------------------

    def _run(
        self,
        stages: list[Stage],
        stage: Stage,
        hidden: F32 | None,
        weights: Callable[..., Linear],
        windows: npt.NDArray[np.intp] | None = None,
    ) -> StageRun:
        assert self.calibration is not None
        tokens = self.calibration.tokens
        if windows is not None:
            if hidden is not None:
                hidden = hidden.reshape(*tokens.shape, -1)[windows].reshape(-1, hidden.shape[1])
            tokens = tokens[windows]
        return StageRun(
            self.source, stage, stages[-1].number, tokens, hidden, self.threads, weights
        )

    def _round_stage(
        self,
        stages: list[Stage],
        stage: Stage,
        mine: list[Wish],
        hidden: F32 | None,
        formats: Mapping[str, str],
        method: str,
    ) -> F32:
        """Rounds the matrices whose last use is in this stage; returns what it passes on."""
        assert self.calibration is not None
        cache = _Cache(self.source)
        run = self._run(stages, stage, hidden, cache)
        moments, following = collect(run, len(self.calibration.tokens), self.threads)
        inputs = {w.tensor.name: m for m in moments for w in m.wishes}
        prepared = {id(m): Inputs(m, self.threads) for m in moments}
        for wish in mine:
            name = wish.tensor.name
            if self.work.value(name) is None:
                found = inputs.get(name)
                self._round_matrix(
                    wish, formats[name], None if found is None else prepared[id(found)], method
                )
        if mine and stage is not stages[-1]:
            rounded = _Cache(self.source, self._packed(mine))
            following = np.concatenate(
                [read(None) for read in self._run(stages, stage, hidden, rounded).windows()]
            )
        return following

    def _packed(self, wishes: list[Wish]) -> dict[str, _native.Matrix]:
        matrices = {}
        for wish in wishes:
            packed = self.work.data(wish.tensor.name)
            assert packed is not None
            fmt = self.work.value(wish.tensor.name)["format"]
            matrices[wish.tensor.name] = _native.Matrix.from_packed(fmt, wish.n, wish.k, packed)
        return matrices

    def _measure_stage(
        self, stages: list[Stage], stage: Stage, hidden: F32 | None, formats: list[str]
    ) -> tuple[dict[str, dict[str, float]], F32]:
        assert self.calibration is not None
        cache = _Cache(self.source)
        run = self._run(stages, stage, hidden, cache)
        moments, following = collect(run, len(self.calibration.tokens), self.threads)
        inputs = {w.tensor.name: m for m in moments for w in m.wishes}
        windows = test_windows(len(self.calibration.tokens))
        exact = following.reshape(*self.calibration.tokens.shape, -1)[windows]
        exact = exact.reshape(-1, following.shape[1])
        is_head = stage is stages[-1]
        damages = {}
        for wish in (wish for wish in stage.wishes if wish.rounds):
            w = self._floats(wish)
            found = inputs.get(wish.tensor.name)
            importance = None if found is None else Inputs(found, self.threads)
            errors, lowest = {}, None
            for fmt in formats:
                rounded = self._round(wish, w, fmt, "weighted", importance)
                lowest = lowest or pack_rounded(rounded)
                values = rounded.values()
                errors[fmt] = (
                    relative_error(w, values)
                    if found is None
                    else output_error(w, values, found.test, self.threads)
                )
            if is_head or lowest is None:
                damages[wish.tensor.name] = errors
                continue
            weights = _Cache(self.source, {wish.tensor.name: lowest}, cache)
            again = self._run(stages, stage, hidden, weights, windows)
            changed = np.concatenate([read(None) for read in again.windows()])
            scale = _row_error(exact, changed) / max(errors[formats[0]], 1e-30)
            damages[wish.tensor.name] = {fmt: error * scale for fmt, error in errors.items()}
        return damages, following

    # --- one matrix -----------------------------------------------------------------------------

    def _floats(self, wish: Wish) -> F32:
        return np.concatenate(list(self.source.floats(wish)))

    def _weight_errors(self, wish: Wish, formats: list[str]) -> dict[str, float]:
        w = self._floats(wish)
        return {
            fmt: relative_error(w, self._round(wish, w, fmt, "rtn", None).values())
            for fmt in formats
        }

    def _round_matrix(self, wish: Wish, fmt: str, inputs: Inputs | None, method: str) -> None:
        w = self._floats(wish)
        if inputs is None:
            method = "rtn"
        tried: dict[str, Rounded] = {}
        errors: dict[str, float] = {}
        for name in METHODS if method == "auto" else (method,):
            tried[name] = self._round(wish, w, fmt, name, inputs)
            if inputs is not None:
                values = tried[name].values()
                errors[name] = output_error(w, values, inputs.moments.test, self.threads)
        best = min(tried, key=lambda name: errors.get(name, 0.0))
        self.work.save_data(wish.tensor.name, pack_rounded(tried[best]).packed)
        weight_error = relative_error(w, tried[best].values())
        report = TensorReport(wish.tensor.name, fmt, best, wish.n, wish.k, weight_error, errors)
        self.work.save_value(wish.tensor.name, asdict(report))

    def _round(self, wish: Wish, w: F32, fmt: str, method: str, inputs: Inputs | None) -> Rounded:
        try:
            return round_with(method, w, fmt, inputs, threads=self.threads)
        except ValueError as error:
            file = self.source.checkpoint.path
            raise CheckpointError(str(error), file=file, tensor=wish.stored) from None

    def _report(self, wish: Wish) -> TensorReport:
        return TensorReport(**self.work.value(wish.tensor.name))

    # --- what is kept ---------------------------------------------------------------------------

    def _passed_on(self, kind: str, stages: int) -> tuple[int, F32 | None]:
        """How many stages are done, and what the last of them passed on."""
        for i in reversed(range(stages)):
            width, data = self.work.value(f"{kind}-{i}"), self.work.data(f"{kind}-{i}")
            if width is not None and data is not None:
                return i + 1, data.view(np.float32).reshape(-1, width)
        return 0, None

    def _pass_on(self, kind: str, i: int, hidden: F32) -> None:
        self.work.save_value(f"{kind}-{i}", hidden.shape[1])
        self.work.save_data(f"{kind}-{i}", np.ascontiguousarray(hidden).reshape(-1).view(np.uint8))
        self.work.forget(f"{kind}-{i - 1}")

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)


class _Cache:
    """The weights of a stage, read once; some replaced by packed matrices."""

    def __init__(
        self,
        source: FloatSource,
        packed: Mapping[str, _native.Matrix] | None = None,
        below: _Cache | None = None,
    ) -> None:
        self._source = source
        self._packed = packed or {}
        self._below = below
        self._found: dict[str, Linear] = {}

    def __call__(self, wish: Wish) -> Linear:
        """The weight that a wish is."""
        name = wish.tensor.name
        if name not in self._found:
            matrix = self._packed.get(name)
            self._found[name] = (
                self._below(wish)
                if matrix is None and self._below is not None
                else self._source.linear_of(wish, matrix)
            )
        return self._found[name]


def _row_error(exact: F32, changed: F32) -> float:
    """The mean over rows of the squared error over the row's square, summed in order."""
    squares = np.add.accumulate(np.square(exact, dtype=np.float64), axis=1)[:, -1]
    errors = np.add.accumulate(np.square(exact - changed, dtype=np.float64), axis=1)[:, -1]
    ratios = errors / np.maximum(squares, 1e-30)
    return float(np.add.accumulate(ratios)[-1]) / len(ratios)
