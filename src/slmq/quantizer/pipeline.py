"""A model's matrices, stage by stage: what their inputs are like, what rounding does, the rounding.

Every stage runs over the calibration text with what the stages before passed on. With rounded
weights it then runs once more, so that later stages are rounded for the inputs that they will get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.formats import FORMATS
from slmq.quantizer.calibration import Calibration, Moments, collect
from slmq.quantizer.damage import HeadDamage, head_damage, stage_damage
from slmq.quantizer.grids import Rounded, fits, pack_rounded
from slmq.quantizer.importance import Importance
from slmq.quantizer.methods import METHODS, Inputs, OutputErrors, relative_error
from slmq.quantizer.recording import Stage
from slmq.quantizer.reports import TensorReport
from slmq.quantizer.rescale import channel_scales
from slmq.quantizer.runner import Runner, StageWeights, floats_of, round_wish
from slmq.quantizer.source import FloatSource
from slmq.quantizer.work import Work
from slmq.weights.survey import Wish

__all__ = ["Pipeline", "Progress"]

Progress = Callable[[str, int, int], None]
F32 = npt.NDArray[np.float32]


class Made(NamedTuple):
    """A rounded matrix and what is said about it."""

    rounded: Rounded
    report: TensorReport


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
    importance : Importance or None
        Without a text: what columns weigh.
    """

    source: FloatSource
    text: Calibration | None
    work: Work
    threads: int
    progress: Progress | None = None
    importance: Importance | None = None

    def measure(self, formats: Iterable[str]) -> dict[str, dict[str, float]]:
        """The damage that each format does to each matrix, by name; see `TensorReport.damage`."""
        formats = sorted(formats, key=lambda fmt: FORMATS[fmt].bits_per_weight)
        if self.text is None:
            return self._weight_errors(formats)
        runner = Runner(self.source, self.text, self.threads)
        stages = runner.stages[:-1]
        done, both = self._passed_on("exact", len(stages))
        rows = self.text.tokens.size
        hidden, changed = (None, None) if both is None else (both[:rows], both[rows:])
        for i, stage in enumerate(stages):
            if i >= done:
                damage, hidden, changed = stage_damage(runner, stage, hidden, changed, formats)
                self.work.save_value(f"damage-{i}", damage)
                self._pass_on("exact", i, np.concatenate([hidden, changed]))
            self._tell("measuring", i + 1, len(stages) + 1)
        assert hidden is not None
        assert changed is not None
        if self.work.value("head") is None:
            self.work.save_value("head", head_damage(runner, hidden, changed, formats))
        self._tell("measuring", len(stages) + 1, len(stages) + 1)
        head = HeadDamage(*self.work.value("head"))
        found = head.damage
        for i, nats in enumerate(head.nats):
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
            last_use = {w.name: stage.number for stage in stages for w in stage.wishes}
            done, hidden = self._passed_on("hidden", len(stages))
            for i, stage in enumerate(stages):
                mine = [w for w in stage.wishes if w.rounds and last_use[w.name] == stage.number]
                if i >= done:
                    hidden = self._round_stage(runner, stage, mine, hidden, formats, method)
                    self._pass_on("hidden", i, hidden)
                reports |= {w.name: self._report(w) for w in mine}
                self._tell("quantizing", i + 1, len(stages))
        left = [wish for wish in matrices if wish.name not in reports]
        for i, wish in enumerate(left):
            name = wish.name
            if self.work.value(name) is None:
                self._keep(self._round_matrix(wish, formats[name], None, "rtn"))
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
        moments, following = collect(
            runner.run(stage, hidden, StageWeights(self.source)),
            len(runner.text.tokens),
            self.threads,
        )
        names = {wish.name for wish in mine}
        norms = [name for found in moments for name in found.norm]
        while moments:  # each goes when it has been used: they are large
            found = moments.pop(0)
            group = [wish for wish in found.wishes if wish.name in names]
            if any(self.work.value(wish.name) is None for wish in group):
                once = all(runner.uses[wish.name] == 1 for wish in found.wishes)
                self._round_group(group, found, formats, method, foldable=once)
        for wish in mine:
            if self.work.value(wish.name) is None:
                self._keep(self._round_matrix(wish, formats[wish.name], None, "rtn"))
        if mine and stage is not runner.stages[-1]:
            rounded = StageWeights(self.source, self._packed(mine))
            folded = {name: self.folded(name) for name in norms}
            vectors = {name: values for name, values in folded.items() if values is not None}
            again = runner.run(stage, hidden, rounded, vectors=vectors)
            following = np.concatenate([read(None) for read in again.windows()])
        return following

    def _round_group(
        self,
        group: list[Wish],
        moments: Moments,
        formats: Mapping[str, str],
        method: str,
        foldable: bool,
    ) -> None:
        """Rounds the matrices that read one input, which may be rescaled for all of them."""
        inputs = Inputs(moments, self.threads)
        made = []
        if method != "rescaled":
            made = [self._round_matrix(wish, formats[wish.name], inputs, method) for wish in group]
        if method in ("auto", "rescaled") and foldable and moments.norm:
            known = [matrix.report.output_errors.get("weighted") for matrix in made]
            scales = self._best_scales(group, inputs, formats, known)
            if scales is not None:
                rescaled = self._round_rescaled(group, moments, scales, formats, made)
                if not made or _total(rescaled) < _total(made):
                    self._fold(moments.norm, scales)
                    made = rescaled
        if not made:
            made = [
                self._round_matrix(wish, formats[wish.name], inputs, "feedback") for wish in group
            ]
        for matrix in made:
            self._keep(matrix)

    def _best_scales(
        self,
        group: list[Wish],
        inputs: Inputs,
        formats: Mapping[str, str],
        known: list[float | None],
    ) -> F32 | None:
        """The channel scales of least output error when rounding by weights; None: no scales.

        `known` are the errors without scales, where they were measured.
        """
        best, least = None, None
        for scales in [None, *channel_scales(inputs.moments)]:
            scaled = inputs
            if scales is not None:
                scaled = Inputs(inputs.moments.scaled(scales), self.threads)
            error = 0.0
            for i, wish in enumerate(group):
                found = known[i] if scales is None and known else None
                if found is None:
                    found = self._weighted_error(wish, formats[wish.name], scaled, scales)
                error += found
            if least is None or error < least:
                best, least = scales, error
        return best

    def _weighted_error(self, wish: Wish, fmt: str, inputs: Inputs, scales: F32 | None) -> float:
        w = floats_of(self.source, wish)
        w = w if scales is None else w * scales
        rounded = round_wish(self.source, wish, w, fmt, "weighted", inputs, self.threads)
        return OutputErrors(w, inputs).of(rounded.values())

    def _round_rescaled(
        self,
        group: list[Wish],
        moments: Moments,
        scales: F32,
        formats: Mapping[str, str],
        plain: list[Made],
    ) -> list[Made]:
        inputs = Inputs(moments.scaled(scales), self.threads)
        before = {matrix.report.name: matrix.report.output_errors for matrix in plain}
        made = []
        for wish in group:
            fmt = formats[wish.name]
            rounded, report = self._round_matrix(wish, fmt, inputs, "feedback", scales)
            errors = {"rescaled": report.output_errors["feedback"]}
            errors |= before.get(report.name, {})
            made.append(Made(rounded, replace(report, method="rescaled", output_errors=errors)))
        return made

    def _fold(self, norm: tuple[str, ...], scales: F32) -> None:
        """Divides the vectors of a norm by channel scales."""
        for name in norm:
            self.work.save_data(
                f"folded {name}", (self.source.vectors[name] / scales).view(np.uint8)
            )

    def folded(self, name: str) -> F32 | None:
        """A vector that was divided by channel scales; None if it was not."""
        data = self.work.data(f"folded {name}")
        return None if data is None else data.view(np.float32)

    def _packed(self, wishes: list[Wish]) -> dict[str, _native.Matrix]:
        matrices = {}
        for wish in wishes:
            packed = self.work.data(wish.name)
            assert packed is not None
            fmt = self.work.value(wish.name)["format"]
            matrices[wish.name] = _native.Matrix.from_packed(fmt, wish.n, wish.k, packed)
        return matrices

    # --- one matrix -----------------------------------------------------------------------------

    def _weight_errors(self, formats: list[str]) -> dict[str, dict[str, float]]:
        """Without a text: relative squared errors of the weights, columns by their importance."""
        found = {}
        matrices = [wish for wish in self.source.wishes if wish.rounds]
        for i, wish in enumerate(matrices):
            name = f"damage-{i}"
            if self.work.value(name) is None:
                w, weights = floats_of(self.source, wish), self._importance_of(wish)
                errors = {}
                for fmt in (fmt for fmt in formats if fits(fmt, wish.k)):
                    rounded = round_wish(self.source, wish, w, fmt, "rtn", weights, self.threads)
                    errors[fmt] = relative_error(w, rounded.values(), weights)
                self.work.save_value(name, errors)
            found[wish.name] = self.work.value(name)
            self._tell("measuring", i + 1, len(matrices))
        return found

    def _round_matrix(
        self,
        wish: Wish,
        fmt: str,
        inputs: Inputs | None,
        method: str,
        scales: F32 | None = None,
    ) -> Made:
        """The matrix, its columns times `scales`, by a method or by the one that measures best."""
        w = floats_of(self.source, wish)
        w = w if scales is None else w * scales
        if inputs is None:
            return self._round_alone(wish, w, fmt)
        outputs = OutputErrors(w, inputs)
        tried: dict[str, Rounded] = {}
        errors: dict[str, float] = {}
        for name in METHODS if method == "auto" else (method,):
            tried[name] = round_wish(self.source, wish, w, fmt, name, inputs, self.threads)
            errors[name] = outputs.of(tried[name].values())
        best = min(tried, key=lambda name: errors[name])
        weight_error = relative_error(w, tried[best].values())
        report = TensorReport(wish.name, fmt, best, wish.n, wish.k, weight_error, errors)
        return Made(tried[best], report)

    def _round_alone(self, wish: Wish, w: F32, fmt: str) -> Made:
        """By its weights, and by the importance of its columns if that is known."""
        weights = self._importance_of(wish)
        rounded = round_wish(self.source, wish, w, fmt, "rtn", weights, self.threads)
        method = "rtn" if weights is None else "weighted"
        error = relative_error(w, rounded.values())
        return Made(rounded, TensorReport(wish.name, fmt, method, wish.n, wish.k, error, {}))

    def _importance_of(self, wish: Wish) -> F32 | None:
        return None if self.importance is None else self.importance.of(wish)

    def _keep(self, made: Made) -> None:
        name = made.report.name
        self.work.save_data(name, pack_rounded(made.rounded, self.threads).packed)
        self.work.save_value(name, asdict(made.report))

    def _report(self, wish: Wish) -> TensorReport:
        return TensorReport(**self.work.value(wish.name))

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


def _total(made: list[Made]) -> float:
    return sum(matrix.report.output_error or 0.0 for matrix in made)
