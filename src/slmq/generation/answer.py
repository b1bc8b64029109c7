"""An answer as a pure state: logits go in, chunks come out. It knows no engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slmq.generation.hearing import Hearing
from slmq.generation.ledger import Ledger
from slmq.generation.results import FinishReason, GenerationResult, StreamChunk, TokenLogprob
from slmq.generation.sampling import SamplingParams, make_sampler, token_logprob
from slmq.generation.stops import StopMatcher
from slmq.machine.memory import peak_memory_bytes
from slmq.tools.calls import Said

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slmq.engine.adapters import Adapter
    from slmq.generation.constraints import Matcher
    from slmq.generation.shapes import Shape
    from slmq.tokenizer import Tokenizer
    from slmq.tools.speech import Speech

__all__ = ["Answer", "Progress", "Request"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """What an answer needs to know.

    Attributes
    ----------
    prompt : list of int
        Token ids, at least one.
    params : SamplingParams
    encode_s : float
        Seconds that encoding the prompt took.
    batch : bool
        Whether everybody else goes first.
    deadline_s : float or None
        Seconds from submission after which the answer is given up.
    salt : hashable
        Only requests of the same salt share what was computed.
    follow : bool
        Whether prompt progress is reported, and waited for: see `TokenStream`.
    continues : bool
        Whether the answer goes on with the text of the prompt; one to a chat begins a text.
    whole : bool
        Whether only the last chunk, with the result, is handed out. Such an answer never pauses.
    shape : Shape or None
        What the answer may be.
    speech : Speech or None
        What a chat has said, and how its answer is read.
    adapter : Adapter or None
        What adds to the model's layers.
    usual : int or None
        Most tokens of the answer if the parameters leave that to us ("auto").
    """

    prompt: list[int]
    params: SamplingParams
    encode_s: float = 0.0
    batch: bool = False
    deadline_s: float | None = None
    salt: Hashable = None
    follow: bool = False
    continues: bool = True
    whole: bool = False
    shape: Shape | None = None
    speech: Speech | None = None
    usual: int | None = None
    adapter: Adapter | None = None

    def __post_init__(self) -> None:
        limit = self.deadline_s
        if isinstance(limit, bool) or not (limit is None or isinstance(limit, (int, float))):
            kind = type(limit).__name__
            raise TypeError(f"deadline_s: expected a number of seconds or None, got {kind}")
        if limit is not None and not 0 < limit <= threading.TIMEOUT_MAX:
            raise ValueError(f"deadline_s: expected a positive number of seconds, got {limit}")
        try:
            hash(self.salt)
        except TypeError:
            kind = type(self.salt).__name__
            raise TypeError(f"salt: expected something hashable, got {kind}") from None

    @property
    def kin(self) -> Hashable:
        """What requests must have in common to share what was computed."""
        return self.salt, None if self.adapter is None else self.adapter.digest


class Answer:
    """What has been said so far, and how the next token is chosen.

    Parameters
    ----------
    tokenizer : Tokenizer
    room : int
        Most tokens that fit behind the prompt.
    request : Request
    """

    def __init__(self, tokenizer: Tokenizer, room: int, request: Request) -> None:
        params = request.params
        self.request = request
        self.sampler = make_sampler(params, tokenizer.n_vocab)
        self.sampler.observe(request.prompt)
        self.matcher = None if request.shape is None else request.shape.constraint.matcher()
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.cached_tokens = self.drafted_tokens = self.accepted_tokens = 0
        self.forced_tokens = 0
        self.started_s = time.perf_counter() - request.encode_s
        self.queued_s = self.prompt_s = 0.0
        self.ledger = Ledger()
        self._ends = params.stop_tokens
        if not params.ignore_eos:
            self._ends |= tokenizer.eos_ids
        most = request.usual if params.max_tokens == "auto" else params.limit
        self._limit = room if most is None else min(most, room)
        # A constraint is on the very bytes: no space at the start is the tokenizer's own.
        continues = request.continues or self.matcher is not None
        self._hearing = Hearing(tokenizer, request.prompt, request.speech, continues=continues)
        self._stops = StopMatcher(params.stop_strings)
        self._called = False
        self._stopped_by: str | int | None = None
        self._said: list[Said] = []
        self._logprobs: list[TokenLogprob] = []
        self._first_s = self._latest_s = 0.0

    @property
    def silent(self) -> bool:
        """Whether nothing is to be said: the prompt is read, and that is all."""
        return self._limit == 0

    @property
    def left(self) -> int:
        """Most tokens that may still come."""
        return self._limit - len(self.tokens)

    @property
    def forced(self) -> int | None:
        """The token that has to come next, whatever the logits; None where there is a choice."""
        if self.matcher is None or not self.matcher.forced:
            return None
        return self.matcher.forced[0]

    def ends_with(self, token: int) -> bool:
        """Whether this token ends the answer."""
        return token in self._ends

    @property
    def drawn_from(self) -> Matcher | None:
        """What says between which tokens is drawn; None if all may come, or nothing is drawn."""
        return None if self.request.params.temperature == 0.0 else self.matcher

    def allowed(self) -> NDArray[np.int32] | None:
        """The tokens that the sampler is to choose from, as it takes them.

        None if any may come. None, too, where the likeliest is taken and it is not known yet which
        may: mostly that token may, and looking at it takes less than a mask. See `mended`.
        """
        if self.matcher is None or (self.drawn_from is None and not self.matcher.known):
            return None
        return self.matcher.allowed()

    def mended(
        self, token: int | BaseException, logits: NDArray[np.float32]
    ) -> int | BaseException:
        """What the sampler chose among the tokens of `allowed`, or its error; if need be anew."""
        if self.matcher is None or self.matcher.known:
            return token
        if isinstance(token, int) and self.matcher.allows(token):
            return token
        return self.sampler.sample(logits, self.matcher.allowed())

    def choose(self, logits: NDArray[np.float32]) -> int:
        """What is forced, or a draw from float32[n_vocab]; errors as `Sampler.sample`."""
        if self.forced is not None:
            return self.forced
        found: int | BaseException
        try:
            found = self.sampler.sample(logits, self.allowed())
        except ValueError as error:
            found = error
        found = self.mended(found, logits)
        if isinstance(found, BaseException):
            raise found
        return found

    def accept(self, logits: NDArray[np.float32]) -> StreamChunk:
        """Go on with what `choose` says."""
        return self.take(self.choose(logits), logits)

    def follow(self) -> list[StreamChunk]:
        """Take the tokens that are forced and whose logits nobody wants to see."""
        chunks: list[StreamChunk] = []
        while self.finish_reason is None and self.request.params.logprobs is None:
            token = self.forced
            if token is None:
                break
            chunks.append(self.take(token, None))
        return chunks

    def take(self, token: int, logits: NDArray[np.float32] | None) -> StreamChunk:
        """Go on with a token that is forced, or that the sampler drew from these logits."""
        if self.matcher is not None:
            self.forced_tokens += self.forced is not None
            self.matcher.accept(token)
            self.ledger.mask_s = self.matcher.spent_s
        self.sampler.accept(token)
        self._latest_s = time.perf_counter()
        if not self.tokens:
            self._first_s = self._latest_s
        self.tokens.append(token)
        logprob = None
        if self.request.params.logprobs is not None:
            assert logits is not None  # only `follow` has none, and it leaves such answers alone
            logprob = token_logprob(logits, token, self.request.params.logprobs)
            self._logprobs.append(logprob)
        said, reason = self._said_by(token)
        return self._chunk(said, token, logprob, reason)

    def end(self, reason: FinishReason) -> StreamChunk:
        """The last chunk of an answer that ends without another token."""
        return self._chunk(Said(), None, None, reason)

    def cancelled_chunk(self, result: GenerationResult | None) -> StreamChunk:
        """The last chunk that the reader of a cancelled answer gets, with its result."""
        return self._describe(Said(), None, None, "cancelled", result)

    def result(self, reason: FinishReason, spoken: int | None = None) -> GenerationResult:
        """The whole answer, or its first `spoken` tokens if nobody read the others."""
        asked, shape = self.request.params, self.request.shape
        heard = self._said[:spoken]
        return GenerationResult(
            "".join(said.text for said in heard),
            self.tokens[:spoken],
            None if asked.logprobs is None else self._logprobs[:spoken],
            reason,
            stopped_by=None if reason == "cancelled" else self._stopped_by,
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self.cached_tokens,
            drafted_tokens=self.drafted_tokens,
            accepted_tokens=self.accepted_tokens,
            forced_tokens=self.forced_tokens,
            prompt_tps=self._prompt_tps(),
            generation_tps=self._generation_tps(),
            time_to_first_token=self._first_s - self.started_s if self.tokens[:spoken] else 0.0,
            queue_s=self.queued_s,
            peak_memory_bytes=peak_memory_bytes(),
            seed=self.sampler.seed if asked.temperature > 0 else asked.seed,
            unenforced=() if shape is None else shape.constraint.left_out,
            complete=None if self.matcher is None else self._complete(reason),
            read=None if shape is None else shape.read,
            reasoning="".join(said.reasoning for said in heard),
            reasoning_tokens=max(
                (i for i, said in enumerate(heard, 1) if said.reasoning), default=0
            ),
            tool_calls=[call for said in heard for call in said.calls],
            ledger=self.ledger,
        )

    def _complete(self, reason: FinishReason) -> bool:
        assert self.matcher is not None
        return reason in ("stop", "tool_calls") and self.matcher.accepting

    def _said_by(self, token: int) -> tuple[Said, FinishReason | None]:
        ended = token in self._ends
        said = Said() if ended else self._hearing.push(token)
        said.text = self._stops.push(said.text)
        full = len(self.tokens) >= self._limit
        complete = self.matcher is not None and self.matcher.complete
        if (ended or full or complete) and self._stops.matched is None:
            last = self._hearing.flush()
            last.text = self._stops.push(last.text)
            said.add(last)
        reason: FinishReason | None = "length" if full else None
        if self._stops.matched is not None:
            self._stopped_by, reason = self._stops.matched, "stop"
        elif ended:
            self._stopped_by, reason = token, "stop"
        elif complete:
            reason = "stop"
        if reason is not None:
            said.text += self._stops.flush()
        self._called = self._called or bool(said.calls)
        return said, "tool_calls" if reason == "stop" and self._called else reason

    def _chunk(
        self,
        said: Said,
        token: int | None,
        logprob: TokenLogprob | None,
        reason: FinishReason | None,
    ) -> StreamChunk:
        self._said.append(said)
        self.finish_reason = reason
        return self._describe(
            said, token, logprob, reason, None if reason is None else self.result(reason)
        )

    def _describe(
        self,
        said: Said,
        token: int | None,
        logprob: TokenLogprob | None,
        reason: FinishReason | None,
        result: GenerationResult | None,
    ) -> StreamChunk:
        return StreamChunk(
            said.text,
            token,
            logprob,
            reason,
            prompt_tokens=len(self.request.prompt),
            generated_tokens=len(self.tokens if result is None else result.tokens),
            prompt_tps=self._prompt_tps(),
            generation_tps=self._generation_tps(),
            time_to_first_token=self._first_s - self.started_s if self.tokens else 0.0,
            result=result,
            reasoning=said.reasoning,
            tool_calls=said.calls,
        )

    def _prompt_tps(self) -> float:
        computed = len(self.request.prompt) - self.cached_tokens
        return computed / self.prompt_s if self.prompt_s > 0 else 0.0

    def _generation_tps(self) -> float:
        spent_s = self._latest_s - self._first_s
        return (len(self.tokens) - 1) / spent_s if spent_s > 0 else 0.0
