"""Opens an engine: weights packed, the forward pass recorded, the tokenizer read meanwhile."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import slmq._native as _native
from slmq.checkpoint import Checkpoint, open_checkpoint
from slmq.engine.doubts import doubt_options
from slmq.engine.engine import MAX_OUTPUTS, Blueprint, Engine, ModelInfo
from slmq.engine.options import MAX_CONTEXT, LoadOptions
from slmq.models.loading import load_weights
from slmq.models.registry import family_of, refuse_encoder
from slmq.plan.plan import RecordedPlan
from slmq.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from slmq.models.loading import LoadedWeights


log = logging.getLogger("slmq")

# A chunk of a prompt is what runs without looking up: about a second of work on a slow machine.
CHUNK_MACS = 1.5e11
MIN_CHUNK, MAX_CHUNK = 64, 512
# What inputs of integer weights are rounded to, by user name.
ACTIVATIONS = {"fast": "a8g32", "mixed": "a8o16g32", "exact": "a16g32"}


def open_engine(
    path: str | os.PathLike[str],
    options: LoadOptions | None = None,
    *,
    name: str | None = None,
    isa: str | None = None,
) -> Engine:
    """Opens and packs a model.

    Parameters
    ----------
    path : str or path
        Folder or .gguf file; `slmq.hub.resolve` finds it by name.
    options : LoadOptions, optional
        By default those of `LoadOptions()`. A draft model is the caller's to open.
    name : str, optional
        What the model is called in messages; by default its path.
    isa : str, optional
        Kernels to run, as SLMQ_ISA.

    Raises
    ------
    CheckpointError, UnsupportedModelError, TokenizerError
    """
    options = LoadOptions() if options is None else options
    with open_checkpoint(path) as checkpoint:
        return _build(checkpoint, options, os.fspath(path) if name is None else name, isa)


def _build(checkpoint: Checkpoint, options: LoadOptions, name: str, isa: str | None) -> Engine:
    family, _ = family_of(checkpoint)  # what is refused is named before its tokenizer is looked at
    refuse_encoder(family, checkpoint.path, "generating")
    # Packing a foreign file tensor by tensor would wait for the interpreter lock each time that the
    # Python which builds a GGUF file's tokenizer holds it.
    alone = checkpoint.holds_tokenizer
    with _Meanwhile(lambda: load_tokenizer(checkpoint), alone=alone) as reading:
        loaded = _load(checkpoint, options)
        plan, info = _planned(checkpoint, loaded, options, isa)
    doubt_options(checkpoint, options, info)
    tokenizer = reading.result()
    if tokenizer.n_vocab > plan.vocabulary:
        log.warning(
            "%s: the tokenizer has %d tokens, the model only %d: a text that needs one of the "
            "others is refused",
            checkpoint.path,
            tokenizer.n_vocab,
            plan.vocabulary,
        )
        tokenizer = tokenizer.within(plan.vocabulary)
    blueprint = Blueprint(loaded, partial(record_plan, loaded, options, isa=isa, adapters=True))
    n_ctx = _context(options, info.n_ctx_train)
    engine = Engine(plan, tokenizer, info, name, n_ctx, blueprint)
    if options.kv_bytes is not None:
        engine.limit_cache(int(options.kv_bytes))  # an int, once checked
    return engine


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
    options: LoadOptions | None = None,
    *,
    isa: str | None = None,
    adapters: bool = False,
) -> RecordedPlan:
    """Records the forward pass over packed weights, which plans share.

    `n_ctx` of the options is the most positions of a sequence, by default what the model was made
    for. Ropes of types dynamic and longrope depend on it, never on the length of a text.
    """
    options = LoadOptions() if options is None else options
    rows = int(CHUNK_MACS / max(1, loaded.parameters)) // 16 * 16
    return RecordedPlan(
        lambda p: loaded.family.forward(p, loaded.weights, loaded.config),
        threads=_threads(options),
        max_rows=max(MIN_CHUNK, min(MAX_CHUNK, rows)),
        max_outputs=MAX_OUTPUTS,
        vocabulary=loaded.config.vocab_size,
        kv_dtype=options.kv_dtype,
        activations=ACTIVATIONS[options.activations],
        isa=isa,
        n_ctx=_context(options, loaded.config.max_positions),
        adapters=adapters,
    )


def build_plan(
    checkpoint: Checkpoint, options: LoadOptions | None = None, *, isa: str | None = None
) -> tuple[RecordedPlan, ModelInfo]:
    """Packs a checkpoint's weights and records its forward pass.

    Raises
    ------
    CheckpointError, UnsupportedModelError
    """
    options = LoadOptions() if options is None else options
    return _planned(checkpoint, _load(checkpoint, options), options, isa)


def _load(checkpoint: Checkpoint, options: LoadOptions) -> LoadedWeights:
    return load_weights(
        checkpoint, threads=_threads(options), format=options.format, memory=options.memory
    )


def _planned(
    checkpoint: Checkpoint, loaded: LoadedWeights, options: LoadOptions, isa: str | None
) -> tuple[RecordedPlan, ModelInfo]:
    plan = record_plan(loaded, options, isa=isa)
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
        threads=_threads(options),
        kv_dtype=options.kv_dtype,
        path=checkpoint.path,
    )
    return plan, info


def _threads(options: LoadOptions) -> int:
    return int(_native.resolve_threads(options.n_threads)["threads"])


def _context(options: LoadOptions, trained: int) -> int:
    return min(trained, MAX_CONTEXT) if options.n_ctx is None else options.n_ctx
