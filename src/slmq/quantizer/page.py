"""The report of a quantization as one HTML page: charts are inline SVG, nothing is fetched."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from slmq.checkpoint import PACKED
from slmq.checkpoint.safetensors import CONFIG, SINGLE
from slmq.errors import WriteError
from slmq.formats import FORMATS
from slmq.machine.disk import readable_bytes
from slmq.quantizer.reports import QuantizedFolder, TensorReport

__all__ = ["report_page", "write_report"]

WIDTH, HEIGHT = 900, 300
LEFT, BOTTOM, TOP, RIGHT = 70, 40, 16, 16
COLORS = ("#4878cf", "#d65f5f", "#59a14f", "#b47cc7", "#c4ad66", "#3aa6b9", "#8c564b", "#7f7f7f")
LAYER = re.compile(r"\.(\d+)\.(.+?)(?:\.weight)?(\[.*\])?$")
STYLE = """
:root { color-scheme: light dark; --text: #222; --page: #fff; --faint: #666; --line: #ddd;
  --stripe: #f4f4f4 }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --page: #16181c; --faint: #999;
  --line: #3a3d44; --stripe: #1f2228 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1em;
  color: var(--text); background: var(--page) }
table { border-collapse: collapse; font-size: 13px }
td, th { padding: 2px 10px; text-align: right; white-space: nowrap; vertical-align: bottom }
th { white-space: normal }
td:first-child, th:first-child { text-align: left }
tr:nth-child(even) { background: var(--stripe) }
.wide { overflow-x: auto } .note { color: var(--faint) }
svg text { font: 12px system-ui, sans-serif; fill: var(--faint) }
svg .grid { stroke: var(--line) }
.key { display: inline-block; width: 1em; height: 1em; border-radius: 2px; vertical-align: -2px }
"""
SETTINGS = {"format": "format", "bits": "bits per weight asked for", "method": "method"}

Point = tuple[float, float]


def write_report(made: QuantizedFolder, path: Path) -> None:
    """Write the page of a quantized folder.

    Raises
    ------
    WriteError
        The file cannot be written.
    """
    try:
        path.write_text(report_page(made), "utf-8")
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error


def report_page(made: QuantizedFolder) -> str:
    """The page: what was done, error per layer and per format, size against quality."""
    parts = [
        f"<h1>{escape(made.path.name)}</h1>",
        _facts(made),
        "<h2>Error per layer</h2>",
        f"<p>{_error_name(made)}, for every matrix by layer.</p>",
        _layer_chart(made.tensors),
        "<h2>Formats</h2>",
        "<p>The mean error is weighted by size: large matrices, such as the embedding, count "
        "most.</p>",
        _format_table(made.tensors),
    ]
    if made.front:
        parts += [
            "<h2>Size and quality</h2>",
            "<p>Mixes of formats from the fewest bits to the most. Damage is measured with one "
            "matrix rounded at a time, as the relative squared error of its layer's output, and "
            "summed. The ring marks this folder.</p>",
            _front_chart(made),
        ]
    parts += ["<h2>Matrices</h2>", _tensor_table(made.tensors)]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{escape(made.path.name)}</title><style>{STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _facts(made: QuantizedFolder) -> str:
    """What was made of what, with which settings: from the configuration beside the weights."""
    section = json.loads((made.path / CONFIG).read_text("utf-8"))[PACKED]
    before = sum(file["bytes"] for file in section["source"])
    after = (made.path / SINGLE).stat().st_size
    files = ", ".join(
        f"{file['name']} (sha256 {file['sha256'][:12]}…)" for file in section["source"]
    )
    weights = sum(t.n * t.k for t in made.tensors)
    text = section["calibration"]
    rows = [
        ("size", f"{readable_bytes(after)}, from {readable_bytes(before)}"),
        ("bits per weight", f"{made.bits_per_weight:.3f}"),
        ("matrices", f"{len(made.tensors)}, with {weights:,} weights"),
        ("source", files),
        *((SETTINGS[key], f"{section[key]}") for key in SETTINGS if section[key] is not None),
        (
            "calibration text",
            "none"
            if text is None
            else f"sha256 {text['sha256'][:12]}…, {' x '.join(map(str, text['windows']))} tokens",
        ),
        ("slmq", section["slmq_version"]),
    ]
    body = "".join(
        f"<tr><td>{name}</td><td style='text-align:left'>{escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<div class='wide'><table>{body}</table></div>"


def _error(tensor: TensorReport) -> float:
    """What was measured: of outputs if there was a text, else of weights."""
    return tensor.weight_error if tensor.output_error is None else tensor.output_error


def _error_name(made: QuantizedFolder) -> str:
    calibrated = any(t.output_error is not None for t in made.tensors)
    what = "outputs, on held-out calibration text" if calibrated else "weights"
    return f"Relative squared error of the {what}"


# --- charts ---------------------------------------------------------------------------------


class _Chart:
    """Axes with a linear x and a logarithmic y; shapes are added and drawn in order."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], labels: tuple[str, str]) -> None:
        self._x0, self._x1 = min(xs), max(xs)
        positive = [y for y in ys if y > 0] or [1.0]
        self._y0 = math.floor(math.log10(min(positive)))
        self._y1 = max(math.ceil(math.log10(max(positive))), self._y0 + 1)
        self._parts: list[str] = []
        self._whole = all(float(x).is_integer() for x in xs)
        self._axes(labels)

    def place(self, point: Point) -> Point:
        """Where a point of the data lies in the picture."""
        x = (point[0] - self._x0) / max(self._x1 - self._x0, 1e-12)
        y = (math.log10(max(point[1], 10.0**self._y0)) - self._y0) / (self._y1 - self._y0)
        return (
            LEFT + x * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - y * (HEIGHT - BOTTOM - TOP),
        )

    def line(self, points: Sequence[Point], color: str) -> None:
        """A line through points, with dots."""
        placed = [self.place(point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        self._parts.append(f"<polyline points='{path}' fill='none' stroke='{color}'/>")
        self._parts += [
            f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2.5' fill='{color}'/>" for x, y in placed
        ]

    def ring(self, point: Point, color: str) -> None:
        """A ring around a point."""
        x, y = self.place(point)
        self._parts.append(
            f"<circle cx='{x:.1f}' cy='{y:.1f}' r='7' fill='none' stroke='{color}' "
            f"stroke-width='2'/>"
        )

    def svg(self) -> str:
        """The picture."""
        return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' width='100%'>{''.join(self._parts)}</svg>"

    def _axes(self, labels: tuple[str, str]) -> None:
        for power in range(self._y0, self._y1 + 1):
            y = self.place((self._x0, 10.0**power))[1]
            self._parts.append(
                f"<line x1='{LEFT}' y1='{y:.1f}' x2='{WIDTH - RIGHT}' y2='{y:.1f}' class='grid'/>"
                f"<text x='{LEFT - 8}' y='{y + 4:.1f}' text-anchor='end'>1e{power}</text>"
            )
        span = self._x1 - self._x0
        ticks = [self._x0 + span * i / 8 for i in range(9)] if span else [self._x0]
        if self._whole:
            ticks = sorted({round(tick) for tick in ticks})
        for tick in ticks:
            x = self.place((tick, 1.0))[0]
            self._parts.append(
                f"<text x='{x:.1f}' y='{HEIGHT - BOTTOM + 16}' text-anchor='middle'>{tick:.3g}"
                f"</text>"
            )
        self._parts.append(
            f"<text x='{WIDTH / 2}' y='{HEIGHT - 6}' text-anchor='middle'>{labels[0]}</text>"
            f"<text x='14' y='{HEIGHT / 2}' text-anchor='middle' "
            f"transform='rotate(-90 14 {HEIGHT / 2})'>{labels[1]}</text>"
        )


def _layer_chart(tensors: Sequence[TensorReport]) -> str:
    kinds: dict[str, list[Point]] = {}
    for tensor in tensors:
        found = LAYER.search(tensor.name)
        if found is not None:
            kind = found[2] + (found[3] or "")
            kinds.setdefault(kind, []).append((float(found[1]), _error(tensor)))
    if not kinds:
        return ""
    points = [point for line in kinds.values() for point in line]
    chart = _Chart([x for x, _ in points], [y for _, y in points], ("layer", "error"))
    key = []
    for i, (kind, line) in enumerate(kinds.items()):
        color = COLORS[i % len(COLORS)]
        chart.line(line, color)
        key.append(f"<span class='key' style='background:{color}'></span> {escape(kind)}")
    return chart.svg() + f"<p class='note'>{' &nbsp; '.join(key)}</p>"


def _front_chart(made: QuantizedFolder) -> str:
    chart = _Chart(
        [x for x, _ in made.front], [y for _, y in made.front], ("bits per weight", "damage")
    )
    chart.line(made.front, COLORS[0])
    chart.ring(min(made.front, key=lambda p: abs(p[0] - made.bits_per_weight)), COLORS[1])
    return chart.svg()


# --- tables ---------------------------------------------------------------------------------


def _format_table(tensors: Sequence[TensorReport]) -> str:
    rows = []
    for fmt in sorted({t.format for t in tensors}, key=lambda f: FORMATS[f].bits_per_weight):
        mine = [t for t in tensors if t.format == fmt]
        size = sum(t.n * t.k for t in mine)
        mean = sum(_error(t) * t.n * t.k for t in mine) / size
        bits = FORMATS[fmt].bits_per_weight
        rows.append((fmt, f"{bits:g}", str(len(mine)), f"{size:,}", f"{mean:.3e}"))
    return _table(("format", "bits", "matrices", "weights", "mean error"), rows)


def _tensor_table(tensors: Sequence[TensorReport]) -> str:
    methods = sorted({method for t in tensors for method in t.output_errors})
    formats = sorted({f for t in tensors for f in t.damage}, key=list(FORMATS).index)
    head = ["matrix", "shape", "format", "method", "weight error"]
    head += [f"output error: {method}" for method in methods]
    head += [f"damage: {fmt}" for fmt in formats]
    rows = [
        [
            t.name,
            f"{t.n} x {t.k}",
            t.format,
            t.method,
            f"{t.weight_error:.3e}",
            *(_number(t.output_errors.get(method)) for method in methods),
            *(_number(t.damage.get(fmt)) for fmt in formats),
        ]
        for t in tensors
    ]
    return _table(head, rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3e}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<div class='wide'><table><tr>{top}</tr>{body}</table></div>"
