"""One answer at a time: the prompt cache, the queue before it, and the stream of its tokens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import GEN_CLOSED, getgeneratorstate
from types import TracebackType
from typing import TYPE_CHECKING

from slmq.errors import Error
from slmq.results import (
    FinishReason,
    GenerationResult,
    StreamChunk,
    TokenLogprob,
    peak_memory_bytes,
)
from slmq.sampling import SamplingParams, make_sampler, token_logprob
from slmq.stops import StopMatcher

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from slmq.engine import Engine
    from slmq.engine import Sequence as EngineSequence

__all__ = ["Answer", "PrefixCache", "Request", "TokenStream", "Turn"]

Progress = Callable[[int, int], None]


class Turn:
    """Lets one answer at a time use the engine.

    Another thread waits its turn. A thread that still has a stream open would wait for itself
    for ever, so it gets an error instead.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._closed = False

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait for the turn and have it within the block, which any thread may leave.

        Raises slmq.Error if this thread has a stream open, ValueError if the model is closed.
        """
        if self._mine():
            raise Error(
                "this thread has a stream of this model open; read it to its end or close() it "
                "before the next call"
            )
        with self._lock:
            self._owner = threading.get_ident()
            try:
                if self._closed:
                    raise ValueError("the model is closed")
                yield
            finally:
                self._owner = None

    @contextmanager
    def borrow(self) -> Iterator[None]:
        """For short work between steps: like `hold`, or within the turn that this thread has."""
        if self._mine():
            yield
        else:
            with self.hold():
                yield

    def touch(self) -> None:
        """The turn belongs to the thread that now reads the stream."""
        self._owner = threading.get_ident()

    def close(self) -> None:
        """Nobody may enter any more; called by the one who has the turn."""
        self._closed = True

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _mine(self) -> bool:
        return self._lock.locked() and self._owner == threading.get_ident()


class PrefixCache:
    """A sequence kept between prompts: what a new prompt shares with it is not computed again."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sequence: EngineSequence | None = None

    def prepare(self, prompt: Sequence[int]) -> tuple[EngineSequence, int]:
        """The sequence, cut to the longest common prefix, and the length of that.

        At least the last token of the prompt stays to be fed, for its logits.
        """
        if self._sequence is None:
            self._sequence = self._engine.sequence()
        held = self._sequence.tokens
        limit = min(len(held), len(prompt) - 1)
        shared = 0
        while shared < limit and held[shared] == prompt[shared]:
            shared += 1
        self._sequence.truncate(shared)
        return self._sequence, shared

    def drop(self) -> None:
        """Give the sequence back."""
        sequence, self._sequence = self._sequence, None
        if sequence is not None:
            sequence.close()


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


class TokenStream:
    """Iterator over the chunks of an answer that is made while you read.

    The model is busy from the first chunk until the stream ends or is closed: other threads wait.
    `close` cancels at once, or, while another thread is inside the stream, before its next token
    or prompt chunk. Leaving a ``with`` block closes, and so does dropping the stream.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._steps = answer.steps()
        self._inside = threading.Lock()  # held by the thread that runs the steps

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamChunk:
        if not self._inside.acquire(blocking=False):
            if self._answer.cancelled:
                raise StopIteration
            raise Error("another thread is reading this stream")
        try:
            if self._answer.running:
                self._answer.turn.touch()
            return next(self._steps)
        finally:
            self._inside.release()

    def close(self) -> None:
        """Cancel the answer, also while its prompt is read; harmless at any other time."""
        self._answer.cancelled = True
        if not self._inside.acquire(blocking=False):
            return  # whoever is inside sees `cancelled` at the next step
        try:
            self._steps.close()
            self._answer.conclude("cancelled")
        finally:
            self._inside.release()

    @property
    def result(self) -> GenerationResult | None:
        """The whole answer once the stream has ended or was closed; None before."""
        return self._answer.result

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, cancelled or failed: the model is free again."""
        return self._answer.result is not None or getgeneratorstate(self._steps) == GEN_CLOSED

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
