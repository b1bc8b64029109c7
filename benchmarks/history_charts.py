#!/usr/bin/env python3
"""Draws docs/pictures/history.svg from the results in asv_bench/results: figures over commits.

Only figures that every commit of a machine has are drawn, with the range that asv noted, so that a
change of what is measured does not look like a change of speed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from asv_tools import RESULTS, ROOT

FILE = ROOT / "docs" / "pictures" / "history.svg"
MODEL = "'smollm2-135m/q4g32a'"
GREY = "#808080"  # can be read on white and on black


@dataclass(frozen=True)
class Figure:
    """A curve or two: heading, unit, benchmark, and by label the parameters."""

    heading: str
    unit: str
    benchmark: str
    curves: dict[str, tuple[str, ...]]
    scale: float = 1.0


THREADS: dict[str, tuple[str, ...]] = {"1 thread": (MODEL, "1"), "2 threads": (MODEL, "2")}
FIGURES = (
    Figure("a token, SmolLM2-135M", "ms", "decode.Decode.time_token", THREADS, 1e3),
    Figure("of read bandwidth", "fraction", "decode.Decode.track_read_fraction", THREADS),
    Figure("import slmq", "ms", "imports.Import.timeraw_slmq", {"": ()}, 1e3),
    Figure("wheel", "MB", "wheel.Wheel.track_size", {"": ()}, 1e-6),
)


def results(machine: Path) -> list[dict[str, Any]]:
    """What was measured of each commit, oldest first."""
    found = [json.loads(file.read_text("utf-8")) for file in machine.glob("*-*.json")]
    return sorted(found, key=lambda entry: int(entry["date"]))


def value_of(entry: dict[str, Any], figure: Figure, parameters: tuple[str, ...]) -> list[float]:
    """The value, and the ends of its range where asv noted one."""
    row = dict(zip(entry["result_columns"], entry["results"][figure.benchmark], strict=False))
    at = list(product(*row["params"])).index(parameters)
    keys = ("result", "stats_ci_99_a", "stats_ci_99_b")
    values = [row[key][at] for key in keys if row.get(key) is not None]
    return [value * figure.scale for value in values if value is not None]


def draw(machine: Path) -> None:
    """One picture with a panel for each figure."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "slmq", "svg.fonttype": "none", "font.size": 8})
    from matplotlib import pyplot

    commits = results(machine)
    names = [entry["commit_hash"][:7] for entry in commits]
    picture, panels = pyplot.subplots(2, 2, figsize=(9, 5.2), layout="constrained")
    for panel, figure in zip(panels.flat, FIGURES, strict=True):
        for label, parameters in figure.curves.items():
            rows = [value_of(entry, figure, parameters) for entry in commits]
            middle = [row[0] for row in rows]
            (curve,) = panel.plot(names, middle, marker="o", markersize=3, label=label)
            if all(len(row) == 3 for row in rows):
                low, high = [row[1] for row in rows], [row[2] for row in rows]
                panel.fill_between(names, low, high, color=curve.get_color(), alpha=0.2)
        panel.set_title(f"{figure.heading} ({figure.unit})", color=GREY)
        panel.set_ylim(bottom=0)
        panel.tick_params(colors=GREY, axis="both", labelsize=7)
        panel.tick_params(axis="x", rotation=30)
        for side, spine in panel.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GREY)
        if len(figure.curves) > 1:
            panel.legend(frameon=False, labelcolor=GREY)
    picture.suptitle(f"commits on {machine.name}, oldest first", color=GREY)
    FILE.parent.mkdir(exist_ok=True)
    picture.savefig(FILE, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    draw(min(path for path in RESULTS.iterdir() if path.is_dir()))
