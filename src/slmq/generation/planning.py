"""Who takes part in the next run, and with how many tokens.

Everybody who decodes takes part, with one row each and those of tokens that a constraint forced.
What is left of the time for a run goes to prompts that are begun: the shortest remainder first (it
frees its reader soonest), aged, so that a long one is not passed over for ever. A run with a prompt
may take longer than one without: what decoding costs a newcomer falls with every run that its
prompt is cut into. It may take longer yet if all who decode are waited for as a whole. While nobody
decodes there is nobody to keep waiting, and a run is as long as the plan takes; also while only
batches do. Batches get what the others leave, in turn. Guesses fill up runs that only a few decode.

Orca (Yu et al., 2022) runs requests step by step; Sarathi (Agrawal et al., 2023) cuts prompts so
that decoding goes on beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from slmq.generation.cost import CostModel, Work
from slmq.generation.job import Job, Part
from slmq.generation.speculation import LONGEST

if TYPE_CHECKING:
    from slmq.generation.draft import Draft

__all__ = ["plan_run", "work_of"]

LEAST_PROMPT_ROWS = 16  # of a run, whatever the budget says: nobody starves
AGE_TOKENS = 32  # of a remainder that a run of waiting makes up for
WORTHWHILE = 8.0  # times what a run takes beside its rows: as long, where nobody reads
READING_STEPS = 1.75  # times `step_s`: what a run with a prompt in it is planned to take
GUESSING_ROWS = 8  # more rows than this decode: no guesses, they are no longer nearly free


def plan_run(
    jobs: Iterable[Job],
    cost: CostModel,
    *,
    chunk: int,
    step_s: float,
    speculate: bool,
    draft: Draft | None = None,
) -> list[Part]:
    """The parts of the next run, of jobs that hold a sequence; none if all are paused.

    Parameters
    ----------
    jobs : iterable of Job
    cost : CostModel
    chunk : int
        Most rows of a run.
    step_s : float
        Seconds that a run should take while anybody decodes; READING_STEPS times as many with a
        prompt in it, unless that of a batch would keep somebody waiting.
    speculate : bool
    draft : Draft, optional
        A model that can guess, too.
    """
    active = [job for job in jobs if not job.paused]
    parts: list[Part] = []
    work = Work()
    for batch in (False, True):
        mine = [job for job in active if job.request.batch is batch]
        hurried = bool(parts)  # batches take what is left of the time of a run, but never nothing
        for job in sorted((j for j in mine if j.decoding), key=lambda j: -j.skipped):
            late = hurried and parts[-1].job.request.batch and cost.seconds(work) >= step_s
            rows = min(job.remaining, chunk - work.rows)
            if rows > 1:  # of forced tokens, what the time allows
                rows = min(rows, max(1, cost.rows_within(step_s, work, job.cached)))
            _take(parts, work, job, 0 if late else rows)
        budget_s = _budget_s(parts, cost, step_s, hurried) if hurried or not batch else None
        _read(parts, work, [job for job in mine if not job.decoding], cost, chunk, budget_s)
    _force(parts, chunk - work.rows)
    if speculate and 0 < len(parts) <= GUESSING_ROWS and all(p.job.decoding for p in parts):
        _guess(parts, cost, chunk - sum(part.rows for part in parts), draft)
    return parts


def _budget_s(parts: list[Part], cost: CostModel, step_s: float, of_others: bool) -> float | None:
    """How long a run may take with a prompt in it; None: as long as it likes."""
    decoding = [part.job.request for part in parts if part.job.decoding]
    if not decoding:
        return None
    if of_others:
        return step_s
    budget_s = step_s * READING_STEPS
    if all(request.whole for request in decoding):
        budget_s = max(budget_s, cost.step_s * WORTHWHILE)
    return budget_s


def _read(
    parts: list[Part],
    work: Work,
    jobs: list[Job],
    cost: CostModel,
    chunk: int,
    budget_s: float | None,
) -> None:
    """Add prompts, as far as the time goes."""
    for job in sorted(jobs, key=lambda j: (j.remaining - AGE_TOKENS * j.skipped, j.admitted)):
        rows = min(job.remaining, chunk - work.rows)
        if budget_s is not None:
            nobody = all(part.job.decoding for part in parts)
            fitting = cost.rows_within(budget_s, work, job.cached)
            rows = min(rows, max(fitting, LEAST_PROMPT_ROWS if nobody else 0))
        _take(parts, work, job, rows)


def _take(parts: list[Part], work: Work, job: Job, rows: int) -> None:
    """Let a job take part with so many rows, or wait for the next run."""
    if rows <= 0:
        job.skipped += 1
        return
    job.skipped = 0
    parts.append(Part(job, rows, []))
    work.add(rows, job.cached, parts[-1].wanted)


def work_of(parts: Iterable[Part]) -> Work:
    """What a run of these parts does."""
    work = Work()
    for part in parts:
        work.add(part.rows, part.job.cached, part.wanted)
    return work


def _force(parts: list[Part], room: int) -> None:
    """Add forced tokens that are no ids yet, since their logits are wanted."""
    for part in parts:
        matcher = part.job.answer.matcher
        if matcher is None or not matcher.forced or part.wanted == 0:
            continue
        most = min(LONGEST, room, part.job.answer.left - 1)
        part.guesses = list(islice(matcher.forced, max(0, most)))
        part.certain = bool(part.guesses)
        room -= len(part.guesses)


def _guess(parts: list[Part], cost: CostModel, room: int, draft: Draft | None) -> None:
    """Add guesses where they make an answer faster."""
    shared_step_s = cost.step_s / len(parts)
    for part in parts:
        job = part.job
        if part.certain:
            continue
        most = min(LONGEST, room // len(parts), job.answer.left - 1)
        others = 0.0 if draft is None else job.trust.rate
        part.guesses = job.lookup.guess(job.ids, most, shared_step_s, cost.row_s, others)
        if part.guesses and job.answer.matcher is not None:
            part.guesses = job.answer.matcher.fitting(part.guesses)
        if draft is not None and not part.guesses:
            part.asked = draft.length(job, shared_step_s, cost.row_s, len(parts), most)
