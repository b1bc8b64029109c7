"""The loss of a run as a page: a chart in HTML that needs nothing else, and as a line of text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from slmq.engine.training.events import Evaluation, Report, Trained

__all__ = ["loss_page", "sparkline"]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 900, 320, 60, 34, 14, 14
BLOCKS = "▁▂▃▄▅▆▇█"
STYLE = """
:root { color-scheme: light dark; --text: #222; --page: #fff; --faint: #666; --line: #ddd }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --page: #16181c; --faint: #999;
  --line: #3a3d44 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2em auto; padding: 0 1em;
  color: var(--text); background: var(--page) }
svg text { font: 12px system-ui, sans-serif; fill: var(--faint) }
svg .grid { stroke: var(--line) } polyline { fill: none; stroke-width: 1.5 }
"""
COLORS = {"train": "#4878cf", "valid": "#d65f5f", "test": "#59a14f"}

Point = tuple[float, float]


def sparkline(values: Sequence[float], width: int) -> str:
    """The latest values as a line of blocks, the highest as the tallest."""
    shown = list(values)[-width:]
    low, high = min(shown), max(shown)
    steps = len(BLOCKS) - 1
    return "".join(
        BLOCKS[round((v - low) / (high - low) * steps) if high > low else 0] for v in shown
    )


def loss_page(name: str, done: Trained) -> str:
    """The page of a run of the model `name`."""
    peak = "" if done.peak_bytes is None else f", {done.peak_bytes / 1e6:,.0f} MB at most"
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>{escape(name)}: training</title><style>{STYLE}</style>"
        f"<h1>{escape(name)}</h1><p>{done.iterations:,} batches, {done.tokens:,} tokens, "
        f"{done.seconds / 60:.1f} minutes{peak}.</p>{_chart(done.reports, done.evaluations)}"
        f"{_legend(done)}</html>\n"
    )


def _legend(done: Trained) -> str:
    last = [f"train {done.reports[-1].loss:.4f}"] if done.reports else []
    by_split = {found.split: found for found in done.evaluations}
    last += [f"{split} {found.loss:.4f}" for split, found in by_split.items()]
    return f"<p>Loss in the end: {', '.join(last)} nats per token.</p>"


def _chart(reports: Sequence[Report], evaluations: Sequence[Evaluation]) -> str:
    lines: dict[str, list[Point]] = {"train": [(r.iteration, r.loss) for r in reports]}
    for found in evaluations:
        lines.setdefault(found.split, []).append((found.iteration, found.loss))
    points = [point for line in lines.values() for point in line]
    if not points:
        return ""
    low, high = min(y for _, y in points), max(y for _, y in points)
    last, span = max(1.0, *(x for x, _ in points)), max(1e-9, high - low)

    def at(point: Point) -> Point:
        x = LEFT + point[0] / last * (WIDTH - LEFT - RIGHT)
        return x, TOP + (high - point[1]) / span * (HEIGHT - TOP - BOTTOM)

    parts = [f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='loss by batch'>"]
    for i in range(5):
        value = low + span * i / 4
        y = at((0.0, value))[1]
        parts.append(
            f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
        )
        parts.append(f"<text x='{LEFT - 8}' y='{y + 4:.1f}' text-anchor='end'>{value:.3f}</text>")
    parts.append(
        f"<text x='{WIDTH - RIGHT}' y='{HEIGHT - 8}' text-anchor='end'>{last:,.0f} batches</text>"
    )
    for i, (name, line) in enumerate(lines.items()):
        color = COLORS[name]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, line))
        parts.append(f"<polyline points='{path}' stroke='{color}'/>")
        if len(line) == 1:
            x, y = at(line[0])
            parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{color}'/>")
        parts.append(
            f"<text x='{LEFT + 70 * i}' y='{HEIGHT - 8}' style='fill:{color}'>{name}</text>"
        )
    return "".join([*parts, "</svg>"])
