"""Many answers at once: who waits, who takes part in the next run, and what comes of it.

`step` is an ordinary function: it plans a run, runs it, and hands out what it gave. A thread of the
scheduler's own calls it as long as there is anything to do, so no interrupt of a reader ever lands
inside; a test may call it instead. Answers do not depend on any of this: a row's bits do not depend
on its neighbours, a draw depends on the seed and its index alone, and what was computed before can
be computed again.
"""

from __future__ import annotations

import itertools
import operator
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.engine.engine import MAX_OUTPUTS, Engine
from slmq.errors import BusyError, CacheFullError, ClosedError, DeadlineError
from slmq.generation.answer import Answer, Request
from slmq.generation.cost import CostModel
from slmq.generation.draft import Draft
from slmq.generation.drawing import Said, draw
from slmq.generation.driver import Driver, Turn, guard_at_fork
from slmq.generation.forecast import Forecast
from slmq.generation.job import Event, Job, Part, PromptRead
from slmq.generation.ledger import share_out, shares
from slmq.generation.masks import Masks
from slmq.generation.pages import Pages, Wait
from slmq.generation.planning import plan_run, work_of
from slmq.generation.stats import Counters, Stats

F32 = npt.NDArray[np.float32]

__all__ = ["MOST_WAITING", "Scheduler"]

MOST_RUNNING = 64
MOST_WAITING = 1024
STEP_MS = 40.0
PATIENCE = 64  # requests that are looked at for a run though they wait for another's prompt


class Scheduler:
    """Runs the requests of any number of threads on one engine.

    Parameters
    ----------
    engine : Engine
    step_ms : float
        How long a run may take while anybody decodes: the time between two tokens of a stream.
        While another's prompt is read it is 1.75 times as long.
    most_running, most_waiting : int
        Answers that are made at once, and that may wait.
    speculate : bool
        Whether tokens are guessed ahead where that pays.
    drive : bool
        Whether a thread calls `step`; else whoever waits for a chunk does.
    draft : Draft, optional
        A small model that guesses; it belongs to the scheduler.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        step_ms: float = STEP_MS,
        most_running: int = MOST_RUNNING,
        most_waiting: int = MOST_WAITING,
        speculate: bool = True,
        drive: bool = True,
        draft: Draft | None = None,
    ) -> None:
        self._engine = engine
        self._step_s = step_ms / 1e3
        self._most_running = min(most_running, engine.chunk)  # so that all can have a row in a run
        self._most_waiting = most_waiting
        self._speculate = speculate
        self._draft = draft
        self._cost = CostModel()
        self._pages = Pages(engine, self._cost)
        self._counters = Counters()
        self._waiting: list[Job] = []  # in the order in which they are admitted
        self._running: list[Job] = []
        self._dropped: deque[Job] = deque()
        self._admissions = 0
        self._promised: list[float] = []  # when those come again who found no place
        self._parts: list[Part] = []  # of the run that is under way
        self._flag = _native.CancelFlag()
        self._closed = False
        self._owner: int | None = None  # the thread that has the engine for itself
        self._lock = threading.Lock()  # jobs and their events
        self._busy = Turn()  # the engine; taken before the other one
        self._masks = Masks()
        self._driver = Driver(self._lock, self.step, self._fail_all) if drive else None
        guard_at_fork(self)

    # --- callers ------------------------------------------------------------------------------

    def submit(self, request: Request) -> Job:
        """Queue a request; a `TokenStream` is the handle on what comes of it.

        Raises
        ------
        BusyError
            If too many wait already; `retry_after_s` tells when it should be worth another try.
        CacheFullError
            If prompt and answer would not fit the cache even alone.
        ClosedError
            If the model is closed.
        """
        capacity, asked = self._pages.capacity, request.params.limit
        length = len(request.prompt)
        if length + (1 if asked is None else asked) > capacity:
            raise CacheFullError(
                f"the prompt has {length} tokens and the answer may have "
                f"{'any number' if asked is None else asked}, but the cache of keys and values may "
                f"hold {capacity} positions; load the model with larger kv_bytes or ask for less"
            )
        with self._lock:
            self._require_place()  # before anything is made that a traceback would hold
        answer = Answer(self._engine.tokenizer, capacity - length, request)
        job = Job(request, answer, self._lock)
        expected = self._counters.mean_answer * 1.5 if asked is None else asked
        job.reserved = min(capacity, length + int(expected))
        with self._lock:
            self._require_place()
            shared = self._pages.known(job)
            job.expected_s = self._forecast().first_token_s(job, shared)
            self._enqueue(job)
            self._counters.submitted += 1
            self._wake()
        return job

    def next_event(self, job: Job, *, wait: bool) -> Event | None:
        """Take what comes next of a job; None when it was cancelled, or nothing is there yet."""
        with self._lock:
            while not job.events and not job.over and wait:
                self._require_others()
                if self._wake():
                    job.ready.wait(job.left_s)
                    continue
                self._lock.release()
                try:
                    went_on = self.step()
                finally:
                    self._lock.acquire()
                if not went_on and not job.events and not job.over:
                    raise BusyError("nobody can go on: read the other streams of this model first")
            if job.cancelled or not job.events:
                return None
            was_paused = job.paused
            event = job.events.popleft()
            if was_paused:
                self._wake()
            return event

    def cancel(self, job: Job) -> None:
        """Give an answer up, wherever it is; what was computed for it is kept."""
        with self._lock:
            if job.over and not job.events:
                return
            job.cancelled = True
            job.events.clear()
            if job.over:
                return
            self._counters.cancelled += 1
            job.finish()
            cancelled = sum(p.rows for p in self._parts if p.job.cancelled)
            if 2 * cancelled > sum(p.rows for p in self._parts):
                self._flag.set()  # the run is mostly for nobody: it ends between two layers
            self._wake()

    def drop(self, job: Job) -> None:
        """Cancel soon, without a lock: a collector may call it while this thread holds that."""
        self._dropped.append(job)

    def listen(self, job: Job, listener: Callable[[], None] | None) -> None:
        """Call `listener` whenever a job has something new, and now if it has."""
        with self._lock:
            job.listener = listener
            if listener is not None and (job.events or job.over):
                listener()
            self._wake()

    def attend(self) -> bool:
        """Whether this thread may wait for a listener to wake it; if not, it has stepped."""
        self._require_others()
        if self._driver is not None:
            return True
        if not self.step():
            raise BusyError("nobody can go on: read the other streams of this model first")
        return False

    @property
    def drives(self) -> bool:
        """Whether a thread of its own steps it."""
        return self._driver is not None

    @contextmanager
    def exclusive(self) -> Iterator[Engine]:
        """The engine for this thread alone within the block: all answers wait."""
        if self._owner == threading.get_ident():
            raise BusyError("this thread has the engine for itself already")
        with self._busy:
            with self._lock:
                self._require_open()
                self._owner = threading.get_ident()
                self._make_room(self._engine.pages_of(self._engine.n_ctx))
            try:
                yield self._engine
            finally:
                with self._lock:
                    self._owner = None
                    self._wake()

    def stats(self) -> Stats:
        """What is going on, and what has been done so far."""
        with self._lock:
            cache = None if self._closed else self._engine.plan.cache
            return self._counters.stats(
                len(self._waiting), len(self._running), self._pages.store.pages, cache
            )

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Cancel every answer, wait for the run that is under way, and free the engine."""
        self._require_others()
        with self._lock:
            self._closed = True
            self._flag.set()
            for job in (*self._waiting, *self._running):
                job.cancelled = True
                job.events.clear()
                job.finish()
        if self._driver is not None:
            self._driver.stop()
        with self._busy, self._lock:
            for job in self._running:
                if job.sequence is not None:
                    job.sequence.close()
                    job.sequence = None
            self._waiting.clear()
            self._running.clear()
            self._pages.store.clear()
            self._engine.close()
            if self._draft is not None:
                self._draft.close()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """No run is under way within the block, and nobody is let in: for a fork of the process."""
        with nullcontext() if self._owner == threading.get_ident() else self._busy, self._lock:
            yield

    def forked(self) -> None:
        """In a child of a fork: the other threads are not here."""
        self._busy.forked()
        self._masks = Masks()
        if self._driver is not None:
            self._driver.forget()

    # --- a run --------------------------------------------------------------------------------

    def step(self) -> bool:
        """Plan one run, run it and hand out what it gives; False if nobody could go on."""
        with self._busy:
            with self._lock:
                parts = [] if self._closed else self._prepare()
                self._parts, self._flag = parts, _native.CancelFlag()
                if not parts:
                    self._masks.rest()
                    return False
            start_s, cpu_s = time.perf_counter(), time.process_time()
            try:
                if self._draft is not None:
                    self._draft.guess(parts, self._step_s)
                began_s = time.perf_counter()
                work, borne = work_of(parts), shares(parts, self._cost)
                with self._masks.computing(p.job.answer.drawn_from for p in parts if p.wanted):
                    rows = self._run(parts)
            except Exception as error:
                with self._lock:
                    self._after_failure(parts, error)
                return True
            if rows is not None:
                drawn = draw(parts, rows)
            end_s = time.perf_counter()
            with self._lock:
                self._parts = []
                share_out(borne, end_s - start_s, time.process_time() - cpu_s)
                self._counters.ran(end_s - start_s, work)
                if rows is not None:
                    self._cost.learn(work, end_s - began_s)
                    for part, chunks in zip(parts, drawn, strict=True):
                        self._hand_out(part, chunks)
                self._settle()
            return True

    def _run(self, parts: list[Part]) -> F32 | None:
        batch = []
        for part in parts:
            job = part.job
            assert job.sequence is not None
            first = job.cached
            ids: list[int] | array[int] = job.ids[first : first + part.count]
            if part.guesses:
                ids = [*ids, *part.guesses]
            batch.append((job.sequence, ids, part.wanted))
        # Logits are looked at before anything else runs: no copy is needed of a single block.
        several = sum(part.wanted for part in parts) > MAX_OUTPUTS
        blocks = self._engine.run(batch, cancel=self._flag, copy=several)
        if blocks is None:
            return None
        found = list(blocks)
        if len(found) == 1:
            return np.ascontiguousarray(found[0])
        return np.concatenate(found) if found else np.empty((0, self._engine.n_vocab), np.float32)

    # --- all below: with the lock held ----------------------------------------------------------

    def _prepare(self) -> list[Part]:
        """Let go of who has left, let in who may come, and plan a run that has its pages."""
        for job in [j for j in (*self._waiting, *self._running) if j.expired and not j.over]:
            job.put(
                DeadlineError(
                    f"the answer was not complete after {job.request.deadline_s} s; it has "
                    f"{len(job.answer.tokens)} tokens"
                )
            )
            job.finish()
            self._counters.failed += 1
        self._settle()
        self._admit()
        while True:
            parts = plan_run(
                self._running,
                self._cost,
                chunk=self._engine.chunk,
                step_s=self._step_s,
                speculate=self._speculate,
                draft=self._draft,
            )
            if not parts or self._pages.lacking(parts) == 0:
                break
            self._preempt()
        now_s = time.perf_counter()
        for part in parts:
            if part.job.began_s is None:
                part.job.began_s = now_s
                part.job.answer.queued_s = now_s - part.job.submitted_s
        return parts

    def _settle(self) -> None:
        """Keep what was computed for jobs that are over, and forget them."""
        while self._dropped:
            self._dropped.popleft().gone = True
        for job in (*self._waiting, *self._running):
            if job.gone and not job.over:
                job.cancelled = True
                self._counters.cancelled += 1
                job.finish()
        for job in self._running:
            if job.over:
                self._pages.keep(job)
        self._running = [job for job in self._running if not job.over]
        self._waiting = [job for job in self._waiting if not job.over]

    def _admit(self) -> None:
        patience = PATIENCE
        for job in [job for job in self._waiting if not job.paused]:
            last = self._last() if len(self._running) >= self._most_running else None
            if last is not None and not last.yields_to(job):
                return
            begun = self._pages.begin(job, self._running)
            if begun is Wait.PREFIX and patience > 0:
                patience -= 1
                continue
            if isinstance(begun, Wait):
                return  # nobody who needs less passes: there might always be such a one
            if last is not None:
                self._put_aside(last)
            self._waiting.remove(job)
            self._running.append(job)
            self._admissions += 1
            job.sequence, job.admitted = begun, self._admissions
            if job.began_s is None:
                job.answer.cached_tokens = job.cached

    def _last(self) -> Job:
        """The running job that steps aside first."""
        return max(self._running, key=lambda job: (job.paused, job.request.batch, job.admitted))

    def _put_aside(self, job: Job) -> None:
        """Let a job wait again, before all others of its kind; what was computed is kept."""
        self._running.remove(job)
        self._pages.keep(job)
        first = 0
        while job.request.batch and first < len(self._waiting):
            if self._waiting[first].request.batch:
                break
            first += 1
        self._waiting.insert(first, job)

    def _make_room(self, pages: int) -> None:
        """Free so many pages if it can be done; whoever loses some is computed again later."""
        while self._pages.free < pages:
            if self._pages.store.evict():
                continue
            if not self._running:
                return
            self._put_aside(self._last())

    def _preempt(self) -> None:
        """Take the pages of the job that was admitted last; it is computed again later."""
        victim = self._last()
        if len(self._running) == 1:
            # It has the cache for itself, but for what the engine's own users hold.
            self._running.clear()
            self._fail(
                victim,
                CacheFullError(
                    f"the cache of keys and values may hold {self._pages.limit} pages of 64 "
                    f"positions, and {victim.cached} positions of this answer fill it"
                ),
            )
            return
        self._put_aside(victim)
        self._counters.preemptions += 1

    def _hand_out(self, part: Part, chunks: list[Said]) -> None:
        job = part.job
        assert job.sequence is not None
        if job.read_s is None:
            self._read_on(job)
        known = len(job.ids)
        job.ids.extend(job.answer.tokens[known - len(job.request.prompt) :])
        if part.guesses:
            agreeing = map(operator.eq, part.guesses, job.ids[known:])
            right = sum(itertools.takewhile(bool, agreeing))
            right_ids = min(known + right, len(job.ids) - 1, job.cached)
            job.sequence.truncate(job.sequence.kept(right_ids))
        if part.wanted:
            job.forced = max(0, job.remaining - 1)
        if job.over:
            return
        for chunk in chunks:
            job.put(chunk)
            if isinstance(chunk, Exception):
                self._counters.failed += 1
                job.finish()
            elif chunk.finish_reason is not None:
                self._counters.finished(job.answer)
                job.finish()
        if not chunks and part.completes and job.answer.silent:
            job.put(job.answer.end("length"))
            self._counters.finished(job.answer)
            job.finish()

    def _read_on(self, job: Job) -> None:
        """Report how far a prompt is read."""
        total = len(job.request.prompt)
        done = min(job.cached, total)
        if job.request.follow and not job.over and done > job.told:  # less after it was preempted
            job.told = done
            job.put(PromptRead(done, total))
        if done == total:
            job.read_s = time.perf_counter()

    def _after_failure(self, parts: list[Part], error: Exception) -> None:
        """A run that failed is nobody's fault in particular unless it had one part only."""
        self._parts = []
        short = isinstance(error, MemoryError)
        if len(parts) > 1 and short:
            self._preempt()
        else:
            for part in parts:
                self._fail(part.job, error)
            self._settle()
        if short:  # the system has no more: what is kept may be what is missing
            self._pages.release()
            if self._draft is not None:
                self._draft.release()

    def _fail(self, job: Job, error: BaseException) -> None:
        """End an answer with an error; what its sequence holds is not worth a guess."""
        if job.sequence is not None:
            job.sequence.close()
            job.sequence = None
        if not job.over:
            job.put(error)
            job.finish()
            self._counters.failed += 1

    def _fail_all(self, error: BaseException) -> None:
        for job in (*self._waiting, *self._running):
            self._fail(job, error)
        self._waiting.clear()
        self._running.clear()

    def _enqueue(self, job: Job) -> None:
        """Interactive requests go before those of batches, and each kind in its own order."""
        at = len(self._waiting)
        if not job.request.batch:
            while at > 0 and self._waiting[at - 1].request.batch:
                at -= 1
        self._waiting.insert(at, job)

    def _forecast(self) -> Forecast:
        return Forecast(
            self._running,
            self._waiting,
            self._cost,
            self._most_running,
            self._step_s,
            self._counters.mean_answer,
        )

    def _next_place_s(self) -> float:
        """Seconds until one more may wait; whoever is told so has the place until then."""
        now_s = time.perf_counter()
        self._promised = [due_s for due_s in self._promised if due_s > now_s]
        wait_s = self._forecast().slot_s(len(self._promised) + 1)
        self._promised.append(now_s + wait_s)
        return wait_s

    def _wake(self) -> bool:
        """Something has changed; whether a thread is there to go on."""
        return self._driver is not None and self._driver.wake()

    def _require_others(self) -> None:
        """A thread that keeps the engine from everybody must not wait for them."""
        if self._owner == threading.get_ident():
            raise BusyError("this thread has the engine for itself; leave that block first")

    def _require_place(self) -> None:
        """Raise unless the model is open and one more may wait; with the lock held."""
        self._require_open()
        if len(self._waiting) >= self._most_waiting:
            wait_s = self._next_place_s()
            raise BusyError(
                f"{len(self._waiting)} requests wait already; there should be a place in "
                f"{wait_s:.1f} s",
                retry_after_s=wait_s,
            )

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the model {self._engine.name!r} is closed")
