"""OpenVINO GenAI as a worker: its own reader takes the GGUF file.

Prompts and steps go through `LLMPipeline.generate`, greedy and without a tokenizer. It chooses the
tokens that follow the first by itself; for the time that makes no difference.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino
import openvino_genai
from peer_worker import serve

__all__ = ["OpenVino"]


class OpenVino:
    """One pipeline, compiled for one number of threads at a time."""

    _model: str
    _options: dict[str, Any]
    _pipeline: Any = None

    def load(
        self, model: str, positions: int, batch: int, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Compiles; `options` are properties such as DYNAMIC_QUANTIZATION_GROUP_SIZE."""
        self._model, self._options = model, options
        began_s = time.perf_counter()
        self.use_threads(1)
        load_s = time.perf_counter() - began_s
        return {
            "engine": "OpenVINO GenAI",
            "version": f"openvino-genai {openvino_genai.__version__}",
            "vocabulary": len(self._pipeline.get_tokenizer().get_vocab()),
            "load_s": load_s,
            "settings": {"device": "CPU", **options},
        }

    def use_threads(self, threads: int) -> None:
        """Compiles anew: the number of threads is a property of a compiled model."""
        self._pipeline = None  # two of them would hold the weights twice
        self._pipeline = openvino_genai.LLMPipeline(
            self._model, "CPU", INFERENCE_NUM_THREADS=threads, **self._options
        )

    def prompt(self, tokens: list[int]) -> dict[str, float]:
        """Reads the prompt and chooses one token."""
        return {"seconds": self._generate([tokens], 1)}

    def steps(self, sequences: list[list[int]]) -> dict[str, float]:
        """Generates as many tokens as the sequences have, after their first."""
        return {"seconds": self._generate([s[:1] for s in sequences], len(sequences[0]))}

    def answers(self, prompts: list[list[int]], count: int) -> dict[str, float]:
        """All in one call: `LLMPipeline` on a CPU batches continuously."""
        return {"seconds": self._generate(prompts, count)}

    def _generate(self, prompts: list[list[int]], count: int) -> float:
        ids = np.array(prompts, np.int64)
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))
        )
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        began_s = time.perf_counter()
        result = self._pipeline.generate(inputs, config)
        seconds = time.perf_counter() - began_s
        for tokens in result.tokens:
            if len(tokens) != count:
                raise RuntimeError(f"expected {count} tokens, got {len(tokens)}")
        return seconds


if __name__ == "__main__":
    worker = OpenVino()
    serve(
        {
            "load": worker.load,
            "use_threads": worker.use_threads,
            "prompt": worker.prompt,
            "steps": worker.steps,
            "answers": worker.answers,
        }
    )
