"""The engine: a loaded model, its plan and its sequences. Generation stands on it."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmq.engine.sequence import Sequence
from slmq.errors import ContextOverflowError
from slmq.plan.plan import RecordedPlan
from slmq.tokenizer import Tokenizer

F32 = npt.NDArray[np.float32]

MAX_OUTPUTS = 64


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


class Engine:
    """A model that is ready to run. Made by `open_engine`."""

    def __init__(
        self, plan: RecordedPlan, tokenizer: Tokenizer, info: ModelInfo, name: str, n_ctx: int
    ) -> None:
        self._plan: RecordedPlan | None = plan
        self.tokenizer = tokenizer
        self.info = info
        self.name = name
        self.n_ctx = n_ctx
        self.n_vocab = tokenizer.n_vocab
        self.chunk = plan.native.max_rows

    @property
    def plan(self) -> RecordedPlan:
        """The recorded model: print it, profile it. Raises ValueError once closed."""
        if self._plan is None:
            raise ValueError(f"model {self.name!r} is closed")
        return self._plan

    def sequence(self) -> Sequence:
        """An empty sequence."""
        return Sequence(self.plan.cache.sequence())

    def feed(self, seq: Sequence, tokens: SequenceABC[int], *, logits: str = "last") -> F32:
        """Appends tokens to a sequence, in chunks.

        Parameters
        ----------
        tokens : sequence of int, at least one
        logits : {"last", "all", "none"}

        Returns
        -------
        float32[n_vocab] for "last", float32[len(tokens), n_vocab] for "all", float32[0, n_vocab]
        for "none".

        Raises
        ------
        ContextOverflowError
            If the sequence would grow beyond `n_ctx`; it stays as it was.
        ValueError
            For no tokens, an id out of range, or a closed model.
        """
        if logits not in ("last", "all", "none"):
            raise ValueError(f"logits: expected 'last', 'all' or 'none', got {logits!r}")
        ids = self._checked(seq, tokens)
        pieces = []
        for start in range(0, len(ids), self.chunk):
            part = ids[start : start + self.chunk]
            last = logits == "last" and start + len(part) == len(ids)
            pieces.append(
                self._run(seq, part, "all" if logits == "all" else "last" if last else "")
            )
        if logits == "last":
            last_row: F32 = pieces[-1][0]
            seq.last_logits = last_row
            return last_row
        return np.concatenate(pieces) if logits == "all" else pieces[-1]

    def feed_chunks(self, seq: Sequence, tokens: SequenceABC[int]) -> Iterator[int]:
        """Like `feed`, chunk by chunk: yields the tokens done so far.

        The sequence holds the finished chunks if the generator is closed early; after the last
        one, `seq.last_logits` is float32[n_vocab].
        """
        ids = self._checked(seq, tokens)
        for start in range(0, len(ids), self.chunk):
            part = ids[start : start + self.chunk]
            last = start + len(part) == len(ids)
            rows = self._run(seq, part, "last" if last else "")
            if last:
                seq.last_logits = rows[0]
            yield start + len(part)

    def feed_batch(
        self, batch: SequenceABC[tuple[Sequence, SequenceABC[int], int]]
    ) -> Iterator[F32]:
        """Appends tokens to several sequences in one run; errors as `feed`.

        Parameters
        ----------
        batch : sequence of (Sequence, tokens, wanted)
            Different sequences, the tokens that each takes up (at most `chunk` in all), and of
            how many of its last tokens logits are wanted.

        Yields
        ------
        float32[rows, n_vocab]
            Wanted rows in the order of the batch, at most 64 at a time. Between two blocks nobody
            else may run this engine.
        """
        parts = [self._checked(seq, tokens) for seq, tokens, _ in batch]
        counts = [len(part) for part in parts]
        if sum(counts) > self.chunk or len({id(seq) for seq, _, _ in batch}) < len(batch):
            raise ValueError(f"expected different sequences and at most {self.chunk} tokens")
        ends = np.cumsum(counts)
        rows = [range(end - wanted, end) for (_, _, wanted), end in zip(batch, ends, strict=True)]
        outputs = np.concatenate(rows).astype(np.int32)
        segments = [(seq.native, n) for (seq, _, _), n in zip(batch, counts, strict=True)]
        self.plan.native.run(np.concatenate(parts), segments, outputs[:MAX_OUTPUTS])
        for (seq, _, _), part in zip(batch, parts, strict=True):
            seq.tokens.extend(part.tolist())
            seq.last_logits = None
        if len(outputs):
            yield self.plan.logits()[:, : self.n_vocab]
        for start in range(MAX_OUTPUTS, len(outputs), MAX_OUTPUTS):
            self.plan.native.run_outputs(outputs[start : start + MAX_OUTPUTS])
            yield self.plan.logits()[:, : self.n_vocab]

    def close(self) -> None:
        """Frees weights, buffers and cache."""
        self._plan = None

    def _checked(self, seq: Sequence, tokens: SequenceABC[int]) -> npt.NDArray[np.int32]:
        self.plan  # noqa: B018 (a closed model says so first)
        if seq.native.length != len(seq.tokens):
            raise ValueError("this sequence was changed from outside")
        if len(tokens) == 0:
            raise ValueError("expected at least one token, got none")
        ids = np.asarray(tokens, dtype=np.int64)
        # One token is the case that must be quick: a reduction takes microseconds.
        low, high = (ids[0], ids[0]) if len(ids) == 1 == ids.ndim else (ids.min(), ids.max())
        if ids.ndim != 1 or low < 0 or high >= self.n_vocab:
            raise ValueError(
                f"expected token ids in 0..{self.n_vocab - 1}, got {int(low)}..{int(high)}"
            )
        if len(seq.tokens) + len(ids) > self.n_ctx:
            raise ContextOverflowError(
                f"{len(seq.tokens)} tokens are in the context and {len(ids)} more do not fit into "
                f"its {self.n_ctx}; shorten the text or load the model with a larger n_ctx"
            )
        return ids.astype(np.int32)

    def _run(self, seq: Sequence, part: npt.NDArray[np.int32], want: str) -> F32:
        plan, count = self.plan, len(part)
        first = {"all": 0, "last": count - 1, "": count}[want]
        rows = np.arange(first, count, dtype=np.int32)
        plan.native.run(part, [(seq.native, count)], rows[:MAX_OUTPUTS])
        seq.tokens.extend(part.tolist())
        seq.last_logits = None
        pieces = [plan.logits()]
        for start in range(MAX_OUTPUTS, len(rows), MAX_OUTPUTS):
            plan.native.run_outputs(rows[start : start + MAX_OUTPUTS])
            pieces.append(plan.logits())
        logits = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        return logits[:, : self.n_vocab]
