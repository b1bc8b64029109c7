"""What a scheduler counts, and what it tells of that."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import slmq._native as _native
    from slmq.generation.answer import Answer
    from slmq.generation.cost import Work

__all__ = ["Counters", "Stats"]

LATEST = 512  # runs whose times are remembered


@dataclass(frozen=True)
class Stats:
    """A look at a model at work; made by `Model.stats`.

    Attributes
    ----------
    waiting, running : int
        Requests in the queue, and answers that are being made.
    submitted, finished, cancelled, failed : int
        Requests so far, and how they ended.
    prompt_tokens, cached_tokens, generated_tokens : int
        Of finished answers: tokens of prompts, those of them that were kept from before, and tokens
        of answers.
    drafted_tokens, accepted_tokens : int
        Tokens guessed ahead, and how many of them were right.
    preemptions : int
        How often an answer gave its pages back and was computed again.
    pages_in_use, pages_kept, pages_limit : int
        Pages of the cache (64 positions each) that hold something; those that finished sequences
        keep for later prompts (a page that several share counts for each); and the most allowed.
    cache_bytes : int
        Memory that the cache has taken from the system.
    runs, rows : int
        Runs of the model, and rows in them.
    busy_s : float
        Seconds of all runs, those of a draft model included; what answers cost (`Ledger`) adds up
        to it.
    step_ms_p50, step_ms_p99 : float
        Milliseconds of the latest runs; 0 before the first.
    """

    waiting: int
    running: int
    submitted: int
    finished: int
    cancelled: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    preemptions: int
    pages_in_use: int
    pages_kept: int
    pages_limit: int
    cache_bytes: int
    runs: int
    rows: int
    busy_s: float
    step_ms_p50: float
    step_ms_p99: float


class Counters:
    """Counts; the scheduler guards them with its lock."""

    def __init__(self) -> None:
        self.submitted = self.cancelled = self.failed = self.preemptions = 0
        self.mean_answer = 128.0  # tokens
        self._finished = self._prompt = self._cached = self._generated = 0
        self._drafted = self._accepted = 0
        self._runs = self._rows = 0
        self._busy_s = 0.0
        self._latest_s: deque[float] = deque(maxlen=LATEST)

    def finished(self, answer: Answer) -> None:
        """Count a complete answer."""
        self._finished += 1
        self._prompt += len(answer.request.prompt)
        self._cached += answer.cached_tokens
        self._generated += len(answer.tokens)
        self._drafted += answer.drafted_tokens
        self._accepted += answer.accepted_tokens
        self.mean_answer += 0.1 * (len(answer.tokens) - self.mean_answer)

    def ran(self, seconds: float, work: Work) -> None:
        """Count a run."""
        self._busy_s += seconds
        self._runs += 1
        self._rows += work.rows
        self._latest_s.append(seconds)

    def stats(self, waiting: int, running: int, kept: int, cache: _native.KvCache | None) -> Stats:
        """Everything, as of now."""
        times = np.array(self._latest_s or [0.0]) * 1e3
        return Stats(
            waiting=waiting,
            running=running,
            submitted=self.submitted,
            finished=self._finished,
            cancelled=self.cancelled,
            failed=self.failed,
            prompt_tokens=self._prompt,
            cached_tokens=self._cached,
            generated_tokens=self._generated,
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
            preemptions=self.preemptions,
            pages_in_use=0 if cache is None else cache.pages_in_use,
            pages_kept=kept,
            pages_limit=0 if cache is None else cache.limit,
            cache_bytes=0 if cache is None else cache.allocated_bytes,
            runs=self._runs,
            rows=self._rows,
            busy_s=self._busy_s,
            step_ms_p50=float(np.percentile(times, 50)),
            step_ms_p99=float(np.percentile(times, 99)),
        )
