"""A model cut into stages that run one at a time: what is before its layers, each layer, the head.

A family's `forward` is recorded once for every stage. Steps that belong to other stages record
nothing; where a stage takes what an earlier one made, it reads a matrix of saved activations, with
their rows as token ids. So no more than one layer's weights are in memory, whatever the family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.checkpoint.packed_folder import ALIGNMENT
from slmq.formats import FORMATS, packed_bytes
from slmq.plan.handle import Handle
from slmq.plan.linear import Linear
from slmq.plan.plan import RecordedPlan
from slmq.plan.recorder import Recorder
from slmq.quantizer.recording import Stage, StageRecording, Tap
from slmq.quantizer.source import FloatSource
from slmq.weights.survey import Wish

__all__ = ["StageRun", "survey"]

F32 = npt.NDArray[np.float32]


def survey(source: FloatSource) -> list[Stage]:
    """The stages of a model, in order, with the matrices that each uses."""
    recording = StageRecording(source)
    source.opened.family.forward(recording, source.weights, source.opened.config)
    return recording.stages


def _untouched(n: int, k: int) -> Linear:
    """A matrix that is never read, so that its zeros take no memory."""
    size = packed_bytes(FORMATS["f32"], n, k)
    zeros = np.zeros(size + ALIGNMENT, np.uint8)
    begin = -zeros.ctypes.data % ALIGNMENT
    return Linear(_native.Matrix.from_packed("f32", n, k, zeros[begin : begin + size]))


class StageRun:
    """One stage, recorded over its weights.

    Parameters
    ----------
    source : FloatSource
    stage : Stage
    last : int
        The number of the last stage, the head.
    tokens : int32[windows, rows]
        Token ids.
    hidden : float32[windows * rows, width], optional
        What the stage before made of them; None for the first one.
    weights : callable
        The weight that a wish is; `FloatSource.linear_of`, or a cache of it, or rounded ones.
    vectors : mapping of str to float32, optional
        What takes the place of vectors, by name.
    """

    def __init__(
        self,
        source: FloatSource,
        stage: Stage,
        last: int,
        tokens: npt.NDArray[np.int32],
        hidden: F32 | None,
        threads: int,
        weights: Callable[[Wish], Linear],
        vectors: Mapping[str, F32] | None = None,
    ) -> None:
        config = source.opened.config
        self._rows = tokens.shape[1]
        if hidden is None:
            self._ids = tokens
            saved = None
            size = config.vocab_size
        else:
            size = len(hidden)
            self._ids = np.arange(size, dtype=np.int32).reshape(tokens.shape)
            raw = np.ascontiguousarray(hidden).reshape(-1).view(np.uint8)
            packed = _native.Matrix.pack(
                "f32", raw, size, hidden.shape[1], "f32", None, None, threads
            )
            saved = Linear(packed)

        def record(recorder: Recorder) -> Handle:
            self._recording = StageRecording(
                source, recorder, stage.number, last, weights, saved, vectors
            )
            source.opened.family.forward(self._recording, source.weights, config)
            result = self._recording.result
            # A plan ends with logits, for which nobody asks.
            return recorder.linear(recorder.select(result), _untouched(size, result.width))

        self._plan = RecordedPlan(
            record,
            threads=threads,
            max_rows=self._rows,
            max_outputs=1,
            vocabulary=size,
            activations="a16g32",
            n_ctx=config.max_positions,
        )

    @property
    def taps(self) -> list[Tap]:
        """The inputs of the stage's matrices."""
        return self._recording.taps

    def windows(self) -> Iterator[Callable[[Handle | None], F32]]:
        """Run window by window; yields what reads a tap's values, or with None the output's."""
        for ids in self._ids:
            sequence = self._plan.cache.sequence()
            self._plan.run(ids, [(sequence, len(ids))], np.zeros(0, np.int32))
            sequence.truncate(0)
            yield self._read

    def _read(self, handle: Handle | None) -> F32:
        buffer, offset, width = (self._recording.result if handle is None else handle).slice
        return np.ascontiguousarray(self._plan.native.read(buffer)[:, offset : offset + width])
