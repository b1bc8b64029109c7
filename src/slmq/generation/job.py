"""A request on its way: what is computed of it, and what its reader has not taken yet."""

from __future__ import annotations

import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from slmq.engine.sequence import common_length
from slmq.generation.results import StreamChunk
from slmq.generation.speculation import Lookup, Trust

if TYPE_CHECKING:
    import numpy.typing as npt

    from slmq.engine.sequence import TokenSequence
    from slmq.generation.answer import Answer, Request

__all__ = ["AHEAD", "Event", "Job", "Part", "PromptRead"]

AHEAD = 16  # chunks that may wait for their reader; then the answer pauses


@dataclass(frozen=True)
class PromptRead:
    """So much of a prompt is read."""

    done: int
    total: int


Event = StreamChunk | PromptRead | BaseException


class Job:
    """What the scheduler knows of a request. All of it is guarded by the scheduler's lock.

    Attributes
    ----------
    ids : array of int
        Prompt and answer so far: what `sequence` holds, and what it still has to take up.
    sequence : TokenSequence or None
        None while it waits, and after it was preempted.
    admitted : int
        When it was admitted, counted; the last one is preempted first.
    events : deque
        What its reader has not taken yet, the last one of an answer included.
    over : bool
        Nothing will be added to `events`.
    gone : bool
        Its listener has raised: nobody is there any more.
    """

    def __init__(self, request: Request, answer: Answer, lock: threading.Lock) -> None:
        self.request = request
        self.answer = answer
        self.ids = array("i", request.prompt)
        self.prompt = np.array(request.prompt, np.int32)
        self.told = 0  # tokens of the prompt whose reader knows that they are read
        self.sequence: TokenSequence | None = None
        self.admitted = 0
        self.reserved = 0
        self.skipped = 0  # runs that went by while its prompt waited
        self.events: deque[Event] = deque()
        self.over = False
        self.cancelled = False
        self.gone = False
        self.lookup = Lookup()
        self.trust = Trust()  # in a draft model, if there is one
        self.forced = 0  # ids at the end that a constraint forced, and no run has seen
        self.listener: Callable[[], None] | None = None
        self.ready = threading.Condition(lock)
        self.submitted_s = time.perf_counter()
        self.began_s: float | None = None
        self.read_s: float | None = None  # when the prompt was read
        self.expected_s = 0.0  # until its first token, when it was submitted

    @property
    def cached(self) -> int:
        """Tokens that its sequence holds."""
        return 0 if self.sequence is None else len(self.sequence.tokens)

    @property
    def remaining(self) -> int:
        """Tokens that have to be computed before the next one can be drawn."""
        return len(self.ids) - self.cached

    @property
    def decoding(self) -> bool:
        """Whether only what its answer said last is missing: a token and those forced by it."""
        return self.remaining <= 1 + self.forced and self.read_s is not None

    @property
    def paused(self) -> bool:
        """Whether its reader is too far behind."""
        if self.request.follow and self.read_s is None:
            return bool(self.events)
        return len(self.events) >= AHEAD

    @property
    def expired(self) -> bool:
        """Whether its deadline is over."""
        limit = self.request.deadline_s
        return limit is not None and time.perf_counter() - self.submitted_s > limit

    @property
    def left_s(self) -> float | None:
        """Seconds until its deadline, a little more; None without one."""
        limit = self.request.deadline_s
        if limit is None:
            return None
        return max(0.0, self.submitted_s + limit - time.perf_counter()) + 1e-3

    def array(self) -> npt.NDArray[np.int32]:
        """A copy of `ids`."""
        return np.array(self.ids, np.int32)

    def shared_ahead(self, ids: npt.NDArray[np.int32]) -> int:
        """How many tokens `ids` will share with its sequence once its prompt is read."""
        return common_length(self.prompt, ids)

    def yields_to(self, other: Job) -> bool:
        """Whether this one steps aside so that another can run."""
        return self.paused or (self.request.batch and not other.request.batch)

    def put(self, event: Event) -> None:
        """Hand something to the reader; of a whole answer, not the pieces."""
        if self.request.whole and isinstance(event, StreamChunk) and event.finish_reason is None:
            return
        self.events.append(event)
        self.tell()

    def finish(self) -> None:
        """Nothing more will come."""
        self.over = True
        self.tell()

    def tell(self) -> None:
        """Wake the reader."""
        self.ready.notify_all()
        if self.listener is None:
            return
        try:
            self.listener()
        except Exception:  # such as that of a closed event loop: the other answers go on
            self.listener, self.gone = None, True


@dataclass
class Part:
    """What a run takes up for a job: the next `count` of its ids, then guesses.

    Guesses are `certain` where a constraint forces them and their logits are wanted. `wanted` is of
    how many of these rows logits are needed: of none within a prompt, else of the last id and of
    every guess. `asked` is how many guesses a draft model has yet to make.
    """

    job: Job
    count: int
    guesses: list[int]
    certain: bool = False
    asked: int = 0
    by_model: bool = False  # whether a draft model guesses, not the job's lookup

    def __post_init__(self) -> None:
        # Whether the job's next token can be drawn afterwards: the run itself changes what remains.
        self.completes = self.count == self.job.remaining

    @property
    def rows(self) -> int:
        """Rows in the run."""
        return self.count + len(self.guesses)

    @property
    def wanted(self) -> int:
        """Rows whose logits are needed."""
        return 1 + len(self.guesses) if self.completes and not self.job.answer.silent else 0
