"""Errors of single matrices: each way of rounding against plain rounding, at equal bits.

The inputs are a model's own, by calibration on a text; what is measured is the squared error of the
weights, and of the outputs on windows of the text that were held back. The weights are the model's,
and heavy-tailed random ones (Student's t, 4 degrees) in their place. Formats that hold the model's
weights exactly, as those of a quantized file, say nothing and are left out.

    python benchmarks/quantize_layers.py MODEL --text FILE [--layers 0 9 19 29] [--threads 2]
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from slmq import _native, hub
from slmq.checkpoint import open_checkpoint
from slmq.formats import ROUNDED
from slmq.quantizer.calibration import Moments, collect, read_calibration
from slmq.quantizer.grids import GRIDS, fits
from slmq.quantizer.methods import METHODS, Inputs, OutputErrors, relative_error, round_with
from slmq.quantizer.runner import Runner, StageWeights, floats_of
from slmq.quantizer.source import FloatSource
from slmq.weights.survey import Wish

F32 = npt.NDArray[np.float32]
EXACT = 1e-9  # a smaller error means that the format holds the weights


def inputs_of(
    source: FloatSource, text: Path, layers: list[int], threads: int
) -> Iterator[tuple[Wish, Moments]]:
    """The matrices of some layers, with what their inputs are like."""
    calibration = read_calibration(text, source.checkpoint, source.opened.config.max_positions)
    runner = Runner(source, calibration, threads)
    hidden: F32 | None = None
    for stage in runner.stages:
        if stage.number > max(layers):
            return
        run = runner.run(stage, hidden, StageWeights(source))
        moments, hidden = collect(run, len(calibration.tokens), threads)
        if stage.number in layers:
            yield from ((wish, found) for found in moments for wish in found.wishes)


def plain(w: F32, fmt: str, threads: int) -> F32:
    """Rounded to nearest with the usual scale: the extreme value, or the range."""
    raw = np.ascontiguousarray(w).reshape(-1).view(np.uint8)
    n, k = w.shape
    matrix = _native.Matrix.pack("f32", raw, n, k, fmt, None, None, threads)
    return matrix.dequantize(0, len(w))


class Errors(NamedTuple):
    """Squared error over what is exact: of the weights, of the outputs."""

    weights: float
    outputs: float


def errors(w: F32, fmt: str, inputs: Inputs, threads: int) -> dict[str, Errors]:
    """The errors of each way of rounding."""
    values = {"plain": plain(w, fmt, threads)} if fmt in ROUNDED else {}
    for method in METHODS:
        values[method] = round_with(method, w, fmt, inputs, threads=threads).values()
    outputs = OutputErrors(w, inputs)
    return {
        way: Errors(relative_error(w, found), outputs.of(found)) for way, found in values.items()
    }


def main() -> None:
    """Prints a table for the model's weights and one for random ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="catalogue name, folder or .gguf file")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 9, 19, 29])
    parser.add_argument("--formats", nargs="+", default=list(GRIDS))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    found: dict[str, dict[str, list[dict[str, Errors]]]] = defaultdict(lambda: defaultdict(list))
    rng = np.random.default_rng(0)
    with open_checkpoint(hub.resolve(options.model).path) as checkpoint:
        source = FloatSource(checkpoint, None if checkpoint.packed else "f32", 2)
        for wish, moments in inputs_of(source, options.text, options.layers, options.threads):
            inputs = Inputs(moments, options.threads)
            own = floats_of(source, wish)
            heavy = rng.standard_t(4, own.shape).astype(np.float32)
            for kind, w in (("the model's weights", own), ("heavy-tailed weights", heavy)):
                for fmt in options.formats:
                    if fits(fmt, wish.k):
                        found[kind][fmt].append(errors(w, fmt, inputs, options.threads))
    for kind, by_format in found.items():
        print_tables(kind, by_format)


def print_tables(kind: str, by_format: dict[str, list[dict[str, Errors]]]) -> None:
    """For weights and outputs a line per format: geometric means over those of plain rounding."""
    for number, what in enumerate(Errors._fields):
        print(f"\n{kind}: squared error of the {what} over that of plain rounding (of rtn, where a")
        print("format has no plain rounding), geometric mean, smallest and largest\n")
        print("| format | matrices | plain error | " + " | ".join(METHODS) + " |")
        print("|---|---|---|" + "---|" * len(METHODS))
        for fmt, all_rows in by_format.items():
            rows = [row for row in all_rows if row[METHODS[0]].weights > EXACT]
            if rows:
                print(line(fmt, [{way: e[number] for way, e in row.items()} for row in rows]))


def line(fmt: str, rows: list[dict[str, float]]) -> str:
    """The line of a format: a row per matrix, errors by way of rounding."""
    base = "plain" if "plain" in rows[0] else METHODS[0]
    cells = []
    for method in METHODS:
        ratios = [row[method] / row[base] for row in rows]
        cells.append(f"{geometric_mean(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})")
    size = geometric_mean([row[base] for row in rows])
    return f"| {fmt} | {len(rows)} | {size:.2e} | " + " | ".join(cells) + " |"


def geometric_mean(values: list[float]) -> float:
    """Of positive values."""
    return math.exp(sum(math.log(max(value, 1e-12)) for value in values) / len(values))


if __name__ == "__main__":
    main()
