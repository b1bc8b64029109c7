"""What answers cost: every second of the engine is put down to one of them.

A run serves many answers at once. Its time is shared out as the cost model sees it: each answer has
the rows, positions and logits that are its own, and all bear the reading of the weights together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slmq.generation.cost import Work

if TYPE_CHECKING:
    from slmq.generation.cost import CostModel
    from slmq.generation.job import Part

__all__ = ["Ledger", "Share", "share_out", "shares"]


@dataclass
class Ledger:
    """What an answer has cost so far.

    Attributes
    ----------
    prompt_s, decode_s : float
        Seconds of the engine that went into its prompt, and into its tokens. Those of all answers
        add up to the time that the engine ran.
    mask_s : float
        Seconds that its constraint took, most of them beside the runs.
    cpu_s : float
        Processor seconds of the process during its share of the runs.
    """

    prompt_s: float = 0.0
    decode_s: float = 0.0
    mask_s: float = 0.0
    cpu_s: float = 0.0


Share = tuple[Ledger, float, bool]  # how large it is, and whether a prompt is read


def shares(parts: Sequence[Part], cost: CostModel) -> list[Share]:
    """Who bears how much of a run that is about to begin; shares add up to 1."""
    found = []
    for part in parts:
        work = Work()
        work.add(part.rows, part.job.cached, part.wanted)
        own = max(cost.seconds(work) - cost.step_s, 0.0) + cost.step_s / len(parts) + 1e-9
        found.append((part.job.answer.ledger, own, part.job.read_s is None))
    total = sum(own for _, own, _ in found)
    return [(ledger, own / total, reads) for ledger, own, reads in found]


def share_out(parts: Sequence[Share], seconds: float, cpu_s: float) -> None:
    """Put a run down to those who took part in it."""
    for ledger, share, reads in parts:
        if reads:
            ledger.prompt_s += share * seconds
        else:
            ledger.decode_s += share * seconds
        ledger.cpu_s += share * cpu_s
