"""A worker that embeds texts with one engine: `encoder_worker.py ENGINE`; see encoders.py.

It runs in the environment of its engine. It answers `load(model, threads)` with `seconds`, imports
included, `take(texts)`, `embed(first, count)` with `seconds`, `vectors(first, count)`, and
`memory()` with `bytes`.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from peer_worker import serve

LONGEST = 256  # tokens, as the model's folder says
BATCH = 32  # texts that run together where an engine does not choose itself


class Engine:
    """Texts to vectors."""

    def load(self, model: str, threads: int) -> None:
        """Imports what is needed and loads the model."""
        raise NotImplementedError

    def embed(self, texts: list[str]) -> Any:
        """Vectors of length 1."""
        raise NotImplementedError


class Slmq(Engine):
    """slmq, int8."""

    def load(self, model: str, threads: int) -> None:
        """As anybody would."""
        import slmq

        self.model = slmq.load_encoder(model, n_threads=threads)

    def embed(self, texts: list[str]) -> Any:
        """As anybody would."""
        return self.model.embed(texts, truncate=True)


class Torch(Engine):
    """sentence-transformers, float32."""

    def load(self, model: str, threads: int) -> None:
        """As anybody would."""
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self.model = SentenceTransformer(model, device="cpu")

    def embed(self, texts: list[str]) -> Any:
        """As anybody would; it sorts texts by their length."""
        return self.model.encode(texts, batch_size=BATCH, show_progress_bar=False)


class Graph(Engine):
    """What a graph of ONNX or OpenVINO needs around it: tokens, padding, pooling."""

    def load(self, model: str, threads: int) -> None:
        """The tokenizer; engines add theirs."""
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
        self.tokenizer.enable_truncation(LONGEST)
        self.tokenizer.enable_padding()

    def run(self, ids: Any, mask: Any) -> Any:
        """Hidden states."""
        raise NotImplementedError

    def embed(self, texts: list[str]) -> Any:
        """Sorted by length, in batches, as sentence-transformers does it."""
        import numpy as np

        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        found: list[Any] = [None] * len(texts)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            encoded = self.tokenizer.encode_batch([texts[i] for i in batch])
            ids = np.array([one.ids for one in encoded], np.int64)
            mask = np.array([one.attention_mask for one in encoded], np.int64)
            states = self.run(ids, mask)
            weights = mask[:, :, None].astype(np.float32)
            means = (states * weights).sum(axis=1) / weights.sum(axis=1)
            means /= np.linalg.norm(means, axis=1, keepdims=True)
            for i, vector in zip(batch, means, strict=True):
                found[i] = vector
        return np.stack(found)


class Onnx(Graph):
    """onnxruntime with an int8 graph."""

    def load(self, model: str, threads: int) -> None:
        """The graph of the environment variable ONNX_INT8."""
        import onnxruntime

        super().load(model, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            os.environ["ONNX_INT8"], options, providers=["CPUExecutionProvider"]
        )
        self.names = {one.name for one in self.session.get_inputs()}

    def run(self, ids: Any, mask: Any) -> Any:
        """Hidden states."""
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}
        return self.session.run(None, {name: given[name] for name in self.names})[0]


class Openvino(Graph):
    """OpenVINO with an int8 graph."""

    def load(self, model: str, threads: int) -> None:
        """The graph of the environment variable OPENVINO_INT8."""
        import openvino

        super().load(model, threads)
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        self.graph = openvino.Core().compile_model(os.environ["OPENVINO_INT8"], "CPU", settings)
        self.request = self.graph.create_infer_request()
        self.names = [one.get_any_name() for one in self.graph.inputs]

    def run(self, ids: Any, mask: Any) -> Any:
        """Hidden states."""
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}
        found = self.request.infer({name: given[name] for name in self.names})
        return found[self.graph.outputs[0]]


ENGINES: dict[str, type[Engine]] = {
    "slmq": Slmq,
    "torch": Torch,
    "onnx": Onnx,
    "openvino": Openvino,
}


def main() -> None:
    """Serve until the standard input ends."""
    engine = ENGINES[sys.argv[1]]()
    texts: list[str] = []

    def load(model: str, threads: int) -> dict[str, Any]:
        began_s = time.perf_counter()
        engine.load(model, threads)
        return {"seconds": time.perf_counter() - began_s}

    def take(given: list[str]) -> None:
        texts[:] = given

    def embed(first: int, count: int) -> dict[str, Any]:
        wanted = texts[first : first + count]
        began_s = time.perf_counter()
        engine.embed(wanted)
        return {"seconds": time.perf_counter() - began_s}

    def vectors(first: int, count: int) -> dict[str, Any]:
        return {
            "vectors": [list(map(float, v)) for v in engine.embed(texts[first : first + count])]
        }

    def memory() -> dict[str, Any]:
        return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}

    serve({"load": load, "take": take, "embed": embed, "vectors": vectors, "memory": memory})


if __name__ == "__main__":
    main()
