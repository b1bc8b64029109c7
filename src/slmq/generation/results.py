"""What generation gives back: token log-probabilities, stream chunks and the final result."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "FinishReason",
    "GenerationResult",
    "StreamChunk",
    "TokenLogprob",
]

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log-probability of a token under the model, before any sampling filter.

    Attributes
    ----------
    token : int
        The chosen token.
    logprob : float
        Its log-probability.
    top : tuple of (int, float)
        The most likely tokens with their log-probabilities, most likely first; as many as the
        parameter ``logprobs`` asked for.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class GenerationResult:
    """A whole answer.

    Attributes
    ----------
    text : str
        The answer, without end token and without stop string.
    tokens : list of int
        Every token that was drawn, an end token included.
    logprobs : list of TokenLogprob or None
        One per token, if they were asked for.
    finish_reason : {"stop", "length", "cancelled"}
        End token or stop string; ``max_tokens`` or full context; stream closed early.
    stopped_by : str or int or None
        The stop string, or the id of the end token or stop token, that ended the answer.
    prompt_tokens : int
        Length of the prompt.
    cached_tokens : int
        How many of them were taken from the cache of an earlier prompt.
    drafted_tokens, accepted_tokens : int
        Tokens that were guessed ahead (speculation), and how many of them were right.
    prompt_tps : float
        Prompt tokens computed (not cached) per second.
    generation_tps : float
        Tokens per second after the first one; 0 if there was no second one.
    time_to_first_token : float
        Seconds from the start (encoding the prompt and queueing included) to the first token;
        0 if none was drawn.
    queue_s : float
        Seconds between submission and the first run for this answer.
    peak_memory_bytes : int or None
        Most memory the process has held so far; None where the system does not tell.
    seed : int or None
        The seed that was used; None if no random number was needed (greedy).
    """

    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason
    stopped_by: str | int | None = field(kw_only=True, default=None)
    prompt_tokens: int = field(kw_only=True)
    cached_tokens: int = field(kw_only=True, default=0)
    drafted_tokens: int = field(kw_only=True, default=0)
    accepted_tokens: int = field(kw_only=True, default=0)
    prompt_tps: float = field(kw_only=True)
    generation_tps: float = field(kw_only=True)
    time_to_first_token: float = field(kw_only=True)
    queue_s: float = field(kw_only=True, default=0.0)
    peak_memory_bytes: int | None = field(kw_only=True)
    seed: int | None = field(kw_only=True, default=None)

    @property
    def generated_tokens(self) -> int:
        """Number of tokens that were drawn."""
        return len(self.tokens)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class StreamChunk:
    """One step of a stream: one token and the text that it completes.

    Attributes
    ----------
    text : str
        New text; empty while a character is incomplete or a stop string may be beginning.
        The texts of all chunks joined are the text of the result.
    token : int or None
        The token; None only in the last chunk of a stream that drew none in this step.
    logprobs : TokenLogprob or None
        Of this token, if asked for.
    finish_reason : {"stop", "length", "cancelled"} or None
        None until the last chunk.
    prompt_tokens, prompt_tps, generation_tps, time_to_first_token
        As in `GenerationResult`, as of now.
    generated_tokens : int
        Tokens drawn so far.
    result : GenerationResult or None
        The whole answer, in the last chunk only.
    """

    text: str
    token: int | None
    logprobs: TokenLogprob | None
    finish_reason: FinishReason | None
    prompt_tokens: int = field(kw_only=True)
    generated_tokens: int = field(kw_only=True)
    prompt_tps: float = field(kw_only=True)
    generation_tps: float = field(kw_only=True)
    time_to_first_token: float = field(kw_only=True)
    result: GenerationResult | None = field(kw_only=True, default=None)

    @property
    def tokens(self) -> list[int]:
        """Every token of the answer, in the last chunk; empty before."""
        return [] if self.result is None else self.result.tokens

    @property
    def peak_memory_bytes(self) -> int | None:
        """Most memory the process has held, in the last chunk; None before."""
        return None if self.result is None else self.result.peak_memory_bytes
