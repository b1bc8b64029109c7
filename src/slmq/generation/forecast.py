"""When a request may expect its first token, and when there is room for another one.

Both follow from what runs and waits now, and from the measured speed of the engine. Answers are
taken to be as long as they may be, or as answers usually are where nothing limits them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slmq.generation.cost import CostModel, Work

if TYPE_CHECKING:
    from slmq.generation.job import Job

__all__ = ["Forecast"]

LEAST_SHARE = 0.1  # of a run that goes to prompts, however many decode


@dataclass(frozen=True)
class Forecast:
    """The state of a scheduler, as far as it tells what comes.

    Attributes
    ----------
    running, waiting : sequence of Job
    cost : CostModel
    most_running : int
    step_s : float
        How long a run may take while anybody decodes.
    mean_answer : float
        Tokens.
    """

    running: Sequence[Job]
    waiting: Sequence[Job]
    cost: CostModel
    most_running: int
    step_s: float
    mean_answer: float

    def first_token_s(self, job: Job, shared: int) -> float:
        """Seconds until the first token of a job that is queued now.

        Parameters
        ----------
        job : Job
        shared : int
            Tokens of its prompt that need not be computed.
        """
        ahead = len(self.running) + len(self.waiting)
        slots = ahead + 1 - self.most_running
        wait_s = self.slot_s(slots) if slots > 0 else 0.0
        reading = [j for j in (*self.running, *self.waiting) if j.read_s is None]
        prompts_s = self._read_s(job, shared) + sum(self._read_s(j, j.cached) for j in reading)
        deciding_s = self._decode_s(sum(j.decoding for j in self.running))
        if deciding_s == 0:
            return wait_s + prompts_s
        # Prompts get what decoding leaves of a run.
        free = max(1.0 - deciding_s / max(self.step_s, deciding_s), LEAST_SHARE)
        return wait_s + prompts_s / free + deciding_s

    def slot_s(self, count: int) -> float:
        """Seconds until so many of the answers that run or wait are complete."""
        running = self.running or self.waiting[: self.most_running]  # those begin at once
        if not running or count <= 0:
            return 0.0
        token_s = self._decode_s(len(running))
        left = sorted(
            j.remaining * self.cost.row_s + max(0, j.reserved - len(j.ids)) * token_s
            for j in running
        )
        rounds, rest = divmod(count - 1, len(left))
        # Those that come in their places take as long as answers usually do.
        return left[rest] + rounds * self.mean_answer * token_s

    def _decode_s(self, rows: int) -> float:
        return self.cost.step_s + rows * self.cost.row_s if rows else 0.0

    def _read_s(self, job: Job, done: int) -> float:
        """Seconds that the rest of a prompt takes by itself."""
        work = Work()
        work.add(max(1, len(job.ids) - done), done, 1)
        return self.cost.seconds(work)
