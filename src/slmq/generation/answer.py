"""One answer: its request, and the steps that make it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slmq.generation.results import FinishReason, GenerationResult, StreamChunk, TokenLogprob
from slmq.generation.sampling import SamplingParams, make_sampler, token_logprob
from slmq.generation.stops import StopMatcher
from slmq.machine.memory import peak_memory_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slmq.engine.engine import Engine
    from slmq.engine.prefix import PrefixCache
    from slmq.engine.sequence import Sequence as EngineSequence
    from slmq.generation.scheduler import Turn


Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """What an answer needs to know: prompt int[prompt_tokens], parameters, and how it began.

    `encode_s` are the seconds that the encoding of the prompt took, `progress` is called with
    (tokens done, tokens in all) while the prompt is read, and `on_finish` once at the end.
    """

    prompt: list[int]
    params: SamplingParams
    encode_s: float = 0.0
    progress: Progress | None = None
    on_finish: Callable[[GenerationResult], None] | None = None


class Answer:
    """State and steps of one answer; `TokenStream` is the handle on it.

    The steps never refer to the handle, so a handle that is dropped is freed at once, which
    closes the steps and ends the turn.
    """

    def __init__(self, engine: Engine, turn: Turn, cache: PrefixCache, request: Request) -> None:
        self.turn = turn
        self.cancelled = False
        self.running = False
        self.result: GenerationResult | None = None
        self._engine = engine
        self._cache = cache
        self._request = request
        params = request.params
        self._sampler = make_sampler(params, engine.n_vocab)
        self._ends = params.stop_tokens
        if not params.ignore_eos:
            self._ends |= engine.tokenizer.eos_ids
        room = engine.n_ctx - len(request.prompt)
        self._limit = room if params.max_tokens is None else params.max_tokens
        self._decoder = engine.tokenizer.stream()
        self._stops = StopMatcher(params.stop_strings)
        self._stopped_by: str | int | None = None
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._cached = 0
        self._started_s = self._first_s = self._latest_s = 0.0
        self._prompt_s = 0.0

    def steps(self) -> Generator[StreamChunk, None, None]:
        """Wait for the turn, read the prompt, then one chunk per token."""
        self._started_s = time.perf_counter() - self._request.encode_s
        with self.turn.hold():
            self.running = True
            try:
                last = yield from self._run()
            except (GeneratorExit, KeyboardInterrupt):
                self.conclude("cancelled")
                raise
            except BaseException:
                self._cache.drop()  # what the sequence holds after a failure is not worth a guess
                raise
            finally:
                self.running = False
        yield last  # the turn is over by now: whoever stops reading here blocks nobody

    def conclude(self, reason: FinishReason) -> GenerationResult:
        """Fix the result, once; later calls return the same."""
        if self.result is None:
            asked = self._request.params
            self.result = GenerationResult(
                "".join(self._texts),
                self._tokens,
                None if asked.logprobs is None else self._logprobs,
                reason,
                stopped_by=self._stopped_by,
                prompt_tokens=len(self._request.prompt),
                cached_tokens=self._cached,
                prompt_tps=self._prompt_tps(),
                generation_tps=self._generation_tps(),
                time_to_first_token=self._first_s - self._started_s if self._tokens else 0.0,
                peak_memory_bytes=peak_memory_bytes(),
                seed=self._sampler.seed if asked.temperature > 0 else asked.seed,
            )
            if self._request.on_finish is not None:
                self._request.on_finish(self.result)
        return self.result

    def _run(self) -> Generator[StreamChunk, None, StreamChunk]:
        """Yields every chunk but the last, which it returns."""
        prompt = self._request.prompt
        sequence, self._cached = self._cache.prepare(prompt)
        self._read_prompt(sequence)
        if self.cancelled or self._limit == 0:
            return self._chunk("", None, None, "cancelled" if self.cancelled else "length")
        logits = sequence.last_logits
        assert logits is not None  # the engine sets them with the last chunk of the prompt
        self._sampler.observe(prompt)
        while True:
            chunk = self._next(logits)
            if chunk.finish_reason is not None:
                return chunk
            yield chunk
            if self.cancelled:
                return self._chunk("", None, None, "cancelled")
            logits = self._engine.feed(sequence, self._tokens[-1:])

    def _read_prompt(self, sequence: EngineSequence) -> None:
        """Feed what the cache lacks; stops between chunks when cancelled."""
        total = len(self._request.prompt)
        began_s = time.perf_counter()
        for done in self._engine.feed_chunks(sequence, self._request.prompt[self._cached :]):
            if self._request.progress is not None:
                self._request.progress(self._cached + done, total)
            if self.cancelled:
                break
        self._prompt_s = time.perf_counter() - began_s

    def _next(self, logits: NDArray[np.float32]) -> StreamChunk:
        """Draw a token and find out what it means."""
        params = self._request.params
        token = self._sampler.sample(logits)
        self._sampler.accept(token)
        self._latest_s = time.perf_counter()
        if not self._tokens:
            self._first_s = self._latest_s
        self._tokens.append(token)
        logprob = None
        if params.logprobs is not None:
            logprob = token_logprob(logits, token, params.logprobs)
            self._logprobs.append(logprob)
        text, reason = self._text_of(token)
        return self._chunk(text, token, logprob, reason)

    def _text_of(self, token: int) -> tuple[str, FinishReason | None]:
        ended = token in self._ends
        text = "" if ended else self._stops.push(self._decoder.push(token))
        full = len(self._tokens) >= self._limit
        if (ended or full) and self._stops.matched is None:
            text += self._stops.push(self._decoder.flush())
        reason: FinishReason | None = "length" if full else None
        if self._stops.matched is not None:
            self._stopped_by, reason = self._stops.matched, "stop"
        elif ended:
            self._stopped_by, reason = token, "stop"
        return (text if reason is None else text + self._stops.flush()), reason

    def _chunk(
        self,
        text: str,
        token: int | None,
        logprob: TokenLogprob | None,
        reason: FinishReason | None,
    ) -> StreamChunk:
        self._texts.append(text)
        return StreamChunk(
            text,
            token,
            logprob,
            reason,
            prompt_tokens=len(self._request.prompt),
            generated_tokens=len(self._tokens),
            prompt_tps=self._prompt_tps(),
            generation_tps=self._generation_tps(),
            time_to_first_token=self._first_s - self._started_s if self._tokens else 0.0,
            result=None if reason is None else self.conclude(reason),
        )

    def _prompt_tps(self) -> float:
        computed = len(self._request.prompt) - self._cached
        return computed / self._prompt_s if self._prompt_s > 0 else 0.0

    def _generation_tps(self) -> float:
        spent_s = self._latest_s - self._first_s
        return (len(self._tokens) - 1) / spent_s if spent_s > 0 else 0.0
