"""Runs encodings of any lengths: rows of several texts side by side, without padding.

A plan is recorded for what is asked of the model: pooled vectors, hidden states, or what its head
makes of them. All plans share the weights. A text must fit into one run, so that a longer one than
usual gets a plan of its own with more rows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import tee
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.models.parts.encoder_head import task_head
from slmq.models.parts.headless import Headless

if TYPE_CHECKING:
    from slmq.models.family import EncoderFamily
    from slmq.models.parts.gguf import Weights
    from slmq.plan.handle import Handle
    from slmq.plan.linear import Linear
    from slmq.plan.recorder import Recorder

from slmq.plan.plan import RecordedPlan

__all__ = ["EncodedText", "EncoderBody", "Runner"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

ROWS = 2048  # of a run, unless a text has more tokens
OUTPUTS = 64  # pooled texts, or masks, of a run
ONE_EACH = ("pooled", "classify", "verdict")  # what has one row for a text


@dataclass(frozen=True)
class EncodedText:
    """What runs: the tokens of one input, and which of them count.

    Attributes
    ----------
    ids, types : int32[n]
        Tokens, and which of two texts each belongs to.
    first : int
        Where pooling begins: behind the tokens of a prompt, if these do not count.
    rows : int32[m], optional
        Of a head over tokens: those that are asked for; None for all.
    weights : float32[n], optional
        By which the vectors of tokens are multiplied before their mean is taken.
    """

    ids: I32
    types: I32
    first: int = 0
    rows: I32 | None = None
    weights: F32 | None = None


@dataclass(frozen=True)
class EncoderBody:
    """A loaded encoder, ready to be recorded any number of times.

    Attributes
    ----------
    family : EncoderFamily
    config : EncoderConfig
        Of that family.
    weights : Weights
    pool : str
        As of `SentenceFolder`.
    dense : list of (Linear, str)
        Layers behind the pooling with their activations.
    typed : bool
        Whether the model tells two texts of one input apart.
    threads : int
    activations : str
        What inputs of integer weights are rounded to.
    weight_bytes : int
        What the weights take.
    verdict : Linear or None
        Rows of the output head of a decoder that says whether a document fits a query.
    """

    family: EncoderFamily[Any]
    config: Any
    weights: Weights
    pool: str
    dense: list[tuple[Linear, str]]
    typed: bool
    threads: int
    activations: str
    weight_bytes: int
    verdict: Linear | None = None

    @property
    def task(self) -> str | None:
        """What the head is for; None without one."""
        return None if self.weights.head is None else str(self.config.task)

    @property
    def dimensions(self) -> int:
        """Numbers of a pooled vector."""
        return self.dense[-1][0].n if self.dense else int(self.config.hidden_size)


class Runner:
    """Runs an encoder. Safe to use from several threads, which take turns.

    Parameters
    ----------
    body : EncoderBody
    isa : str, optional
        Kernels to run, as SLMQ_ISA.
    """

    def __init__(self, body: EncoderBody, isa: str | None = None) -> None:
        self.body = body
        self._isa = isa
        self._lock = threading.Lock()
        self._plans: dict[tuple[str, int], RecordedPlan] = {}
        self._sequences: list[_native.KvSequence] = []
        self._cache: _native.KvCache | None = None

    def pooled(self, texts: Iterable[EncodedText]) -> Iterator[F32]:
        """The vector of every text, in order: float32[dimensions] each."""
        if self.weighted:
            return self._weighted(texts)
        return self._run("pooled", texts)

    def states(self, texts: Iterable[EncodedText]) -> Iterator[F32]:
        """Hidden states of every text, in order: float32[tokens, hidden] each."""
        return self._run("states", texts)

    def heads(self, texts: Iterable[EncodedText]) -> Iterator[F32]:
        """What the head makes of every text: float32[labels] each, or [rows, labels or tokens]."""
        assert self.body.task is not None
        return self._run(self.body.task, texts)

    def verdicts(self, texts: Iterable[EncodedText]) -> Iterator[F32]:
        """Logits of the words of the verdict behind every text: float32[words] each."""
        assert self.body.verdict is not None
        return self._run("verdict", texts)

    @property
    def weighted(self) -> bool:
        """Whether tokens have weights, as only tables of vectors know them."""
        return getattr(self.body.weights, "token_weights", None) is not None

    def _weighted(self, texts: Iterable[EncodedText]) -> Iterator[F32]:
        one, other = tee(texts)
        for text, rows in zip(one, self.states(other), strict=True):
            assert text.weights is not None
            mean = (rows * text.weights[:, None]).mean(axis=0, dtype=np.float64)
            yield mean.astype(np.float32)

    def _run(self, what: str, texts: Iterable[EncodedText]) -> Iterator[F32]:
        """Results in order. While a batch runs on a thread, the caller's makes the next one."""
        with ThreadPoolExecutor(1, "slmq-encoder") as worker:  # without a thread until it has work
            batches = self._batches(what, texts)
            batch, more = next(batches)
            while more:
                running = worker.submit(self._run_batch, what, batch)
                try:
                    batch, more = next(batches)
                except Exception:  # a text is wrong: those before it have results
                    yield from running.result()
                    raise
                yield from running.result()
            if batch:
                yield from self._run_batch(what, batch)

    def _batches(
        self, what: str, texts: Iterable[EncodedText]
    ) -> Iterator[tuple[list[EncodedText], bool]]:
        """Texts of one run each, and whether others follow."""
        most = OUTPUTS if what in ONE_EACH else ROWS
        batch: list[EncodedText] = []
        rows = 0
        for text in texts:
            n = len(text.ids)
            if batch and (rows + n > ROWS or len(batch) == most):
                yield batch, True
                batch, rows = [], 0
            batch.append(text)
            rows += n
        yield batch, False

    def _run_batch(self, what: str, batch: Sequence[EncodedText]) -> list[F32]:
        """One run, of texts that fit into it."""
        lengths = [len(text.ids) for text in batch]
        starts = np.cumsum([0, *lengths[:-1]])
        tokens = np.concatenate([text.ids for text in batch])
        types = np.concatenate([text.types for text in batch]) if self.body.typed else None
        with self._lock:
            plan = self._plan(what, sum(lengths))
            segments = list(zip(self._some_sequences(plan, len(batch)), lengths, strict=True))
            for sequence, _ in segments:
                sequence.truncate(0)  # a decoder has made it longer
            if what in ONE_EACH and self._pool(what) != "late":
                outputs, spans = self._pooled_rows(what, batch, starts, lengths)
                plan.native.run(tokens, segments, outputs, types=types, spans=spans)
                return list(plan.logits())
            picked = [
                start + (np.arange(n) if text.rows is None else text.rows)
                for text, start, n in zip(batch, starts, lengths, strict=True)
            ]
            found = self._rows(plan, tokens, segments, types, np.concatenate(picked))
            parts = np.split(found, np.cumsum([len(rows) for rows in picked])[:-1])
        if what == "classify":  # the mean of what the head makes of each token
            return [part.mean(axis=0, dtype=np.float64).astype(np.float32) for part in parts]
        return parts

    def _pooled_rows(
        self, what: str, batch: Sequence[EncodedText], starts: Any, lengths: list[int]
    ) -> tuple[I32, I32 | None]:
        """The first row that counts for each text, and how many do; None: that one alone."""
        pool = self._pool(what)
        firsts = starts + np.array([text.first for text in batch])
        if pool in ("row", "last"):
            rows = starts + np.array(lengths) - 1 if pool == "last" else starts
            return rows.astype(np.int32), None
        spans = starts + np.array(lengths) - firsts
        return firsts.astype(np.int32), spans.astype(np.int32)

    def _rows(self, plan: RecordedPlan, tokens: I32, segments: Any, types: Any, rows: Any) -> F32:
        """Results of many rows, so many at a time as the plan takes."""
        most = plan.native.max_outputs
        parts = [rows[i : i + most].astype(np.int32) for i in range(0, max(len(rows), 1), most)]
        plan.native.run(tokens, segments, parts[0], types=types)
        found = [plan.logits()] if len(parts[0]) else []
        for part in parts[1:]:
            plan.native.run_outputs(part)
            found.append(plan.logits())
        return np.concatenate(found) if found else np.empty((0, 0), np.float32)

    def _some_sequences(self, plan: RecordedPlan, count: int) -> list[_native.KvSequence]:
        """Sequences, which serve again and again."""
        if self._cache is None:
            self._cache = plan.native.make_cache()  # of the size that all plans share
        while len(self._sequences) < count:
            self._sequences.append(self._cache.sequence())
        return self._sequences[:count]

    def _pool(self, what: str) -> str:
        """What happens to the rows of a text: as of `HeadNames`, and other kinds of pooling."""
        if what == "verdict":
            return "last"
        if what == "pooled":
            return "row" if self.body.pool == "cls" else self.body.pool
        return str(self.body.weights.head.names.pool) if what == "classify" else "row"

    def _plan(self, what: str, rows: int) -> RecordedPlan:
        """The plan for what is wanted, of at least so many rows."""
        size = ROWS
        while size < rows:
            size *= 2
        key = (what, size)
        if key not in self._plans:
            # One plan for long texts is enough: a longer one replaces it.
            for old in [k for k in self._plans if k[0] == what and k[1] > ROWS]:
                del self._plans[old]
            self._plans[key] = self._record(what, size)
        return self._plans[key]

    def _record(self, what: str, rows: int) -> RecordedPlan:
        body = self.body

        def record(p: Recorder) -> Handle:
            if what == "verdict":
                assert isinstance(body.family, Headless)
                assert body.verdict is not None
                return body.family.verdict(p, body.weights, body.config, body.verdict)
            pool = self._pool(what)
            pool = "row" if pool in ("last", "late") else pool
            x = p.select(body.family.forward(p, body.weights, body.config), pool)
            if what == "pooled":
                for dense, activation in body.dense:
                    x = p.linear(x, dense, activation=activation or None)
                return x
            if what == "states":
                return x
            return task_head(p, x, body.weights.head, body.config.norm_eps)

        return RecordedPlan(
            record,
            threads=body.threads,
            max_rows=rows,
            max_outputs=rows if what in ("states", "tags") else OUTPUTS,
            vocabulary=body.config.vocab_size,
            activations=body.activations,
            isa=self._isa,
            n_ctx=body.config.max_positions,
            columns=1,
        )
