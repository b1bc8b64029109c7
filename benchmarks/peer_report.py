"""What a comparison found, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from peer_measure import Row, Spread, counted

from slmq.speed.limits import told

__all__ = ["Comparison", "as_json", "as_markdown"]

DISTURBING_CPU = 0.05  # cores
BUSY_CPU = 0.1  # cores


@dataclass(frozen=True)
class Comparison:
    """Everything that a run found.

    Attributes
    ----------
    model : str
        File name, or shape and format.
    cpu : str
    rounds : int
    slmq, peer : dict
        What the workers said of themselves: engine, version, load_s, settings.
    rows : list of Row
    """

    model: str
    cpu: str
    rounds: int
    slmq: dict[str, Any]
    peer: dict[str, Any]
    rows: list[Row]


def as_json(found: Comparison) -> dict[str, Any]:
    """Plain dictionaries and lists; the times of all rounds are among them."""
    return asdict(found)


def as_markdown(found: Comparison) -> str:
    """A table of ratios, the limits, and how both sides were set up."""
    peer = found.peer["engine"]
    lines = [
        f"**{found.model}**: slmq {found.slmq['version']} over {peer} ({found.peer['version']}), "
        f"{found.cpu}; median (min to max) of {found.rounds} alternating rounds",
        "",
    ]
    names = [f"slmq over {peer}", "slmq, tokens/s", f"{peer}, tokens/s"]
    names += ["of read bandwidth: slmq", peer, "of integer peak: slmq", peer]
    lines += table(["test", "threads", *names], [cells(row) for row in found.rows])
    lines += [""]
    limits = {row.threads: row for row in found.rows}
    for threads, row in limits.items():
        lines.append(
            f"- limits, {counted(threads)}: reads {row.read_gb_per_s:.1f} GB/s, "
            f"{row.integer_peak_gmac_per_s:.0f} int8 GMAC/s; other processes used "
            f"{row.busy_cpu:.2f} cores"
        )
    for side in (found.slmq, found.peer):
        settings = "; ".join(f"{key}: {value}" for key, value in side["settings"].items())
        lines.append(f"- {side['engine']} loaded in {side['load_s']:.1f} s; {settings}")
    return "\n".join([*lines, *warnings(found), ""])


def cells(row: Row) -> list[str]:
    """One line of the table."""
    return [
        row.test,
        str(row.threads),
        f"**{row.ratio.median:.2f}** ({row.ratio.min:.2f} to {row.ratio.max:.2f})",
        speed(row.slmq.tokens_per_s),
        speed(row.peer.tokens_per_s),
        told(row.slmq.read_fraction),
        told(row.peer.read_fraction),
        told(row.slmq.integer_fraction),
        told(row.peer.integer_fraction),
    ]


def speed(found: Spread) -> str:
    """Tokens per second, digits as they are worth."""
    digits = 1 if found.median < 100 else 0
    return f"{found.median:.{digits}f} ({found.min:.{digits}f} to {found.max:.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def warnings(found: Comparison) -> list[str]:
    """What makes the numbers doubtful."""
    notes = []
    for row in found.rows:
        where = f"{row.test}, {counted(row.threads)}"
        for side, name, other in (
            (row.slmq, "slmq", found.peer["engine"]),
            (row.peer, found.peer["engine"], "slmq"),
        ):
            if side.idle_cpu > DISTURBING_CPU:
                notes.append(
                    f"- warning: {name} used {side.idle_cpu:.2f} cores while {other} ran ({where})"
                )
    if any(row.busy_cpu > BUSY_CPU for row in found.rows):
        notes.append(
            "- warning: the machine was busy: a quiet one would show neither these speeds nor, "
            "with several threads, these ratios"
        )
    return notes
