"""What rounding one matrix does to the model, estimated without running all of it each time.

The unit is nats: the divergence of the next token's distribution. What a matrix does to the values
that its layer passes on, as relative squared error of a row, is measured by running the layer once
with that matrix rounded. How many nats such an error costs is measured for every layer: what all
its roundings change in one window, made small, goes through all later layers and the head. (Noise
alike in all channels would not do: where a few channels are far larger than the others, as in
Gemma 3, it says a hundred times too much.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.machine.exact import ordered_sum
from slmq.quantizer.calibration import collect, test_windows
from slmq.quantizer.grids import fits, pack_rounded
from slmq.quantizer.methods import Inputs, OutputErrors, relative_error
from slmq.quantizer.recording import Stage
from slmq.quantizer.runner import Runner, StageWeights, floats_of, round_wish
from slmq.quantizer.stages import StageRun
from slmq.weights.survey import Wish

__all__ = ["HeadDamage", "StageDamage", "head_damage", "stage_damage"]

HEAD_ROWS = 128  # of which divergences are computed
ERROR = 1e-3  # relative squared error whose way through the model is followed
FEWEST_ROWS = 128  # of a matrix, whose errors stand for all
HEAD_SHARE = 0.95  # of all probability: that of the tokens whose rows of the head stand for all

F32 = npt.NDArray[np.float32]
Damage = dict[str, dict[str, float]]


class StageDamage(NamedTuple):
    """What roundings do in a stage.

    Attributes
    ----------
    damage : dict
        Relative squared errors that each format of each matrix makes in what the stage passes on.
    passed_on : float32[windows * rows, width]
        That, with exact weights.
    changed : float32[stages * rows, width]
        The same of one window, with an error of `ERROR`: for each stage so far, what becomes of the
        changes that its roundings make.
    """

    damage: Damage
    passed_on: F32
    changed: F32


class HeadDamage(NamedTuple):
    """Nats that each format of the head costs, and those per relative squared error of stages."""

    damage: Damage
    nats: list[float]


def stage_damage(
    runner: Runner, stage: Stage, hidden: F32 | None, earlier: F32 | None, formats: list[str]
) -> StageDamage:
    """What formats do to a stage, and what it passes on.

    Measured with the format of fewest bits; other formats are scaled by the errors of outputs.
    `earlier` is what the stage before found to be `changed`.
    """
    source, threads = runner.source, runner.threads
    weights = StageWeights(source)
    moments, passed_on = collect(
        runner.run(stage, hidden, weights), len(runner.text.tokens), threads
    )
    inputs = {w.name: Inputs(m, threads) for m in moments for w in m.wishes}
    windows = test_windows(len(runner.text.tokens))
    exact = runner.of_windows(passed_on, windows)
    change = np.zeros_like(exact)  # by all matrices: small changes add up
    damage: Damage = {}
    for wish in (wish for wish in stage.wishes if wish.rounds):
        fitting = [fmt for fmt in formats if fits(fmt, wish.k)]
        errors, lowest = _errors(runner, wish, fitting, inputs.get(wish.name))
        replaced = StageWeights(source, {wish.name: lowest}, weights)
        changed = _outputs(runner.run(stage, hidden, replaced, windows))
        scale = _row_error(exact, changed) / max(errors[fitting[0]], 1e-30)
        damage[wish.name] = {fmt: error * scale for fmt, error in errors.items()}
        np.add(change, changed - exact, out=change)
    own = _small(exact, change)[: runner.text.tokens.shape[1]]
    followed = [] if earlier is None else _follow(runner, stage, earlier, weights)
    return StageDamage(damage, passed_on, np.concatenate([*followed, own]))


def _outputs(run: StageRun) -> F32:
    """What a stage passes on, of all windows."""
    return np.concatenate([read(None) for read in run.windows()])


def _small(exact: F32, change: F32) -> F32:
    """What a stage passes on, changed so little that its relative squared error is `ERROR`."""
    error = _row_error(exact, exact + change)
    scale = np.float32(np.sqrt(ERROR / error)) if error > 0 else np.float32(0)
    small: F32 = exact + scale * change
    return small


def _follow(runner: Runner, stage: Stage, earlier: F32, weights: StageWeights) -> list[F32]:
    """What a stage makes of changes in earlier ones: float32[rows, width] of each."""
    first = test_windows(len(runner.text.tokens))[:1]
    rows = runner.text.tokens.shape[1]
    return [
        _outputs(runner.run(stage, earlier[at : at + rows], weights, first, cut=True))
        for at in range(0, len(earlier), rows)
    ]


def _errors(
    runner: Runner, wish: Wish, formats: list[str], inputs: Inputs | None
) -> tuple[dict[str, float], _native.Matrix]:
    """The error of the outputs in each format, on some rows, and the matrix in the first."""
    w = floats_of(runner.source, wish)
    step = max(1, len(w) // FEWEST_ROWS)
    some = np.ascontiguousarray(w[::step])
    outputs = None if inputs is None else OutputErrors(some, inputs)
    errors, lowest = {}, None
    for fmt in formats:
        given = w if lowest is None else some
        rounded = round_wish(runner.source, wish, given, fmt, "weighted", inputs, runner.threads)
        values = rounded.values()
        if lowest is None:
            lowest = pack_rounded(rounded)
            values = np.ascontiguousarray(values[::step])
        errors[fmt] = relative_error(some, values) if outputs is None else outputs.of(values)
    assert lowest is not None
    return errors, lowest


def head_damage(runner: Runner, hidden: F32, changed: F32, formats: list[str]) -> HeadDamage:
    """What formats do to the head, which takes `hidden`, and what `changed` rows do there."""
    source, threads, stage = runner.source, runner.threads, runner.stages[-1]
    weights = StageWeights(source)
    first = test_windows(len(runner.text.tokens))[:1]
    exact = runner.of_windows(hidden, first)
    rows = len(exact)
    taps = []
    for values in (exact, *(changed[at : at + rows] for at in range(0, len(changed), rows))):
        run = runner.run(stage, values, weights, first, cut=True)
        read = next(iter(run.windows()))
        taps.append(np.ascontiguousarray(read(run.taps[0].handle)[:: max(1, rows // HEAD_ROWS)]))
    wish = run.taps[0].wishes[0]
    head = weights(wish).matrix
    logits = head.matmul(taps[0], threads)
    nats = [_divergence(logits, head.matmul(tap, threads)) / ERROR for tap in taps[1:]]
    if not wish.rounds:
        return HeadDamage({}, nats)
    seen = collect(runner.run(stage, hidden, weights), len(runner.text.tokens), threads)
    inputs = Inputs(seen.moments[0], threads)
    likely = _likely_tokens(logits)
    w = np.ascontiguousarray(floats_of(source, wish)[likely])
    before = np.ascontiguousarray(logits[:, likely])
    damage = {}
    for fmt in (fmt for fmt in formats if fits(fmt, wish.k)):
        rounded = round_wish(source, wish, w, fmt, "weighted", inputs, threads)
        after = pack_rounded(rounded).matmul(taps[0], threads, "a16g32")
        damage[fmt] = _divergence(before, after)
    return HeadDamage({wish.name: damage}, nats)


def _likely_tokens(logits: F32) -> npt.NDArray[np.intp]:
    """The fewest tokens that have `HEAD_SHARE` of all probability, ascending.

    A divergence weighs what changes by probability: few rows of a wide head say what all would.
    """
    share = np.zeros(logits.shape[1])
    for row in logits:
        share += _native.softmax(row)
    order = np.argsort(-share, kind="stable")
    covered = np.add.accumulate(share[order])
    count = int(np.searchsorted(covered, HEAD_SHARE * covered[-1])) + 1
    return np.sort(order[:count])


def _divergence(exact: F32, changed: F32) -> float:
    """Nats from the distributions of logits to those of others near them, the mean over rows.

    To second order it is half the variance of what changes, which needs no logarithm.
    """
    found = np.empty(len(exact))
    for i, (row, other) in enumerate(zip(exact, changed, strict=True)):  # a vocabulary is wide
        p = _native.softmax(row).astype(np.float64)
        change = other.astype(np.float64) - row
        mean = np.add.accumulate(p * change)[-1]
        found[i] = np.add.accumulate(p * np.square(change - mean))[-1]
    return 0.5 * ordered_sum(found) / len(found)


def _row_error(exact: F32, changed: F32) -> float:
    """The mean over rows of the squared error over the row's square."""
    squares = np.add.accumulate(np.square(exact, dtype=np.float64), axis=1)[:, -1]
    errors = np.add.accumulate(np.square(exact - changed, dtype=np.float64), axis=1)[:, -1]
    return ordered_sum(errors / np.maximum(squares, 1e-30)) / len(errors)
