"""Runs a model with a clock at every step, between looks at the limits of the machine."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slmq.engine.opening import record_plan
from slmq.engine.options import LoadOptions
from slmq.machine.runtime import runtime_info
from slmq.speed.bench import PAGE_POSITIONS, Loaded
from slmq.speed.limits import Limits, probe
from slmq.speed.profile_rows import (
    OUTSIDE,
    PRODUCTS,
    Phase,
    Profile,
    StepRow,
    group,
    make_row,
    verdict,
)

if TYPE_CHECKING:
    from slmq.plan.plan import RecordedPlan, StepInfo

__all__ = ["profile_model", "profile_plan", "work_of_steps"]

BEFORE, AFTER = "embedding", "head"
DECODE_STEPS = 8  # timed for each repeat: one step is too short to be sure of


def profile_model(
    loaded: Loaded,
    options: LoadOptions | None = None,
    *,
    isa: str | None = None,
    **settings: Any,
) -> Profile:
    """Records a model of `bench.load` or `bench.load_shape` and profiles it.

    Parameters
    ----------
    options : LoadOptions, optional
        How the plan is recorded.
    isa : str, optional
        Kernels to run, as SLMQ_ISA.
    **settings
        `prompt`, `context`, `repeat` and `progress` of `profile_plan`.

    Raises
    ------
    ValueError
        For numbers out of range.
    """
    options = LoadOptions() if options is None else options
    plan = record_plan(loaded.weights, options, isa=isa)
    packed = loaded.weights.formats
    return profile_plan(
        plan,
        name=loaded.name,
        n_ctx=loaded.n_ctx,
        weight_format="+".join(sorted(packed, key=packed.__getitem__, reverse=True)),
        **settings,
    )


def profile_plan(
    plan: RecordedPlan,
    *,
    name: str,
    n_ctx: int,
    weight_format: str,
    prompt: int = 512,
    context: int = 128,
    repeat: int = 3,
    progress: Callable[[int, int, str], None] | None = None,
) -> Profile:
    """Times every step of decode and prefill, and the machine's limits before and after.

    Parameters
    ----------
    prompt : int
        Tokens of the prompt, read into an empty context; 0 leaves prefill out.
    context : int
        Tokens in the cache while decode is timed.
    repeat : int
        Timed prompts, after one that is not; decode takes eight tokens for each.
    progress : callable, optional
        Called with (stages done, stages in all, what comes next).

    Raises
    ------
    ValueError
        For numbers out of range.
    """
    check_options(name, n_ctx, {"prompt": prompt, "context": context, "repeat": repeat})
    threads, isa = plan.native.threads, plan.native.isa
    trials = [_Trial(plan, "decode", 1, context, DECODE_STEPS)]
    trials += [_Trial(plan, "prefill", prompt, 0, 1)] * (prompt > 0)
    probes: list[Limits] = []
    done, total = 0, len(trials) + repeat * (len(trials) + 1) + 1

    def stage(what: str, action: Callable[[], object]) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, what)
        action()
        done += 1

    for trial in trials:
        stage(f"{trial.name}, warming up", trial.warm_up)
    for turn in range(1, repeat + 1):
        stage("limits of the machine", lambda: probes.append(probe(threads, isa)))
        for trial in trials:
            stage(f"{trial.name}, {turn} of {repeat}", trial.measure)
    stage("limits of the machine", lambda: probes.append(probe(threads, isa)))
    limits = Limits(
        threads,
        max(p.read_gb_per_s for p in probes),
        max(p.integer_peak_gmac_per_s for p in probes),
    )
    phases = [trial.phase(limits) for trial in trials]
    return Profile(
        model=name,
        format=weight_format,
        activations=_activations(plan.steps),
        cache=plan.cache_type,
        cpu=runtime_info()["cpu"],
        isa=isa,
        threads=threads,
        repeat=repeat,
        limits=limits,
        phases=phases,
        sentence="; ".join(phase.sentence for phase in phases) + ".",
    )


def check_options(name: str, n_ctx: int, options: dict[str, Any]) -> None:
    """Raises ValueError for numbers that `profile_plan` cannot run."""
    prompt, context = options.get("prompt", 0), options.get("context", 0)
    if not 0 <= prompt <= n_ctx:
        raise ValueError(
            f"prompt: expected 0 to {n_ctx} tokens, the context of {name}; got {prompt}"
        )
    if not 0 <= context < n_ctx:
        raise ValueError(
            f"context: expected 0 to {n_ctx - 1} tokens, one less than the context of {name}; "
            f"got {context}"
        )
    if options.get("repeat", 1) < 1:
        raise ValueError(f"repeat: expected at least 1, got {options['repeat']}")


class _Trial:
    """Runs one phase, with clocks and without, and keeps the times."""

    def __init__(
        self, plan: RecordedPlan, name: str, tokens: int, context: int, times: int
    ) -> None:
        self.name = name
        self._plan, self._tokens, self._context, self._times = plan, tokens, context, times
        self._sequence = plan.cache.sequence()
        rng = np.random.default_rng(tokens)
        self._ids = rng.integers(0, plan.vocabulary, context + tokens).astype(np.int32)
        self._clocked: list[list[float]] = []  # microseconds of every step, then of the rest
        self._plain: list[float] = []

    def warm_up(self) -> None:
        self._feed(0, self._context, clocks=False)
        self._base = self._sequence
        self._sequence = self._base.fork(self._context)
        self._feed(self._context, self._tokens, clocks=False)

    def measure(self) -> None:
        for _ in range(self._times):
            for clocks in (False, True):
                self._sequence = self._base.fork(self._context)
                steps, wall_us = self._feed(self._context, self._tokens, clocks=clocks)
                if clocks:
                    self._clocked.append([*steps, max(0.0, wall_us - sum(steps))])
                else:
                    self._plain.append(wall_us)

    def _chunks(self, count: int) -> list[int]:
        most = self._plan.native.max_rows
        return [min(most, count - start) for start in range(0, count, most)]

    def _feed(self, start: int, count: int, *, clocks: bool) -> tuple[list[float], float]:
        """Microseconds of each step over all chunks, if clocks are asked for, and of it all.

        Adding up the steps is this program's business and does not count.
        """
        plan, end, wall_us = self._plan, start + count, 0.0
        sums = [0.0] * len(plan.steps)
        for rows in self._chunks(count):
            part, segment = self._ids[start : start + rows], [(self._sequence, rows)]
            start += rows
            timed: list[tuple[StepInfo, float]] = []
            began_s = time.perf_counter()
            if clocks:
                timed = plan.profile(part, segment, logits=start == end)
            else:
                wanted = [rows - 1] if start == end else []
                plan.run(part, segment, np.array(wanted, np.int32))
            if start == end:
                plan.logits()
            wall_us += (time.perf_counter() - began_s) * 1e6
            for i, (_, spent_us) in enumerate(timed):
                sums[i] += spent_us
        return sums, wall_us

    def phase(self, limits: Limits) -> Phase:
        """The times with the work that was done in them."""
        medians = [statistics.median(times) for times in zip(*self._clocked, strict=True)]
        chunks = self._chunks(self._tokens)
        steps = [
            *work_of_steps(self._plan, chunks, self._context, medians),
            StepRow(OUTSIDE, OUTSIDE, medians[-1], 0, 0, 0, 0),
        ]
        time_us = sum(medians)
        bound, sentence = verdict(self.name, steps, limits)
        return Phase(
            name=self.name,
            tokens=self._tokens,
            context=self._context,
            runs=len(chunks),
            time_us=time_us,
            fastest_us=min(map(sum, self._clocked)),
            slowest_us=max(map(sum, self._clocked)),
            plain_us=statistics.median(self._plain),
            ops=group(steps, lambda step: step.op, time_us, limits),
            layers=group(steps, lambda step: step.layer, time_us, limits),
            total=make_row("total", steps, time_us, limits),
            steps=steps,
            bound=bound,
            sentence=sentence,
        )


# ------------------------------------------------------------------ what steps have to do


def work_of_steps(
    plan: RecordedPlan, chunks: Sequence[int], context: int, times_us: Sequence[float]
) -> list[StepRow]:
    """Steps with the bytes and products of feeding `chunks` rows after `context` positions.

    The head runs once, for the last row of the last chunk.
    """
    select = next(i for i, step in enumerate(plan.steps) if step.op == "select")
    attentions = sum(step.op == "attention" for step in plan.steps)
    kv_per_position = plan.native.page_bytes / PAGE_POSITIONS / max(1, attentions)
    # A run reads every position up to its last row at least once.
    ends = [context + sum(chunks[: i + 1]) for i in range(len(chunks))]
    rows = sum(chunks)
    seen = sum(range(context + 1, context + rows + 1))  # by all rows together
    width = PRODUCTS.get(_activations(plan.steps), 0)
    found = []
    for i, step in enumerate(plan.steps):
        kv_bytes, runs, head = 0, len(chunks), i >= select
        macs = round(step.macs_per_row) * (1 if head else rows)
        products = macs * width if step.format.startswith("q") else 0
        if step.op == "attention":
            kv_bytes = round(sum(ends) * kv_per_position)
            macs = attention_width(step.shape) * seen
        found.append(
            StepRow(
                layer=step.scope or (AFTER if head else BEFORE),
                op=_op(plan.steps, i),
                time_us=times_us[i],
                weight_bytes=step.weight_bytes * (1 if head else runs),
                kv_bytes=kv_bytes,
                macs=macs,
                products=products,
            )
        )
    return found


def attention_width(shape: str) -> int:
    """Multiply-accumulates of one row with one position, of a shape such as "9/3x64"; else 0."""
    match = re.fullmatch(r"(\d+)/\d+x(\d+)", shape)
    # Once for the scores, once for the values.
    return 2 * int(match[1]) * int(match[2]) if match else 0


def _op(steps: Sequence[StepInfo], i: int) -> str:
    last = i == len(steps) - 1
    return "head" if last and steps[i].op.startswith("linear") else steps[i].op


def _activations(steps: Iterable[StepInfo]) -> str:
    """What inputs of integer weights are rounded to; "float" where all weights are floats."""
    return next((step.format for step in steps if step.op == "quantize"), "float")
