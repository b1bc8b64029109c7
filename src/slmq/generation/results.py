"""What generation gives back: token log-probabilities, stream chunks and the final result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from slmq.errors import IncompleteError
from slmq.generation.ledger import Ledger
from slmq.tools.calls import ToolCall

__all__ = [
    "FinishReason",
    "GenerationResult",
    "StreamChunk",
    "TokenLogprob",
]

FinishReason = Literal["stop", "tool_calls", "length", "cancelled"]


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
    finish_reason : {"stop", "tool_calls", "length", "cancelled"}
        End token or stop string; the same with calls; ``max_tokens`` or full context; stream
        closed early.
    stopped_by : str or int or None
        The stop string, or the id of the end token or stop token, that ended the answer; None
        where a constraint left nothing that could follow.
    prompt_tokens : int
        Length of the prompt.
    cached_tokens : int
        How many of them were taken from the cache of an earlier prompt.
    drafted_tokens, accepted_tokens : int
        Tokens that were guessed ahead (speculation), and how many of them were right.
    forced_tokens : int
        Tokens of which a constraint left no choice.
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
    unenforced : tuple of str
        Keywords of a lenient schema that the answer may not fulfil.
    complete : bool or None
        Whether the answer is all that a constraint asks for; None without one. Where it ended
        early, at ``max_tokens`` or a stop string, there is no value.
    read : callable or None
        From the text to the value: see `parsed`.
    reasoning : str
        What the model said to itself before it answered; only of chats, and never in `text`.
    reasoning_tokens : int
        How many tokens that took.
    tool_calls : list of ToolCall
        The calls that a chat with tools asks for, in order. One that the answer breaks off in is
        text.
    ledger : Ledger
        What it has cost: seconds of the engine and of the processor.
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
    forced_tokens: int = field(kw_only=True, default=0)
    prompt_tps: float = field(kw_only=True)
    generation_tps: float = field(kw_only=True)
    time_to_first_token: float = field(kw_only=True)
    queue_s: float = field(kw_only=True, default=0.0)
    peak_memory_bytes: int | None = field(kw_only=True)
    seed: int | None = field(kw_only=True, default=None)
    unenforced: tuple[str, ...] = field(kw_only=True, default=())
    complete: bool | None = field(kw_only=True, default=None)
    read: Callable[[str], Any] | None = field(kw_only=True, default=None, repr=False, compare=False)
    reasoning: str = field(kw_only=True, default="")
    reasoning_tokens: int = field(kw_only=True, default=0)
    tool_calls: list[ToolCall] = field(kw_only=True, default_factory=list)
    ledger: Ledger = field(kw_only=True, default_factory=Ledger, compare=False)

    @property
    def generated_tokens(self) -> int:
        """Number of tokens that were drawn."""
        return len(self.tokens)

    @cached_property
    def parsed(self) -> Any:
        """The value of an answer that was asked for with a constraint.

        Of ``schema=`` an instance of the type that was given, of a JSON schema and ``json=True``
        what JSON says; of others the text.

        Raises
        ------
        IncompleteError
            If the answer ended early: at ``max_tokens``, at a stop string, or cancelled.
        ValueError
            If there was no constraint; or what the type itself raises.
        """
        if self.read is None:
            raise ValueError(
                "parsed: expected an answer with schema=, regex=, grammar=, choices= or json=True"
            )
        if not self.complete:
            cure = "; raise max_tokens" if self.finish_reason == "length" else ""
            by = "" if self.stopped_by is None else f", stopped by {self.stopped_by!r}"
            raise IncompleteError(
                f"the answer has no value: it ended after {len(self.tokens)} tokens (finish reason "
                f"{self.finish_reason!r}{by}){cure}"
            )
        return self.read(self.text)

    def as_json(self) -> dict[str, Any]:
        """Every field, as JSON has them."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        del plain["read"]
        if self.logprobs is not None:
            plain["logprobs"] = [asdict(entry) for entry in self.logprobs]
        plain["ledger"] = asdict(self.ledger)
        plain["tool_calls"] = [asdict(call) for call in self.tool_calls]
        return plain

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
    finish_reason : {"stop", "tool_calls", "length", "cancelled"} or None
        None until the last chunk.
    prompt_tokens, prompt_tps, generation_tps, time_to_first_token
        As in `GenerationResult`, as of now.
    generated_tokens : int
        Tokens drawn so far.
    result : GenerationResult or None
        The whole answer, in the last chunk only.
    reasoning : str
        New text that the model says to itself.
    tool_calls : list of ToolCall
        Calls that are complete with this token.
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
    reasoning: str = field(kw_only=True, default="")
    tool_calls: list[ToolCall] = field(kw_only=True, default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """Every token of the answer, in the last chunk; empty before."""
        return [] if self.result is None else self.result.tokens

    @property
    def peak_memory_bytes(self) -> int | None:
        """Most memory the process has held, in the last chunk; None before."""
        return None if self.result is None else self.result.peak_memory_bytes
