"""What rounding one matrix does to the model, estimated without running all of it.

The unit is nats: the divergence of the next token's distribution. What a matrix does to the values
that its layer passes on, as relative squared error of a row, is measured by running the layer once
with that matrix rounded. How many nats such an error costs is measured once, at the last layer, by
adding noise there. (An error of an earlier layer costs about as much: on stories260K, 0.7 to 1.2
times as much from the first two of five layers on, 1.2 to 2 in the others.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.quantizer.calibration import collect, test_windows
from slmq.quantizer.grids import fits, pack_rounded
from slmq.quantizer.methods import Inputs, OutputErrors, ordered_sum, relative_error
from slmq.quantizer.recording import Stage
from slmq.quantizer.runner import Runner, StageWeights, floats_of, round_wish
from slmq.weights.survey import Wish

__all__ = ["HeadDamage", "StageDamage", "head_damage", "stage_damage"]

HEAD_ROWS = 128  # of which divergences are computed
NOISE = 1e-3  # relative squared error
FEWEST_ROWS = 128  # of a matrix, whose errors stand for all

F32 = npt.NDArray[np.float32]
Damage = dict[str, dict[str, float]]


class StageDamage(NamedTuple):
    """Relative squared errors that each format of each matrix makes in what a stage passes on."""

    damage: Damage
    passed_on: F32


class HeadDamage(NamedTuple):
    """Nats that each format of the head costs, and nats per relative squared error before it."""

    damage: Damage
    nats: float


def stage_damage(
    runner: Runner, stage: Stage, hidden: F32 | None, formats: list[str]
) -> StageDamage:
    """What formats do to a stage, and what it passes on with exact weights.

    Measured with the format of fewest bits; other formats are scaled by the errors of outputs.
    """
    source, threads = runner.source, runner.threads
    weights = StageWeights(source)
    moments, passed_on = collect(
        runner.run(stage, hidden, weights), len(runner.text.tokens), threads
    )
    inputs = {w.name: Inputs(m, threads) for m in moments for w in m.wishes}
    windows = test_windows(len(runner.text.tokens))
    exact = runner.of_windows(passed_on, windows)
    damage: Damage = {}
    for wish in (wish for wish in stage.wishes if wish.rounds):
        fitting = [fmt for fmt in formats if fits(fmt, wish.k)]
        errors, lowest = _errors(runner, wish, fitting, inputs.get(wish.name))
        replaced = StageWeights(source, {wish.name: lowest}, weights)
        run = runner.run(stage, hidden, replaced, windows)
        changed = np.concatenate([read(None) for read in run.windows()])
        scale = _row_error(exact, changed) / max(errors[fitting[0]], 1e-30)
        damage[wish.name] = {fmt: error * scale for fmt, error in errors.items()}
    return StageDamage(damage, passed_on)


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


def head_damage(runner: Runner, hidden: F32, formats: list[str]) -> HeadDamage:
    """What formats do to the head, which takes `hidden`."""
    source, threads, stage = runner.source, runner.threads, runner.stages[-1]
    weights = StageWeights(source)
    windows = test_windows(len(runner.text.tokens))
    exact = runner.of_windows(hidden, windows)
    noisy = _with_noise(exact)
    taps = []
    for values in (exact, noisy):
        run = runner.run(stage, values, weights, windows, cut=True)
        reads = [read(run.taps[0].handle) for read in run.windows()]
        rows = np.concatenate(reads)[:: max(1, len(values) // HEAD_ROWS)]
        taps.append(np.ascontiguousarray(rows))
    wish = run.taps[0].wishes[0]
    head = weights(wish).matrix
    logits = head.matmul(taps[0], threads)
    nats = _divergence(logits, head.matmul(taps[1], threads)) / NOISE
    if not wish.rounds:
        return HeadDamage({}, nats)
    seen = collect(runner.run(stage, hidden, weights), len(runner.text.tokens), threads)
    inputs = Inputs(seen.moments[0], threads)
    w = floats_of(source, wish)
    damage = {}
    for fmt in (fmt for fmt in formats if fits(fmt, wish.k)):
        rounded = round_wish(source, wish, w, fmt, "weighted", inputs, threads)
        changed = pack_rounded(rounded).matmul(taps[0], threads, "a16g32")
        damage[fmt] = _divergence(logits, changed)
    return HeadDamage({wish.name: damage}, nats)


def _with_noise(values: F32) -> F32:
    """Every row with a relative squared error of NOISE: a fixed pattern of signs."""
    numbers = np.arange(values.size, dtype=np.uint64).reshape(values.shape)
    mixed = (numbers * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    signs = np.where((mixed * mixed >> np.uint64(20)) % np.uint64(2) == 0, 1.0, -1.0)
    squares = np.add.accumulate(np.square(values, dtype=np.float64), axis=1)[:, -1:]
    noise = signs * np.sqrt(squares * (NOISE / values.shape[1]))
    noisy: F32 = (values + noise).astype(np.float32)
    return noisy


def _divergence(exact: F32, changed: F32) -> float:
    """Nats from the distributions of logits to those of others near them, the mean over rows.

    To second order it is half the variance of what changes, which needs no logarithm.
    """
    p = np.stack([_native.softmax(row) for row in exact]).astype(np.float64)
    change = changed.astype(np.float64) - exact
    mean = np.add.accumulate(p * change, axis=1)[:, -1:]
    variance = np.add.accumulate(p * np.square(change - mean), axis=1)[:, -1]
    return 0.5 * ordered_sum(variance) / len(variance)


def _row_error(exact: F32, changed: F32) -> float:
    """The mean over rows of the squared error over the row's square."""
    squares = np.add.accumulate(np.square(exact, dtype=np.float64), axis=1)[:, -1]
    errors = np.add.accumulate(np.square(exact - changed, dtype=np.float64), axis=1)[:, -1]
    return ordered_sum(errors / np.maximum(squares, 1e-30)) / len(errors)
