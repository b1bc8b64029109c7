"""The engine: a loaded model, its plan and its sequences. Generation stands on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.engine.adapters import Adapter, fit
from slmq.engine.sequence import PAGE, TokenSequence
from slmq.errors import CacheFullError, ClosedError, ContextOverflowError
from slmq.plan.plan import RecordedPlan
from slmq.tokenizer import Tokenizer

if TYPE_CHECKING:
    from slmq.models.loading import LoadedWeights
    from slmq.weights.lora import Lora

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

MAX_OUTPUTS = 64
NO_LIMIT = 2**31 - 1

# A part of a run: a sequence, the tokens that it takes up, of how many of them logits are wanted,
# and of which ids (of all, if that is left out).
Rows = (
    tuple[TokenSequence, Sequence[int] | I32, int]
    | tuple[TokenSequence, Sequence[int] | I32, int, Sequence[int] | I32]
)
# Rows of a run whose logits are computed together, and the ids (all of them, if None).
Outputs = tuple[I32, I32 | None]


@dataclass(frozen=True)
class ModelInfo:
    """What was loaded.

    Attributes
    ----------
    architecture : str
    parameters : int
    weight_bytes : int
        Packed weights in memory.
    formats : dict of str to int
        Packed bytes per weight format.
    n_ctx_train : int
        Positions that the model was made for.
    kv_bytes_per_token : float
    memory : str
        Where the weights lie: "mmap", "huge" or "small"; see `slmq.memory`.
    memory_why : str
    isa, threads, kv_dtype, path
    """

    architecture: str
    parameters: int
    weight_bytes: int
    formats: dict[str, int]
    n_ctx_train: int
    kv_bytes_per_token: float
    memory: str
    memory_why: str
    isa: str
    threads: int
    kv_dtype: str
    path: Path


@dataclass(frozen=True)
class Blueprint:
    """What a plan that takes adapters is made from.

    Attributes
    ----------
    loaded : LoadedWeights
    record : callable
        Records it.
    """

    loaded: LoadedWeights
    record: Callable[[], RecordedPlan]


class Engine:
    """A model that is ready to run. Made by `open_engine`."""

    def __init__(
        self,
        plan: RecordedPlan,
        tokenizer: Tokenizer,
        info: ModelInfo,
        name: str,
        n_ctx: int,
        blueprint: Blueprint,
    ) -> None:
        self._plan: RecordedPlan | None = plan
        self._blueprint = blueprint
        self.tokenizer = tokenizer
        self.info = info
        self.name = name
        self.n_ctx = n_ctx
        self.n_vocab = tokenizer.n_vocab
        self.chunk = plan.native.max_rows

    @property
    def plan(self) -> RecordedPlan:
        """The recorded model: print it, profile it. Raises ClosedError once closed."""
        if self._plan is None:
            raise ClosedError(f"the model {self.name!r} is closed")
        return self._plan

    def sequence(self, adapter: Adapter | None = None) -> TokenSequence:
        """An empty sequence, whose tokens are computed with an adapter if one is given."""
        native = None if adapter is None else adapter.native
        return TokenSequence(self.plan.cache.sequence(), native)

    def fit(self, lora: Lora) -> Adapter:
        """Make an adapter ready, which sequences can then be opened with.

        The plan is recorded anew for the first one. Nobody else may run this engine meanwhile.

        Raises
        ------
        CheckpointError
            If it does not fit the model.
        """
        plan = self.plan
        if not plan.slots:
            plan = self._blueprint.record()
            plan.cache = self.plan.cache  # sequences live on
            self._plan = plan
        return fit(plan, self._blueprint.loaded, lora)

    def run(
        self,
        batch: Sequence[Rows],
        *,
        cancel: _native.CancelFlag | None = None,
        copy: bool = True,
    ) -> Iterator[F32] | None:
        """Append tokens to sequences in one run: the only way in which a model runs.

        Parameters
        ----------
        batch : sequence of (TokenSequence, tokens, wanted) or (..., ids)
            Different sequences, the tokens that each takes up (at least one each, at most `chunk`
            in all), and of how many of its last tokens logits are wanted. With `ids`, only theirs
            are computed, to the same bits: much less than the whole head if they are few.
        cancel : CancelFlag, optional
            Set by another thread, it ends the run between two steps of the plan.
        copy : bool
            If not, a block of all ids may be the engine's own memory: it holds until the next block
            is asked for, or anything else runs.

        Returns
        -------
        iterator of float32[rows, n_vocab], or None if the run was cancelled
            Wanted rows in the order of the batch, at most 64 at a time, and none together whose
            `ids` differ; float32[rows, len(ids)] where there are some, in their order. The run is
            over when this returns; until the last block is read nobody else may run this engine. A
            cancelled run has left the sequences as they were.

        Raises
        ------
        ContextOverflowError
            If a sequence would grow beyond `n_ctx`; all stay as they were.
        CacheFullError
            If the cache may not hold so many pages; all stay as they were.
        ValueError
            For no tokens, an id out of range, or a closed model.
        """
        parts = [self._checked(rows[0], rows[1]) for rows in batch]
        counts = [len(part) for part in parts]
        if sum(counts) > self.chunk or len({id(rows[0]) for rows in batch}) < len(batch):
            raise ValueError(
                f"expected distinct sequences with at most {self.chunk} tokens in total"
            )
        outputs = self._outputs(batch, counts)
        first, ids = outputs[0] if outputs else (np.empty(0, np.int32), None)
        segments = [(rows[0].native, n) for rows, n in zip(batch, counts, strict=True)]
        tokens = np.concatenate(parts)
        adapters = [rows[0].adapter for rows in batch]
        given = adapters if any(adapters) else None
        try:
            done = self.plan.native.run(
                tokens, segments, first, cancel=cancel, columns=ids, adapters=given
            )
        except _native.CacheFullError as error:
            raise CacheFullError(str(error)) from None
        if done is None:
            return None
        for rows, part in zip(batch, parts, strict=True):
            seq = rows[0]
            seq.tokens.frombytes(part.tobytes())
            seq.last_logits = None
        return self._blocks(outputs, copy)

    def feed(self, seq: TokenSequence, tokens: Sequence[int], *, logits: str = "last") -> F32:
        """Append tokens to a sequence, in chunks; errors as `run`.

        Parameters
        ----------
        tokens : sequence of int, at least one
        logits : {"last", "all", "none"}

        Returns
        -------
        float32[n_vocab] for "last", float32[len(tokens), n_vocab] for "all", float32[0, n_vocab]
        for "none".
        """
        if logits not in ("last", "all", "none"):
            raise ValueError(f"logits: expected 'last', 'all' or 'none', got {logits!r}")
        ids = self._checked(seq, tokens)
        wanted = {"last": 1, "all": len(ids), "none": 0}[logits]
        found = np.empty((wanted, self.n_vocab), np.float32)
        for _ in self.feed_chunks(seq, ids, found):
            pass
        if logits != "last":
            return found
        seq.last_logits = found[0]
        return seq.last_logits

    def feed_chunks(
        self, seq: TokenSequence, tokens: Sequence[int] | I32, logits: F32
    ) -> Iterator[int]:
        """Append tokens to a sequence, and yield after every chunk how many are done.

        Parameters
        ----------
        logits : float32[wanted, n_vocab]
            Filled with the logits of the last `wanted` tokens.
        """
        ids = self._checked(seq, tokens)
        first, filled = len(ids) - len(logits), 0
        for start in range(0, len(ids), self.chunk):
            part = ids[start : start + self.chunk]
            end = start + len(part)
            for block in self.run([(seq, part, max(0, end - max(start, first)))]) or ():
                logits[filled : filled + len(block)] = block
                filled += len(block)
            yield end

    def _outputs(self, batch: Sequence[Rows], counts: Sequence[int]) -> list[Outputs]:
        """The rows whose logits are wanted, at most 64 at a time and with the same ids."""
        groups: list[tuple[list[int], I32 | None]] = []
        end = 0
        for rows, count in zip(batch, counts, strict=True):
            end += count
            ids = self._checked_ids(rows[3]) if len(rows) == 4 else None
            if rows[2] == 0:
                continue
            if not groups or not _same(groups[-1][1], ids):
                groups.append(([], ids))
            groups[-1][0].extend(range(end - rows[2], end))
        return [
            (np.array(found[i : i + MAX_OUTPUTS], np.int32), ids)
            for found, ids in groups
            for i in range(0, len(found), MAX_OUTPUTS)
        ]

    def _blocks(self, outputs: list[Outputs], copy: bool) -> Iterator[F32]:
        """The logits of the last run's rows."""
        for number, (rows, ids) in enumerate(outputs):
            if number > 0:
                self.plan.native.run_outputs(rows, ids)
            if ids is not None:
                yield self.plan.logits()
            else:
                found = self.plan.logits() if copy else self.plan.native.logits_view()
                yield found[:, : self.n_vocab]

    def limit_cache(self, nbytes: int | None) -> None:
        """Bound the cache of keys and values: pages in use never take more bytes than this.

        Raises
        ------
        ValueError
            If not even one page fits.
        """
        pages = NO_LIMIT if nbytes is None else nbytes // self.page_bytes
        least = self.pages_of(1)
        if pages < least:
            raise ValueError(
                f"kv_bytes: expected at least {least * self.page_bytes}, one page of 64 positions "
                f"of {self.name!r}{' and its state' if least > 1 else ''}, got {nbytes}"
            )
        self.plan.cache.limit = min(pages, NO_LIMIT)

    def pages_of(self, positions: int) -> int:
        """Pages of the cache that a sequence of so many positions takes, its states included."""
        pages, native = -(-positions // PAGE), self.plan.native
        if native.state_bytes == 0:
            return pages
        # What is kept on the way, the present one, and the one that the next run leaves.
        states = positions // native.state_interval + 2
        return pages - (-states * native.state_bytes // native.page_bytes)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of the cache, of 64 positions."""
        return self.plan.native.page_bytes

    def close(self) -> None:
        """Frees weights, buffers and cache."""
        self._plan = None

    def _checked_ids(self, ids: Sequence[int] | I32) -> I32:
        """The tokens whose logits are wanted."""
        found = np.asarray(ids, dtype=np.int64)
        if found.ndim != 1 or not len(found) or found.min() < 0 or found.max() >= self.n_vocab:
            raise ValueError(
                f"expected at least one token id in 0..{self.n_vocab - 1} whose logits are wanted, "
                f"got {found.tolist()}"
            )
        return found.astype(np.int32)

    def _checked(self, seq: TokenSequence, tokens: Sequence[int] | I32) -> I32:
        self.plan  # noqa: B018 (a closed model says so first)
        if seq.native.length != len(seq.tokens):
            raise ValueError("this sequence was modified outside the engine")
        if len(tokens) == 0:
            raise ValueError("expected at least one token, got none")
        if self._is_next(seq, tokens):
            return np.array(tokens, np.int32)
        ids = np.asarray(tokens, dtype=np.int64)
        low, high = ids.min(), ids.max()
        if ids.ndim != 1 or low < 0 or high >= self.n_vocab:
            raise ValueError(
                f"expected token ids in 0..{self.n_vocab - 1}, got {int(low)}..{int(high)}"
            )
        if len(seq.tokens) + len(ids) > self.n_ctx:
            raise ContextOverflowError(
                f"{len(seq.tokens)} tokens are in the context, and {len(ids)} more do not fit into "
                f"its size of {self.n_ctx}; shorten the text or load the model with a larger n_ctx"
            )
        return ids.astype(np.int32)

    def _is_next(self, seq: TokenSequence, tokens: Sequence[int] | I32) -> bool:
        """Whether this is one token that fits: told at once, where NumPy takes microseconds."""
        if len(tokens) != 1 or type(tokens[0]) is not int:
            return False
        return 0 <= tokens[0] < self.n_vocab and len(seq.tokens) < self.n_ctx


def _same(one: I32 | None, other: I32 | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)
