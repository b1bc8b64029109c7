"""A loaded model with what can be timed on it, and how much memory and arithmetic that takes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .common import need, need_own_curve, need_threads
from .gguf_models import SHAPES, Shape, weight_bytes, write_model

PROMPT = 64  # positions in the context before a token is timed


class Session:
    """A model of one shape and format, with one sequence whose context is filled to `filled`.

    Every timed method leaves the context as it was.
    """

    def __init__(
        self, path: Path, shape: Shape, weight_format: str, threads: int, **options: Any
    ) -> None:
        self.shape = shape
        self.weight_format = weight_format
        self.threads = threads
        self.model = need("slmq", "load")(path, n_threads=threads, **options)
        self.engine = self.model.engine
        self.sequence = self.engine.sequence()
        self.filled = 0

    def fill(self, positions: int) -> None:
        """Brings the context to a length."""
        if positions > self.filled:
            self.engine.feed(self.sequence, self._ids(positions - self.filled), logits="none")
        self.sequence.truncate(positions)
        self.filled = positions

    def decode(self) -> None:
        """One token with its logits."""
        self.engine.feed(self.sequence, [7])
        self.sequence.truncate(self.filled)

    def prefill(self, tokens: int) -> None:
        """A prompt into an empty context, logits at its end."""
        sequence = self.engine.sequence()
        self.engine.feed(sequence, self._ids(tokens))
        sequence.close()

    def batch(self, rows: int) -> Any:
        """A call that runs one token of each of that many sequences in one step."""
        plan = self.engine.plan
        sequences = [plan.cache.sequence() for _ in range(rows)]
        ids = np.asarray(self._ids(PROMPT), np.int32)
        for sequence in sequences:
            plan.run(ids, [(sequence, len(ids))], np.zeros(0, np.int32))
        tokens = np.full(rows, 7, np.int32)
        segments = [(sequence, 1) for sequence in sequences]
        outputs = np.arange(rows, dtype=np.int32)

        def step() -> None:
            plan.run(tokens, segments, outputs)
            plan.logits()
            for sequence in sequences:
                sequence.truncate(PROMPT)

        return step

    def weight_read_bytes(self) -> float:
        """Weights that one step reads: every layer and the head."""
        macs = self.shape.layer_macs() + self.shape.head_macs()
        return weight_bytes(macs, self.weight_format)

    def decode_bytes(self) -> float:
        """What one token reads at least: weights and the float16 cache up to it."""
        return self.weight_read_bytes() + self.cache_bytes(self.filled + 1)

    def cache_bytes(self, positions: int, value_bytes: float = 2) -> float:
        """Keys and values of that many positions, in all layers."""
        s = self.shape
        return positions * s.layers * s.kv_heads * s.head_dim * 2 * value_bytes

    def prefill_macs(self, tokens: int) -> float:
        """Multiply-accumulates with weights of a prompt whose last row has logits."""
        return tokens * self.shape.layer_macs() + self.shape.head_macs()

    def _ids(self, count: int) -> list[int]:
        ids: list[int] = np.random.default_rng(1).integers(0, 250, count).tolist()
        return ids


class ModelBenchmark:
    """Base of the benchmarks of whole models: files are written once per commit."""

    version = "1"
    timeout = 300
    rounds = 2
    warmup_time = 0.0
    number = 1

    def setup_cache(self) -> str:
        """The folder in which models are written by the first benchmark that needs them."""
        return str(Path.cwd())


@lru_cache(maxsize=1)
def open_session(folder: str, model: str, threads: int, kv_dtype: str = "f16") -> Session:
    """The session of a model such as "smollm2-135m/q4g32s"; asv calls `setup` many times."""
    need_threads(threads)
    need_own_curve()
    path = model_file(folder, model)
    shape, weight_format = model.split("/")
    options = {} if kv_dtype == "f16" else {"kv_dtype": kv_dtype}
    try:
        session = Session(path, SHAPES[shape], weight_format, threads, **options)
    except ValueError as error:
        raise NotImplementedError(f"this commit cannot load {model}: {error}") from error
    return session


def model_file(folder: str, model: str) -> Path:
    """The file of a model, written if it is not there."""
    shape, weight_format = model.split("/")
    path = Path(folder) / f"{shape}.{weight_format}.gguf"
    return write_model(path, SHAPES[shape], weight_format)


def elapsed_s(work: Any) -> float:
    """Seconds of one call."""
    start = perf_counter()
    work()
    return perf_counter() - start
