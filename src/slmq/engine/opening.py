"""Opens an engine: weights packed, the forward pass recorded, the tokenizer read meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import slmq._native as _native
from slmq.checkpoint import Checkpoint, open_checkpoint
from slmq.engine.engine import MAX_OUTPUTS, Engine, ModelInfo
from slmq.errors import CheckpointError
from slmq.models.loading import load_weights
from slmq.models.registry import family_of
from slmq.plan.plan import RecordedPlan
from slmq.tokenizer import Tokenizer, load_tokenizer
from slmq.weights.placement import check_memory

if TYPE_CHECKING:
    from slmq.models.loading import LoadedWeights


# A chunk of a prompt is what runs without looking up: about a second of work on a slow machine.
CHUNK_MACS = 1.5e11
MIN_CHUNK, MAX_CHUNK = 64, 512
MAX_CONTEXT = 1 << 24  # positions must be exact in float32
# What inputs of integer weights are rounded to, by user name.
ACTIVATIONS = {"mixed": "a8o16g32", "exact": "a16g32"}


def open_engine(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    quant: str | None = None,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    kv_dtype: str = "f16",
    memory: str | None = None,
    isa: str | None = None,
    activations: str = "mixed",
) -> Engine:
    """Opens and packs a model.

    Parameters
    ----------
    path : str or path
        Folder or .gguf file; `slmq.hub.resolve` finds it by name.
    name : str, optional
        What the model is called in messages; by default its path.
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
    CheckpointError, UnsupportedModelError, TokenizerError
    """
    check_memory(memory)
    if activations not in ACTIVATIONS:
        names = " or ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"activations: expected {names}, got {activations!r}")
    threads = _native.resolve_threads(n_threads)["threads"]
    with open_checkpoint(path) as checkpoint:
        return _build(
            checkpoint,
            os.fspath(path) if name is None else name,
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
    alone = checkpoint.holds_tokenizer
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
            f"the tokenizer has {tokenizer.n_vocab} tokens, but the model only {plan.vocabulary}",
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
