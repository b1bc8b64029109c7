"""Guesses of a small model with the same tokenizer, which the large one checks in one run.

(Leviathan et al., "Fast inference from transformers via speculative decoding", 2023; Chen et al.,
2023.) There, a guess is kept or thrown away so that answers keep their distribution. Here answers
keep their bits: what is said is what the sampler draws from the large model's logits. The same
sampler also draws the guess, from the small model's logits and with the random number that belongs
to that place; so where the two models think alike they say the same, at any temperature.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from slmq.engine.engine import Engine
from slmq.engine.prefix import PrefixStore
from slmq.engine.sequence import TokenSequence
from slmq.errors import TokenizerError
from slmq.generation.cost import CostModel, Work
from slmq.generation.job import Job, Part
from slmq.generation.pages import MOST_KEPT
from slmq.tokenizer import Tokenizer

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

__all__ = ["Draft"]

LEAST_ROWS = 16  # of a prompt that the small model has yet to read, whatever the time says
FORESIGHT = 256  # tokens of an answer that are counted on, to pay for reading a prompt
TRIALS = (16, 1, 1, 1)  # rows of the first runs, which tell what runs take
TOLD = 3  # differences between two tokenizers that an error shows


class Draft:
    """A small model that guesses for a scheduler, which alone may call it, one thread at a time.

    Parameters
    ----------
    engine : Engine
        The small model, with a limit for its cache.
    of : Engine
        The model whose answers it guesses.

    Raises
    ------
    TokenizerError
        If the two have different tokenizers.
    """

    def __init__(self, engine: Engine, of: Engine) -> None:
        check_same_tokens(of.tokenizer, engine.tokenizer, of.name, engine.name)
        self._engine = engine
        self._n_vocab = of.n_vocab
        self._cost = CostModel()
        self._store = PrefixStore()
        self._held: dict[Job, TokenSequence] = {}
        self._try_out()

    def length(self, job: Job, step_s: float, row_s: float, side_by_side: int, most: int) -> int:
        """How many guesses to ask for.

        Parameters
        ----------
        step_s, row_s : float
            Seconds of the large model's run for this job, beside its rows, and of a row.
        side_by_side : int
            Jobs that share the small model's runs.
        most : int
        """
        guess_s = self._cost.step_s / side_by_side + self._cost.row_s
        count = job.trust.length(step_s, row_s, guess_s, most)
        if count == 0 or len(job.ids) + count > self._engine.n_ctx:
            return 0
        behind_s = (len(job.ids) - self._shared(job)) * self._cost.row_s
        tokens = sum(job.trust.rate**i for i in range(count + 1))
        spent_s = step_s + (count + 1) * row_s + count * guess_s
        saved_s = (step_s + row_s - spent_s / tokens) * min(job.answer.left, FORESIGHT)
        # Reading a long prompt again for a short answer would not pay.
        return count if behind_s < saved_s / 2 + guess_s else 0

    def guess(self, parts: Sequence[Part], budget_s: float) -> None:
        """Make the guesses that the parts of a run ask for; fewer where pages or time are short."""
        for job in [job for job in self._held if job.over]:
            self._keep(job)
        asking = [part for part in parts if part.asked]
        try:
            speaking, logits = self._read(asking, budget_s)
            for ahead in range(max((part.asked for part in speaking), default=0)):
                speaking = [
                    part
                    for part, row in zip(speaking, logits, strict=True)
                    if self._guess_one(part, row, ahead)
                ]
                if not speaking:
                    break
                logits = self._run(
                    [(self._held[part.job], [part.guesses[-1]], 1) for part in speaking]
                )
        except MemoryError:  # answers do without guesses
            self.release()
        for part in asking:
            part.asked, part.by_model = 0, True
            matcher = part.job.answer.matcher
            if matcher is not None:
                part.guesses = matcher.fitting(part.guesses)

    def release(self) -> None:
        """Give back to the system what is kept for later guesses."""
        self._store.clear()
        for sequence in self._held.values():
            sequence.close()
        self._held.clear()
        self._engine.plan.cache.trim()

    def close(self) -> None:
        """Free weights and cache."""
        self.release()
        self._engine.close()

    def _guess_one(self, part: Part, row: F32, ahead: int) -> bool:
        """Add a guess to a part; whether the next one needs another run."""
        answer = part.job.answer
        token = None if part.job.cancelled else answer.sampler.guess(row, ahead)
        if token is None:
            return False
        part.guesses.append(token)
        more = len(part.guesses) < part.asked and token < self._engine.n_vocab
        return more and not answer.ends_with(token)

    def _read(self, parts: Sequence[Part], budget_s: float) -> tuple[list[Part], F32]:
        """Let the sequences take up what was said; those that have done so, and their logits."""
        batch, whole, work, promised = [], [], Work(), 0
        for part in parts:
            ids = part.job.array()
            if self._engine.n_vocab < self._n_vocab and ids.max() >= self._engine.n_vocab:
                continue
            sequence = self._sequence(part.job, ids)
            cached = len(sequence.tokens)
            within = max(self._cost.rows_within(budget_s, work, cached), LEAST_ROWS)
            rows = min(len(ids) - cached, self._engine.chunk - work.rows, within)
            needed = sequence.pages_needed(rows + part.asked)
            if rows <= 0 or not self._make_room(promised + needed, parts):
                continue
            promised += needed
            complete = cached + rows == len(ids)
            batch.append((sequence, ids[cached : cached + rows], int(complete)))
            work.add(rows, cached, int(complete))
            if complete:
                whole.append(part)
        return whole, self._run(batch)

    def _run(self, batch: Sequence[tuple[TokenSequence, Sequence[int] | I32, int]]) -> F32:
        """Logits as the large model would have them: of tokens that this one lacks, -inf."""
        wanted = sum(count for _, _, count in batch)
        logits = np.full((wanted, self._n_vocab), -np.inf, np.float32)
        if not batch:
            return logits
        work = Work()
        for sequence, ids, count in batch:
            work.add(len(ids), len(sequence.tokens), count)
        began_s = time.perf_counter()
        first, width = 0, min(self._n_vocab, self._engine.n_vocab)
        for block in self._engine.run(batch) or ():
            logits[first : first + len(block), :width] = block[:, :width]
            first += len(block)
        self._cost.learn(work, time.perf_counter() - began_s)
        return logits

    def _sequence(self, job: Job, ids: I32) -> TokenSequence:
        """The sequence of a job, with as much of its ids as it has, but not all of them."""
        sequence = self._held.get(job)
        if sequence is None:
            source, shared = self._store.longest(job.request.salt, ids[:-1])
            sequence = self._engine.sequence() if source is None else source.fork(shared)
            self._held[job] = sequence
            return sequence
        shared = sequence.shared_with(ids[:-1])
        if shared < len(sequence.tokens):
            sequence.truncate(shared)
        return sequence

    def _shared(self, job: Job) -> int:
        """How many ids of a job need not be read."""
        if job in self._held:
            return len(self._held[job].tokens)
        return self._store.longest(job.request.salt, job.array()[:-1])[1]

    def _keep(self, job: Job) -> None:
        """Keep what was computed for an answer that is over."""
        sequence = self._held.pop(job)
        work = Work()
        work.add(len(sequence.tokens), 0, 0)
        nbytes = self._engine.pages_of(max(len(sequence.tokens), 1)) * self._engine.page_bytes
        self._store.insert(job.request.salt, sequence, self._cost.seconds(work) / nbytes)
        while len(self._store) > MOST_KEPT:
            self._store.evict()

    def _make_room(self, pages: int, parts: Sequence[Part]) -> bool:
        """Give up what is kept and what others have for so many free pages; whether they are."""
        cache, mine = self._engine.plan.cache, {part.job for part in parts}
        while pages > cache.limit - cache.pages_in_use:
            if self._store.evict():
                continue
            other = next((job for job in self._held if job not in mine), None)
            if other is None:
                return False
            self._held.pop(other).close()
        return True

    def _try_out(self) -> None:
        """Learn what runs take, before anybody waits for them."""
        sequence = self._engine.sequence()
        for rows in TRIALS:
            self._run([(sequence, [0] * rows, 1)])
        sequence.close()


def check_same_tokens(one: Tokenizer, other: Tokenizer, name: str, other_name: str) -> None:
    """Raise TokenizerError unless every id that both have is the same token."""
    shared = range(min(one.n_vocab, other.n_vocab))
    differ = [i for i in shared if one.token_bytes(i) != other.token_bytes(i)]
    longer = one if one.n_vocab > other.n_vocab else other
    # Rows that pad an embedding stand for nothing.
    extra = [i for i in range(len(shared), longer.n_vocab) if longer.token_bytes(i)]
    if not differ and not extra:
        return
    if differ:
        shown = ", ".join(
            f"{i} is {one.token_bytes(i)!r} and {other.token_bytes(i)!r}" for i in differ[:TOLD]
        )
        problem = f"{len(differ)} of {len(shared)} tokens differ: {shown}"
    else:
        problem = f"one has {len(extra)} tokens more, such as {longer.token_bytes(extra[0])!r}"
    raise TokenizerError(
        f"draft: expected a model with the tokenizer of {name!r}, but {other_name!r} has another "
        f"({problem}); take a smaller model of the same family"
    )
