"""A recorded model from Python: print it, run it, profile it, look at any step's values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.plan.handle import Handle
from slmq.plan.recorder import Recorder
from slmq.settings import KvDtype

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StepInfo:
    """One step as recorded.

    Attributes
    ----------
    scope, op, format, shape : str
    weight_bytes : int
        Bytes of weights that the step reads, once per run.
    macs_per_row : float
        Multiply-accumulates with weights per row.
    """

    scope: str
    op: str
    format: str
    shape: str
    buffer: int
    weight_bytes: int
    macs_per_row: float


class RecordedPlan:
    """A model recorded once; every run replays it over static buffers.

    Parameters
    ----------
    record : callable
        Takes a Recorder and returns the handle of the logits.
    threads, max_rows, max_outputs, vocabulary : int
        Threads; rows (tokens) of one run; logit rows of one run; token ids.
    kv_dtype : {"f16", "f32", "int8", "int4"}
        What the cache stores; by default what is computed.
    activations : {"a8o16g32", "a16g32", "a8g32"}
        What inputs of integer weights are rounded to.
    isa : str, optional
        Kernels to run; by default the best of this CPU, or SLMQ_ISA.
    n_ctx : int
        Most positions of a sequence, which the recording may depend on.
    columns : int, optional
        Least columns of the results; by default they are logits of the whole vocabulary.
    adapters : bool
        Whether runs may be given adapters.

    Attributes
    ----------
    activations : str
    slots : list of Linear
        The weights that adapters may add to, by slot; empty for a plan that takes none.
    """

    def __init__(
        self,
        record: Callable[[Recorder], Handle],
        *,
        threads: int,
        max_rows: int,
        max_outputs: int,
        vocabulary: int,
        kv_dtype: KvDtype = "f32",
        activations: str = "a8o16g32",
        isa: str | None = None,
        n_ctx: int = 1,
        columns: int | None = None,
        adapters: bool = False,
    ) -> None:
        self.vocabulary = vocabulary
        self.cache_type = kv_dtype
        self.activations = activations
        recording = _native.Recording(threads, max_rows, max_outputs, vocabulary, kv_dtype, isa)
        recorder = Recorder(recording, activations, n_ctx, adapters=adapters)
        self.native = recorder.finish(record(recorder), -1 if columns is None else columns)
        self.slots = recorder.slots if adapters else []
        self.steps = [StepInfo(**step) for step in self.native.describe()]
        self.cache = self.native.make_cache()

    def run(
        self,
        tokens: npt.NDArray[np.int32],
        segments: Sequence[tuple[_native.KvSequence, int]],
        outputs: npt.NDArray[np.int32],
    ) -> None:
        """Appends rows to sequences and computes the logits of `outputs` (row numbers)."""
        self.native.run(tokens, list(segments), outputs)

    def logits(self) -> F32:
        """float32[outputs, vocabulary] of the last run; a copy."""
        return self.native.logits()

    def profile(
        self,
        tokens: npt.NDArray[np.int32],
        segments: Sequence[tuple[_native.KvSequence, int]],
        *,
        logits: bool = True,
    ) -> list[tuple[StepInfo, float]]:
        """Runs once with a clock at every step; returns each step with its microseconds.

        `logits` asks for those of the last row, as the end of a prompt does; else for none.
        """
        outputs = np.array([len(tokens) - 1] if logits else [], dtype=np.int32)
        times = self.native.run(tokens, list(segments), outputs, -1, True)
        assert times is not None  # nobody could cancel it
        return list(zip(self.steps, times, strict=True))

    def values(
        self,
        step: int,
        tokens: npt.NDArray[np.int32],
        segments: Sequence[tuple[_native.KvSequence, int]],
    ) -> F32:
        """float32[rows, width] that step number `step` writes when these tokens run.

        Runs up to that step and leaves the sequences as they were. Rounded activations come
        dequantized.

        Raises
        ------
        ValueError
            If there is no such step.
        """
        if not 0 <= step < len(self.steps):
            raise ValueError(f"expected a step 0..{len(self.steps) - 1}, got {step}")
        outputs = np.array([len(tokens) - 1], dtype=np.int32)
        self.native.run(tokens, list(segments), outputs, step + 1)
        return self.native.read(self.steps[step].buffer)

    def __str__(self) -> str:
        rows = [("step", "scope", "op", "format", "shape", "bytes")]
        rows += [
            (str(i), s.scope, s.op, s.format, s.shape, _bytes(s.weight_bytes))
            for i, s in enumerate(self.steps)
        ]
        widths = [max(len(row[c]) for row in rows) for c in range(6)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join(lines)


def _bytes(count: int) -> str:
    return f"{count:,}" if count else ""
