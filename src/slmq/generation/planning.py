"""Who takes part in the next run, and with how many tokens.

Everybody who decodes takes part, with one row each. What is left of the time for a run goes to
prompts that are begun: the shortest remainder first (it frees its reader soonest), aged, so that a
long one is not passed over for ever. While nobody decodes there is nobody to keep waiting, and a
run is as long as the plan takes. Guesses fill up runs that only a few decode.

Orca (Yu et al., 2022) runs requests step by step; Sarathi (Agrawal et al., 2023) cuts prompts so
that decoding goes on beside them.
"""

from __future__ import annotations

from collections.abc import Iterable

from slmq.generation.cost import CostModel, Work
from slmq.generation.job import Job, Part
from slmq.generation.speculation import LONGEST, best_length

__all__ = ["plan_run", "work_of"]

LEAST_PROMPT_ROWS = 16  # of a run, whatever the budget says: nobody starves
AGE_TOKENS = 32  # of a remainder that a run of waiting makes up for
GUESSING_ROWS = 8  # more rows than this decode: no guesses, they are no longer nearly free


def plan_run(
    jobs: Iterable[Job], cost: CostModel, *, chunk: int, step_s: float, speculate: bool
) -> list[Part]:
    """The parts of the next run, of jobs that hold a sequence; none if all are paused.

    Parameters
    ----------
    jobs : iterable of Job
    cost : CostModel
    chunk : int
        Most rows of a run.
    step_s : float
        Seconds that a run should take while anybody decodes.
    speculate : bool
    """
    active = [job for job in jobs if not job.paused]
    decoding = [job for job in active if job.decoding][:chunk]
    reading = [job for job in active if not job.decoding]
    parts = [Part(job, 1, []) for job in decoding]
    work = work_of(parts)
    room = chunk - len(parts)
    if speculate and not reading and 0 < len(parts) <= GUESSING_ROWS:
        _guess(parts, cost, room)
        return parts
    reading.sort(key=lambda j: (j.request.batch, j.remaining - AGE_TOKENS * j.skipped, j.admitted))
    for job in reading:
        rows = min(job.remaining, room)
        if decoding:
            fitting = cost.rows_within(step_s, work, job.cached)
            least = LEAST_PROMPT_ROWS if len(parts) == len(decoding) else 0
            rows = min(rows, max(fitting, least))
        if rows <= 0:
            job.skipped += 1
            continue
        job.skipped = 0
        parts.append(Part(job, rows, []))
        work.add(rows, job.cached, parts[-1].wanted)
        room -= rows
    return parts


def work_of(parts: Iterable[Part]) -> Work:
    """What a run of these parts does."""
    work = Work()
    for part in parts:
        work.add(part.rows, part.job.cached, part.wanted)
    return work


def _guess(parts: list[Part], cost: CostModel, room: int) -> None:
    """Add guesses where they make an answer faster."""
    shared_step_s = cost.step_s / len(parts)
    for part in parts:
        job = part.job
        most = min(LONGEST, room // len(parts), job.answer.left - 1)
        most = best_length(job.lookup.rate, shared_step_s, cost.row_s, most)
        part.guesses = job.lookup.guess(job.ids, most)
