"""Pages of the cache: who may begin, what is given up when they run out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING

from slmq.engine.engine import NO_LIMIT
from slmq.engine.prefix import PrefixStore
from slmq.engine.sequence import PAGE
from slmq.generation.cost import CostModel, Work
from slmq.machine.memory import available_memory_bytes

if TYPE_CHECKING:
    from slmq.engine.engine import Engine
    from slmq.engine.sequence import TokenSequence
    from slmq.generation.job import Job, Part

__all__ = ["MOST_KEPT", "Pages", "Wait", "default_cache_bytes", "limit_caches"]

MOST_KEPT = 4096  # sequences: beyond that looking after them costs more than they save
LEAST_SHARED = 16  # tokens that are worth waiting for
CONTEXTS = 4  # whole contexts that the cache may hold by default, or
DEFAULT_BYTES = 2 << 30  # so much if that is more


def default_cache_bytes(engine: Engine) -> int:
    """Bytes that the cache may take unless somebody says: at most half of what is free now."""
    wanted = max(CONTEXTS * (engine.pages_of(engine.n_ctx) + 1) * engine.page_bytes, DEFAULT_BYTES)
    free = available_memory_bytes()
    least = (engine.pages_of(1) + 1) * engine.page_bytes
    return max(wanted if free is None else min(wanted, free // 2), least)


def limit_caches(engine: Engine, draft: Engine | None) -> None:
    """Bound the cache of an engine, unless that is done; a draft model gets a part of it.

    Both may then hold as many positions.

    Raises
    ------
    ValueError
        If not even a page of each fits.
    """
    cache, page_bytes = engine.plan.cache, engine.page_bytes
    if cache.limit >= NO_LIMIT:
        engine.limit_cache(default_cache_bytes(engine))
    if draft is None:
        return
    both = page_bytes + draft.page_bytes
    pages = cache.limit * page_bytes // both
    if pages < 1:
        raise ValueError(
            f"kv_bytes: expected at least {both}, a page of 64 positions of {engine.name!r} and of "
            f"its draft model, got {cache.limit * page_bytes}"
        )
    cache.limit = draft.plan.cache.limit = pages


class Wait(Enum):
    """What keeps a job from beginning."""

    PAGES = 0
    PREFIX = 1  # another is just computing what both begin with


class Pages:
    """The cache of an engine with one budget for what lives and what is kept."""

    def __init__(self, engine: Engine, cost: CostModel) -> None:
        self._engine = engine
        self._cost = cost
        self.store = PrefixStore()

    @property
    def limit(self) -> int:
        """Most pages in use."""
        return self._engine.plan.cache.limit

    @property
    def free(self) -> int:
        """Pages that may be taken without giving anything up."""
        return self.limit - self._engine.plan.cache.pages_in_use

    @property
    def capacity(self) -> int:
        """Positions of one sequence that has the cache for itself.

        A page less than the limit: a fork may have to copy the page that it shares in part.
        """
        most = max(self.limit, 2) - 1
        if self._engine.pages_of(most * PAGE) > most:  # states take some
            counts = range(1, most + 1)
            most = max(1, bisect_right(counts, most, key=lambda n: self._engine.pages_of(n * PAGE)))
        return min(self._engine.n_ctx, most * PAGE)

    def begin(self, job: Job, running: Iterable[Job]) -> TokenSequence | Wait:
        """A sequence for a job, forked off the longest that begins like it; else what is amiss."""
        ids, others = job.array(), list(running)
        most = len(ids) - 1  # the last one is fed in any case, for its logits
        source, shared = self.store.longest(job.request.kin, ids[:most])
        coming = 0
        for other in others:
            if other.request.kin != job.request.kin or other.sequence is None:
                continue
            have = other.sequence.shared_with(ids[:most])
            if have > shared:
                source, shared = other.sequence, have
            if have == other.cached and not other.yields_to(job):
                coming = max(coming, other.shared_ahead(ids[:most]))
        if coming >= shared + LEAST_SHARED:
            return Wait.PREFIX
        size = self._engine.pages_of
        need = size(max(job.reserved, len(ids) + 1)) - shared // PAGE
        room = self.free + self.store.pages
        room += sum(size(o.cached) for o in others if o.yields_to(job))
        firm = [o for o in others if not o.yields_to(job)]
        promised = sum(max(0, size(o.reserved) - size(o.cached)) for o in firm)
        if firm and room < need + promised:
            return Wait.PAGES
        if source is None:
            return self._engine.sequence(job.request.adapter)
        if source in self.store:
            self.store.use(source, self._worth(len(source.tokens)))
        return source.fork(shared)

    def known(self, job: Job) -> int:
        """How many tokens of its prompt a job will find in the store."""
        return self.store.longest(job.request.kin, job.prompt[:-1])[1]

    def keep(self, job: Job) -> None:
        """Keep what was computed for a job, for others and for itself later."""
        sequence, job.sequence = job.sequence, None
        if sequence is None:
            return
        self.store.insert(job.request.kin, sequence, self._worth(len(sequence.tokens)))
        while len(self.store) > MOST_KEPT:
            self.store.evict()

    def release(self) -> None:
        """Give back to the system whatever no sequence in use needs."""
        self.store.clear()
        self._engine.plan.cache.trim()

    def lacking(self, parts: Iterable[Part]) -> int:
        """Pages that a run needs beyond what is free, after giving up what is kept."""
        while True:
            needed = sum(
                p.job.sequence.pages_needed(p.rows + p.asked) for p in parts if p.job.sequence
            )
            lacking = needed - self.free
            if lacking <= 0 or not self.store.evict():
                return max(lacking, 0)

    def _worth(self, tokens: int) -> float:
        """Seconds that computing a kept sequence again would take, per byte of it."""
        work = Work()
        work.add(tokens, 0, 0)
        pages = self._engine.pages_of(max(tokens, 1))
        return self._cost.seconds(work) / (pages * self._engine.page_bytes)
