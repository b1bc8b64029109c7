"""llama.cpp as a worker, through llama-cpp-python: as its users get it, but for the threads.

The model is made by `llama_cpp.Llama` with its defaults. Tokens then go to `llama_decode` directly,
as llama-bench does, so that none of the time is Python's.
"""

from __future__ import annotations

import time
from typing import Any

import llama_cpp
import numpy as np
from peer_worker import serve

__all__ = ["LlamaCpp"]


class LlamaCpp:
    """One model and a context for the sequences of a batch."""

    _llama: llama_cpp.Llama
    _context: Any
    _batch: Any

    def load(
        self, model: str, positions: int, batch: int, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Loads; `options` go to `llama_cpp.Llama`."""
        began_s = time.perf_counter()
        self._llama = llama_cpp.Llama(model, n_ctx=positions, **{"verbose": False, **options})
        params = self._llama.context_params
        if batch == 1:
            self._context = self._llama.ctx
        else:
            params.n_seq_max, params.n_ctx = batch, positions * batch
            self._context = llama_cpp.llama_init_from_model(self._llama.model, params)
            if not self._context:
                raise MemoryError
        load_s = time.perf_counter() - began_s
        self._batch = llama_cpp.llama_batch_init(max(batch, params.n_batch), 0, 1)
        system = llama_cpp.llama_print_system_info().decode()
        return {
            "engine": "llama.cpp",
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "vocabulary": self._llama.n_vocab(),
            "load_s": load_s,
            "settings": {
                "n_batch": params.n_batch,
                "n_ubatch": params.n_ubatch,
                "flash attention": flash_attention(params.flash_attn_type),
                "system": system.strip(" |\n"),
                **options,
            },
        }

    def use_threads(self, threads: int) -> None:
        """For prompts and for single tokens."""
        llama_cpp.llama_set_n_threads(self._context, threads, threads)

    def prompt(self, tokens: list[int]) -> dict[str, float]:
        """In batches of `n_batch` tokens, logits of the last one only."""
        self._forget()
        largest = self._llama.n_batch
        began_s = time.perf_counter()
        for start in range(0, len(tokens), largest):
            part = tokens[start : start + largest]
            last = start + len(part) == len(tokens)
            rows = [(token, start + i, 0, False) for i, token in enumerate(part)]
            if last:
                rows[-1] = (*rows[-1][:3], True)
            self._decode(rows)
        llama_cpp.llama_synchronize(self._context)
        return {"seconds": time.perf_counter() - began_s}

    def steps(self, sequences: list[list[int]]) -> dict[str, float]:
        """One token of each sequence in every batch."""
        self._forget()
        began_s = time.perf_counter()
        for position, column in enumerate(zip(*sequences, strict=True)):
            self._decode([(token, position, i, True) for i, token in enumerate(column)])
            llama_cpp.llama_synchronize(self._context)
        return {"seconds": time.perf_counter() - began_s}

    def logits(self, tokens: list[int]) -> dict[str, list[float]]:
        """Behind a prompt of at most `n_batch` tokens."""
        self._forget()
        last = len(tokens) - 1
        self._decode([(token, i, 0, i == last) for i, token in enumerate(tokens)])
        found = llama_cpp.llama_get_logits_ith(self._context, last)
        return {"logits": np.ctypeslib.as_array(found, (self._llama.n_vocab(),)).tolist()}

    def answers(self, prompts: list[list[int]], count: int) -> dict[str, float]:
        """As llama-batched-bench: prompts one after the other, then one token of each in a batch.

        The likeliest token is found by NumPy, outside of what is timed.
        """
        self._forget()
        largest, last = self._llama.n_batch, len(prompts[0]) - 1
        rows = [
            (token, i, number, i == last)
            for number, tokens in enumerate(prompts)
            for i, token in enumerate(tokens)
        ]
        seconds, chosen = 0.0, list[int]()
        for start in range(0, len(rows), largest):
            part = rows[start : start + largest]
            seconds += self._timed(part)
            chosen += self._likeliest(part)
        for step in range(1, count):
            part = [(token, last + step, i, True) for i, token in enumerate(chosen)]
            seconds += self._timed(part)
            chosen = self._likeliest(part)
        return {"seconds": seconds}

    def _timed(self, rows: list[tuple[int, int, int, bool]]) -> float:
        began_s = time.perf_counter()
        self._decode(rows)
        llama_cpp.llama_synchronize(self._context)
        return time.perf_counter() - began_s

    def _likeliest(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Of the rows whose logits were wanted."""
        size = self._llama.n_vocab()
        found = []
        for i, row in enumerate(rows):
            if row[3]:
                logits = llama_cpp.llama_get_logits_ith(self._context, i)
                found.append(int(np.argmax(np.ctypeslib.as_array(logits, (size,)))))
        return found

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Token, position, sequence and whether its logits are wanted."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")


def flash_attention(kind: int) -> str:
    """The name of a LLAMA_FLASH_ATTN_TYPE."""
    return {-1: "auto", 0: "off", 1: "on"}.get(kind, str(kind))


if __name__ == "__main__":
    worker = LlamaCpp()
    serve(
        {
            "load": worker.load,
            "use_threads": worker.use_threads,
            "prompt": worker.prompt,
            "steps": worker.steps,
            "logits": worker.logits,
            "answers": worker.answers,
        }
    )
