"""The engine: a loaded model, its plan and its sequences. Generation stands on it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmq import _native, hub
from slmq.checkpoint import Checkpoint, open_checkpoint
from slmq.errors import CheckpointError, ContextOverflowError
from slmq.memory import MemoryChoice, check_memory
from slmq.models import family_of
from slmq.models.common import Weights
from slmq.plan import RecordedPlan
from slmq.tokenizer import Tokenizer, load_tokenizer
from slmq.weights import WeightReader

F32 = npt.NDArray[np.float32]

# A chunk of a prompt is what runs without looking up: about a second of work on a slow machine.
CHUNK_MACS = 1.5e11
MIN_CHUNK, MAX_CHUNK = 64, 512
MAX_OUTPUTS = 64
MAX_CONTEXT = 1 << 24  # positions must be exact in float32
# What inputs of integer weights are rounded to, by user name.
ACTIVATIONS = {"mixed": "a8o16g32", "exact": "a16g32"}


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


class Sequence:
    """Tokens whose keys and values are cached, in order."""

    def __init__(self, native: _native.KvSequence) -> None:
        self._native: _native.KvSequence | None = native
        self.tokens: list[int] = []
        self.last_logits: F32 | None = None

    @property
    def native(self) -> _native.KvSequence:
        """The native pages. Raises ValueError once closed."""
        if self._native is None:
            raise ValueError("this sequence is closed")
        return self._native

    def truncate(self, n: int) -> None:
        """Keeps the first `n` tokens."""
        self.native.truncate(n)
        del self.tokens[n:]
        self.last_logits = None

    def fork(self) -> Sequence:
        """A second sequence with the same tokens; their cache is shared until one continues."""
        copy = Sequence(self.native.fork(self.native.length))
        copy.tokens = list(self.tokens)
        return copy

    def close(self) -> None:
        """Gives the cache pages back."""
        if self._native is not None:
            self._native.truncate(0)
        self._native = None
        self.tokens = []
        self.last_logits = None


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


def open_engine(
    model: str | os.PathLike[str],
    *,
    quant: str | None = None,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    kv_dtype: str = "f16",
    memory: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    isa: str | None = None,
    activations: str = "mixed",
    progress: Any = None,
) -> Engine:
    """Finds, opens and packs a model.

    Parameters
    ----------
    model : str or path
        Catalogue name, hub id, folder or .gguf file.
    quant : str, optional
        "int4", "int8", "f16", "f32": what float weights become. By default as stored.
    n_ctx : int, optional
        Most positions; by default what the model was made for.
    n_threads : int, optional
        By default physical cores within affinity and CPU quota.
    kv_dtype : {"f16", "f32", "int8"}
    memory : {"mmap", "huge", "small"}, optional
        Where weights lie: see `slmq.load`.
    isa : str, optional
        Kernels to run, as SLMQ_ISA.
    activations : {"mixed", "exact"}
        What inputs of integer weights are rounded to: see `slmq.load`.

    Raises
    ------
    ModelNotFoundError, DownloadError, CheckpointError, UnsupportedModelError, TokenizerError
    """
    check_memory(memory)
    if activations not in ACTIVATIONS:
        names = " or ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"activations: expected {names}, got {activations!r}")
    threads = _native.resolve_threads(n_threads)["threads"]
    found = hub.resolve(
        os.fspath(model), revision=revision, local_files_only=local_files_only, progress=progress
    )
    with open_checkpoint(found.path) as checkpoint:
        return _build(
            checkpoint,
            found.name,
            quant=quant,
            n_ctx=n_ctx,
            threads=threads,
            kv_dtype=kv_dtype,
            memory=memory,
            isa=isa,
            activations=ACTIVATIONS[activations],
        )


def _build(
    checkpoint: Checkpoint,
    name: str,
    *,
    quant: str | None,
    n_ctx: int | None,
    threads: int,
    kv_dtype: str,
    memory: str | None,
    isa: str | None,
    activations: str,
) -> Engine:
    family_of(checkpoint)  # an unknown architecture is named before its tokenizer is looked at
    # Packing a foreign file tensor by tensor would wait for the interpreter lock each time that the
    # Python which builds a GGUF file's tokenizer holds it.
    alone = checkpoint.kind == "gguf"
    with _Meanwhile(lambda: load_tokenizer(checkpoint), alone=alone) as reading:
        plan, info = build_plan(
            checkpoint,
            quant=quant,
            threads=threads,
            kv_dtype=kv_dtype,
            memory=memory,
            isa=isa,
            n_ctx=n_ctx,
            activations=activations,
        )
    tokenizer = reading.result()
    if tokenizer.n_vocab > plan.vocabulary:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.n_vocab} tokens, the model only {plan.vocabulary}",
            file=checkpoint.path,
        )
    return Engine(plan, tokenizer, info, name, _context(n_ctx, info.n_ctx_train))


class _Meanwhile:
    """Reads a tokenizer while the block runs, or before it if `alone`."""

    def __init__(self, work: Callable[[], Tokenizer], *, alone: bool) -> None:
        self._work = work
        self._alone = alone
        self._result: Tokenizer | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="slmq-tokenizer", daemon=True)

    def result(self) -> Tokenizer:
        """What the function returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def __enter__(self) -> _Meanwhile:
        if self._alone:
            self._result = self._work()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # The checkpoint must outlive its reader, also after an error in the block.
        if not self._alone:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error


@dataclass(frozen=True)
class LoadedWeights:
    """Packed weights of a family, ready to be recorded, any number of times.

    Attributes
    ----------
    family : module of slmq.models
    config : Config of that module
    weights : Weights
        What `family.forward` reads.
    parameters, weight_bytes : int
    formats : dict of str to int
        Packed bytes per weight format.
    memory : MemoryChoice
    """

    family: Any
    config: Any
    weights: Weights
    parameters: int
    weight_bytes: int
    formats: dict[str, int]
    memory: MemoryChoice


@dataclass(frozen=True)
class OpenedWeights:
    """A family's reader of a checkpoint, and the configuration: as it is stored, and checked."""

    reader: WeightReader
    family: Any
    config: Any
    raw_config: dict[str, Any]


def open_weights(
    checkpoint: Checkpoint,
    *,
    threads: int,
    quant: str | None = None,
    memory: str | None = None,
    keep: bool = True,
) -> OpenedWeights:
    """Makes ready to read a checkpoint's weights; parameters and errors as `WeightReader`."""
    family, raw_config = family_of(checkpoint)
    try:
        config = family.Config.from_dict(raw_config)
    except CheckpointError as error:
        raise CheckpointError(error.message, file=error.file or checkpoint.path) from None
    names: Callable[[str], str] = family.GGUF.name if checkpoint.kind == "gguf" else _same
    reader = WeightReader(checkpoint, names, quant=quant, threads=threads, memory=memory, keep=keep)
    return OpenedWeights(reader, family, config, raw_config)


def load_weights(
    checkpoint: Checkpoint, *, threads: int, quant: str | None = None, memory: str | None = None
) -> LoadedWeights:
    """Packs a checkpoint's weights, or maps or reads those of a native folder.

    Raises
    ------
    CheckpointError, UnsupportedModelError
    ValueError
        For an unknown `quant` or `memory`.
    """
    opened = open_weights(checkpoint, threads=threads, quant=quant, memory=memory)
    reader = opened.reader
    return LoadedWeights(
        opened.family,
        opened.config,
        opened.family.load(reader, opened.config),
        reader.parameters,
        reader.packed_nbytes,
        dict(reader.packed_formats),
        reader.memory,
    )


def record_plan(
    loaded: LoadedWeights,
    *,
    threads: int,
    kv_dtype: str = "f16",
    activations: str = "a8o16g32",
    isa: str | None = None,
    n_ctx: int | None = None,
) -> RecordedPlan:
    """Records the forward pass over packed weights, which plans share.

    `n_ctx` is the most positions of a sequence, by default what the model was made for. Ropes of
    types dynamic and longrope depend on it, never on the length of a text.
    """
    rows = int(CHUNK_MACS / max(1, loaded.parameters)) // 16 * 16
    return RecordedPlan(
        lambda p: loaded.family.forward(p, loaded.weights, loaded.config),
        threads=threads,
        max_rows=max(MIN_CHUNK, min(MAX_CHUNK, rows)),
        max_outputs=MAX_OUTPUTS,
        vocabulary=loaded.config.vocab_size,
        kv_dtype=kv_dtype,
        activations=activations,
        isa=isa,
        n_ctx=_context(n_ctx, loaded.config.max_positions),
    )


def build_plan(
    checkpoint: Checkpoint,
    *,
    threads: int,
    quant: str | None = None,
    kv_dtype: str = "f16",
    activations: str = "a8o16g32",
    memory: str | None = None,
    isa: str | None = None,
    n_ctx: int | None = None,
) -> tuple[RecordedPlan, ModelInfo]:
    """Packs a checkpoint's weights and records its forward pass.

    Raises
    ------
    CheckpointError, UnsupportedModelError
    """
    loaded = load_weights(checkpoint, threads=threads, quant=quant, memory=memory)
    plan = record_plan(
        loaded,
        threads=threads,
        kv_dtype=kv_dtype,
        activations=activations,
        isa=isa,
        n_ctx=n_ctx,
    )
    info = ModelInfo(
        architecture=loaded.family.__name__.rpartition(".")[2],
        parameters=loaded.parameters,
        weight_bytes=loaded.weight_bytes,
        formats=loaded.formats,
        n_ctx_train=loaded.config.max_positions,
        kv_bytes_per_token=plan.native.page_bytes / 64,
        memory=loaded.memory.memory,
        memory_why=loaded.memory.why,
        isa=plan.native.isa,
        threads=threads,
        kv_dtype=kv_dtype,
        path=checkpoint.path,
    )
    return plan, info


def _context(n_ctx: int | None, trained: int) -> int:
    if n_ctx is None:
        return min(trained, MAX_CONTEXT)
    if isinstance(n_ctx, bool) or not isinstance(n_ctx, int):
        raise TypeError(f"n_ctx: expected an integer, got {n_ctx!r}")
    if not 1 <= n_ctx <= MAX_CONTEXT:
        raise ValueError(f"n_ctx: expected 1..{MAX_CONTEXT}, got {n_ctx}")
    return n_ctx


def _same(name: str) -> str:
    return name
