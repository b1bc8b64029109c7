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
from slmq.formats import FORMATS
from slmq.quantizer.calibration import Calibration, collect
from slmq.quantizer.damage import head_damage, stage_damage
from slmq.quantizer.grids import Rounded, fits, pack_rounded
from slmq.quantizer.methods import METHODS, Inputs, output_error, relative_error
from slmq.quantizer.reports import TensorReport
from slmq.quantizer.runner import Runner, StageWeights, floats_of, round_wish
from slmq.quantizer.stages import FloatSource, Stage
from slmq.quantizer.work import Work
from slmq.wanted import Wish

__all__ = ["Pipeline", "Progress"]

Progress = Callable[[str, int, int], None]
F32 = npt.NDArray[np.float32]


@dataclass
class Pipeline:
    """One run over a model.

    Attributes
    ----------
    source : FloatSource
    text : Calibration or None
        None: matrices are rounded for themselves.
    work : Work
    threads : int
    progress : callable or None
    """

    source: FloatSource
    text: Calibration | None
    work: Work
    threads: int
    progress: Progress | None = None

    def measure(self, formats: Iterable[str]) -> dict[str, dict[str, float]]:
        """The damage that each format does to each matrix, by name; see `TensorReport.damage`."""
        formats = sorted(formats, key=lambda fmt: FORMATS[fmt].bits_per_weight)
        if self.text is None:
            return self._weight_errors(formats)
        runner = Runner(self.source, self.text, self.threads)
        stages = runner.stages[:-1]
        done, hidden = self._passed_on("exact", len(stages))
        for i, stage in enumerate(stages):
            if i >= done:
                damage, hidden = stage_damage(runner, stage, hidden, formats)
                self.work.save_value(f"damage-{i}", damage)
                self._pass_on("exact", i, hidden)
            self._tell("measuring", i + 1, len(stages) + 1)
        assert hidden is not None
        if self.work.value("head") is None:
            self.work.save_value("head", head_damage(runner, hidden, formats))
        self._tell("measuring", len(stages) + 1, len(stages) + 1)
        found, nats = self.work.value("head")
        for i in range(len(stages)):
            for name, damage in self.work.value(f"damage-{i}").items():
                before = found.get(name, {})
                found[name] = {
                    fmt: before.get(fmt, 0.0) + value * nats for fmt, value in damage.items()
                }
        return {str(name): damage for name, damage in found.items()}

    def round(self, formats: Mapping[str, str], method: str) -> dict[str, TensorReport]:
        """Rounds every matrix to its format; packed bytes go into the work, under its name."""
        matrices = [wish for wish in self.source.wishes if wish.rounds]
        reports: dict[str, TensorReport] = {}
        if self.text is not None:
            runner = Runner(self.source, self.text, self.threads)
            stages = runner.stages
            last_use = {w.tensor.name: stage.number for stage in stages for w in stage.wishes}
            done, hidden = self._passed_on("hidden", len(stages))
            for i, stage in enumerate(stages):
                mine = [
                    w for w in stage.wishes if w.rounds and last_use[w.tensor.name] == stage.number
                ]
                if i >= done:
                    hidden = self._round_stage(runner, stage, mine, hidden, formats, method)
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

    def _round_stage(
        self,
        runner: Runner,
        stage: Stage,
        mine: list[Wish],
        hidden: F32 | None,
        formats: Mapping[str, str],
        method: str,
    ) -> F32:
        """Rounds the matrices whose last use is in this stage; returns what it passes on."""
        assert self.text is not None
        run = runner.run(stage, hidden, StageWeights(self.source))
        moments, following = collect(run, len(runner.text.tokens), self.threads)
        inputs = {w.tensor.name: m for m in moments for w in m.wishes}
        prepared = {id(m): Inputs(m, self.threads) for m in moments}
        for wish in mine:
            name = wish.tensor.name
            if self.work.value(name) is None:
                found = inputs.get(name)
                self._round_matrix(
                    wish, formats[name], None if found is None else prepared[id(found)], method
                )
        if mine and stage is not runner.stages[-1]:
            rounded = StageWeights(self.source, self._packed(mine))
            following = np.concatenate(
                [read(None) for read in runner.run(stage, hidden, rounded).windows()]
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

    # --- one matrix -----------------------------------------------------------------------------

    def _weight_errors(self, formats: list[str]) -> dict[str, dict[str, float]]:
        """Without a text: relative squared errors of the weights."""
        found = {}
        matrices = [wish for wish in self.source.wishes if wish.rounds]
        for i, wish in enumerate(matrices):
            name = f"damage-{i}"
            if self.work.value(name) is None:
                w = floats_of(self.source, wish)
                errors = {}
                for fmt in (fmt for fmt in formats if fits(fmt, wish.k)):
                    rounded = round_wish(self.source, wish, w, fmt, "rtn", None, self.threads)
                    errors[fmt] = relative_error(w, rounded.values())
                self.work.save_value(name, errors)
            found[wish.tensor.name] = self.work.value(name)
            self._tell("measuring", i + 1, len(matrices))
        return found

    def _round_matrix(self, wish: Wish, fmt: str, inputs: Inputs | None, method: str) -> None:
        w = floats_of(self.source, wish)
        if inputs is None:
            method = "rtn"
        tried: dict[str, Rounded] = {}
        errors: dict[str, float] = {}
        for name in METHODS if method == "auto" else (method,):
            tried[name] = round_wish(self.source, wish, w, fmt, name, inputs, self.threads)
            if inputs is not None:
                values = tried[name].values()
                errors[name] = output_error(w, values, inputs.moments.test, self.threads)
        best = min(tried, key=lambda name: errors.get(name, 0.0))
        self.work.save_data(wish.tensor.name, pack_rounded(tried[best], self.threads).packed)
        weight_error = relative_error(w, tried[best].values())
        report = TensorReport(wish.tensor.name, fmt, best, wish.n, wish.k, weight_error, errors)
        self.work.save_value(wish.tensor.name, asdict(report))

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
