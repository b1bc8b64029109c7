"""slmq as a worker, and the limits of the machine that both sides are measured against."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from peer_worker import serve

import slmq
from slmq.engine.opening import open_engine, record_plan
from slmq.engine.options import LoadOptions
from slmq.generation.model import Model
from slmq.generation.pages import default_cache_bytes
from slmq.generation.scheduler import Scheduler
from slmq.speed import bench
from slmq.speed.limits import probe

if TYPE_CHECKING:
    from slmq.plan.plan import RecordedPlan

__all__ = ["Slmq"]


class Slmq:
    """One model, recorded for one number of threads at a time."""

    _loaded: bench.Loaded
    _plan: RecordedPlan
    _options: dict[str, Any]
    _path: str
    _model: Model | None = None

    def load(
        self, model: str, positions: int, batch: int, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Packs the weights; `options` go to `slmq.engine.options.LoadOptions`."""
        self._loaded = bench.load(model, LoadOptions(n_threads=1))
        self._options, self._path = options, model
        self.use_threads(1)
        if positions > self._loaded.n_ctx:
            raise ValueError(f"{model} was made for {self._loaded.n_ctx} tokens, not {positions}")
        rows = min(self._plan.native.max_rows, self._plan.native.max_outputs)
        if batch > rows:
            raise ValueError(f"batch: expected at most {rows} sequences, got {batch}")
        return {
            "engine": "slmq",
            "version": slmq.__version__,
            "vocabulary": self._plan.vocabulary,
            "load_s": self._loaded.load_s,
            "settings": {
                "isa": self._plan.native.isa,
                "formats": " + ".join(self._loaded.weights.formats),
                "rows of a run": self._plan.native.max_rows,
                **options,
            },
        }

    def use_threads(self, threads: int) -> None:
        """Records the model anew."""
        if self._model is not None:
            self._model.close()
            self._model = None
        self._plan = record_plan(
            self._loaded.weights, LoadOptions(n_threads=threads, **self._options)
        )

    def prompt(self, tokens: list[int]) -> dict[str, float]:
        """As `slmq bench` times a prompt: in runs as long as the plan takes."""
        ids, chunk = np.array(tokens, np.int32), self._plan.native.max_rows
        sequence = self._plan.cache.sequence()
        began_s = time.perf_counter()
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            last = [len(part) - 1] if start + len(part) == len(ids) else []
            self._plan.run(part, [(sequence, len(part))], np.array(last, np.int32))
        self._plan.logits()
        seconds = time.perf_counter() - began_s
        sequence.truncate(0)
        return {"seconds": seconds}

    def steps(self, sequences: list[list[int]]) -> dict[str, float]:
        """One row for each sequence in every run."""
        columns = np.ascontiguousarray(np.array(sequences, np.int32).T)
        caches = [self._plan.cache.sequence() for _ in sequences]
        segments = [(cache, 1) for cache in caches]
        rows = np.arange(len(sequences), dtype=np.int32)
        began_s = time.perf_counter()
        for column in columns:
            self._plan.run(column, segments, rows)
            self._plan.logits()
        seconds = time.perf_counter() - began_s
        for cache in caches:
            cache.truncate(0)
        return {"seconds": seconds}

    def answers(self, prompts: list[list[int]], count: int) -> dict[str, float]:
        """Through the scheduler. Nothing is guessed: random weights say the same over and over."""
        model = self._serving()
        params = {"max_tokens": count, "ignore_eos": True}
        began_s = time.perf_counter()
        streams = [model.submit(prompt, params, whole=True) for prompt in prompts]
        results = [stream.finish() for stream in streams]
        seconds = time.perf_counter() - began_s
        if any(len(result.tokens) != count for result in results):
            raise RuntimeError(f"expected {count} tokens of each answer")
        return {"seconds": seconds}

    def _serving(self) -> Model:
        """A model for this number of threads, made when it is first asked for."""
        if self._model is None:
            options = LoadOptions(n_threads=self._plan.native.threads, **self._options)
            engine = open_engine(self._path, options)
            engine.limit_cache(default_cache_bytes(engine))
            self._model = Model(engine, Scheduler(engine, speculate=False))
        return self._model

    def limits(self) -> dict[str, Any]:
        """What the machine can do now with these threads: `slmq.speed.limits.Limits`."""
        return asdict(probe(self._plan.native.threads, self._plan.native.isa))

    def work(self, tokens: int, whole: bool, batch: int) -> dict[str, float]:
        """What a token of a test reads and multiplies: `slmq.speed.bench.Work`."""
        return asdict(bench.Work.of(self._plan, bench.Trial("", tokens, whole, batch)))


if __name__ == "__main__":
    worker = Slmq()
    serve(
        {
            "load": worker.load,
            "use_threads": worker.use_threads,
            "prompt": worker.prompt,
            "steps": worker.steps,
            "answers": worker.answers,
            "limits": worker.limits,
            "work": worker.work,
        }
    )
