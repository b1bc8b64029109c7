"""Random requests, and the answer that each gets alone: what a scheduler is held against."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

from slmq.engine.engine import Engine
from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.generation.answer import Answer, Request
from slmq.generation.results import GenerationResult, StreamChunk
from slmq.generation.sampling import SamplingParams

N_CTX = 512


def open_tiny(path: Path, *, threads: int = 1, chunk: int = 48, pages: int | None = None) -> Engine:
    """The tiny model; a small chunk cuts prompts, few pages make answers give way."""
    engine = open_engine(path, LoadOptions(n_ctx=N_CTX, n_threads=threads), name="tiny")
    engine.chunk = chunk
    if pages is not None:
        engine.limit_cache(pages * engine.page_bytes)
    return engine


def request(prompt: list[int], **params: object) -> Request:
    """A request that the end token does not end early."""
    return Request(prompt, SamplingParams.from_kwargs({"ignore_eos": True, **params}))


def said(result: GenerationResult) -> tuple[object, ...]:
    """All of a result that must not depend on anything but its request."""
    return (
        result.text,
        result.tokens,
        result.logprobs,
        result.finish_reason,
        result.stopped_by,
        result.prompt_tokens,
        result.seed,
    )


@dataclass
class Alone:
    """Answers made one at a time, in a fresh sequence each, by nothing but engine and sampler.

    Attributes
    ----------
    made : dict
        Every request so far with its chunks, by its identity.
    """

    engine: Engine
    made: dict[int, tuple[Request, list[StreamChunk]]] = field(default_factory=dict)

    def __call__(self, asked: Request) -> list[StreamChunk]:
        """The chunks of an answer, the last with its result."""
        if id(asked) not in self.made:
            self.made[id(asked)] = asked, self._make(asked)
        return self.made[id(asked)][1]

    def _make(self, asked: Request) -> list[StreamChunk]:
        answer = Answer(self.engine.tokenizer, N_CTX - len(asked.prompt), asked)
        sequence = self.engine.sequence()
        logits = self.engine.feed(sequence, asked.prompt)
        chunks = [answer.end("length") if answer.silent else answer.accept(logits)]
        while chunks[-1].result is None:
            token = chunks[-1].token
            assert token is not None
            chunks.append(answer.accept(self.engine.feed(sequence, [token])))
        sequence.close()
        return chunks


def random_request(rng: random.Random, stems: list[list[int]]) -> Request:
    """A prompt that mostly begins like others, with parameters of any kind."""
    stem = rng.choice(stems)
    prompt = stem[: rng.randint(0, len(stem))]
    prompt = prompt + [rng.randrange(256) for _ in range(rng.choice([0, 1, 3, 20]))]
    params: dict[str, object] = {"max_tokens": rng.choice([0, 1, 2, 5, 12, 12, 30])}
    if rng.random() < 0.6:
        params |= {"temperature": rng.choice([0.2, 1.0, 3.0]), "seed": rng.randrange(2**64)}
        params |= rng.choice([{}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1, "top_k": 40}])
    if rng.random() < 0.3:
        params |= rng.choice(
            [
                {"repetition_penalty": 1.3},
                {"presence_penalty": 0.5, "frequency_penalty": 0.25},
                {"logit_bias": {7: 2.0, 9: float("-inf")}},
            ]
        )
    if rng.random() < 0.5:
        params["logprobs"] = rng.choice([0, 3])
    if rng.random() < 0.3:
        params["stop"] = rng.choice([["e"], ["ab", "\n", 17], [chr(rng.randrange(32, 127))]])
    asked = request(prompt or [rng.randrange(256)], **params)
    return replace(
        asked,
        salt=rng.choice([None, None, None, "one"]),
        batch=rng.random() < 0.2,
        follow=rng.random() < 0.2,
    )
