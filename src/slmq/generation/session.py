"""A conversation of several turns over one model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from slmq.errors import BusyError, ClosedError, ContextOverflowError
from slmq.generation.results import GenerationResult
from slmq.generation.sampling import SamplingArgs, SamplingParams
from slmq.generation.turn import OnCall, ToolTurn, as_message, check_tools
from slmq.settings import takes

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from slmq.generation.answer import Progress
    from slmq.generation.stream import OnFinish, TokenStream
    from slmq.tools.wish import Wish

__all__ = ["MAX_ROUNDS", "ChatSession"]

MAX_ROUNDS = 8  # of calls in a turn

ROOM = 256  # tokens for the answer of a session that forgets: with fewer it would end half-way


class Submit(Protocol):
    """What a session needs of a model: `Model.submit`."""

    def __call__(
        self,
        prompt: Sequence[Mapping[str, Any]],
        params: Mapping[str, Any],
        *,
        progress: bool | Progress | None = None,
        on_finish: OnFinish | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        room: int = 1,
    ) -> TokenStream:
        """Queue the messages of a conversation."""


class ChatSession:
    """A conversation; made by `Model.chat`.

    Every turn is the chat template over the whole history, exactly as a fresh prompt would be;
    what its tokens share with the turn before was kept, so only the new part is computed.

    A turn that is cancelled keeps what it has said so far; one that has said nothing, or that
    failed, leaves no trace in the history.

    With tools, a turn goes on until the model answers: its calls are run, and their results told.

    Attributes
    ----------
    forgotten : int
        Turns that had to make room, so far, in a session that forgets.
    """

    def __init__(
        self,
        submit: Submit,
        *,
        system: str | None,
        params: Mapping[str, Any],
        messages: Sequence[Mapping[str, Any]] | None = None,
        forget: bool = False,
        template: Mapping[str, Any] | None = None,
        max_rounds: int = MAX_ROUNDS,
        on_call: OnCall | None = None,
    ) -> None:
        if system is not None and not isinstance(system, str):
            raise TypeError(f"system: expected a str or None, got {type(system).__name__}")
        if system is not None and messages is not None:
            raise ValueError("expected system or messages, whose first may be of the system")
        check_tools(SamplingParams.from_kwargs(params).wish.tools, max_rounds)
        self._max_rounds = max_rounds
        self._on_call = on_call
        self._submit = submit
        self._system = system
        self._params = dict(params)
        self._template = None if template is None else dict(template)
        self._guard = threading.Lock()
        self._open: weakref.ref[TokenStream | ToolTurn] | None = None
        self._closed = False
        self.forgotten = 0
        self._forget = forget
        self._messages: list[dict[str, Any]] = []
        self.reset()
        if messages is not None:
            self._messages = _checked(messages)
            self._system = _system_of(self._messages)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """A copy of the history: system message, then user and assistant in turns.

        Calls stand in messages of the assistant, their results in messages of the role "tool".
        """
        return [dict(message) for message in self._messages]

    @takes(SamplingParams)
    def send(
        self,
        text: str,
        *,
        progress: bool | Progress = False,
        **params: Unpack[SamplingArgs],
    ) -> GenerationResult:
        """Say something and wait for the answer; parameters and errors as in `Model.generate`.

        With tools, the result is that of the last answer; `messages` has the calls before it.
        """
        with self.stream(text, progress=progress, **params) as stream:
            for _ in stream:
                pass
        assert stream.result is not None  # a stream that was read to its end has one
        return stream.result

    @takes(SamplingParams)
    def stream(
        self,
        text: str,
        *,
        progress: bool | Progress = False,
        **params: Unpack[SamplingArgs],
    ) -> TokenStream | ToolTurn:
        """Say something and read the answer token by token; with tools, all answers of the turn.

        The turn enters the history when the stream ends or is closed. Raises BusyError while
        the stream of the turn before is still open.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected a str, got {type(text).__name__}")
        if not text:
            raise ValueError("text: expected a message, got ''")
        given = {**self._params, **params}
        wish = SamplingParams.from_kwargs(given).wish
        check_tools(wish.tools, self._max_rounds)
        with self._guard:
            self._require_idle()
            history = [*self._messages, {"role": "user", "content": text}]
            while True:
                try:
                    stream = self._begin(history, given, wish, progress)
                    break
                except ContextOverflowError:
                    shorter = _without_oldest_turn(history)
                    if not self._forget or shorter is None:
                        raise
                    history = shorter
            self._open = weakref.ref(stream)
        return stream

    def _begin(
        self,
        history: list[dict[str, Any]],
        given: Mapping[str, Any],
        wish: Wish,
        progress: bool | Progress,
    ) -> TokenStream | ToolTurn:
        forgotten = self.forgotten + len(_questions(self._messages)) + 1 - len(_questions(history))

        def remember(said: Sequence[dict[str, Any]]) -> None:
            self._messages = [*history, *said]
            self.forgotten = forgotten

        def remember_answer(result: GenerationResult) -> None:
            if result.text or result.finish_reason != "cancelled":
                remember([as_message(result)])

        def begin(said: Sequence[dict[str, Any]], choice: str) -> TokenStream:
            return self._submit(
                [*history, *said],
                {**given, "tool_choice": choice},
                progress=progress,
                on_finish=None if wish.tools else remember_answer,
                chat_template_kwargs=self._template,
                room=ROOM if self._forget else 1,
            )

        if not wish.tools:
            return begin([], wish.choice)
        return ToolTurn(
            begin,
            wish.tools,
            choice=wish.choice,
            max_rounds=self._max_rounds,
            on_call=self._on_call,
            remember=remember,
        )

    def undo(self) -> bool:
        """Forget the last turn; False if there is none."""
        with self._guard:
            self._require_idle()
            asked = [i for i, message in enumerate(self._messages) if message["role"] == "user"]
            if not asked:
                return False
            self._messages = self._messages[: asked[-1]]
            return True

    def reset(self) -> None:
        """Forget every turn; the system message stays."""
        with self._guard:
            self._require_idle()
            self._messages = []
            if self._system is not None:
                self._messages.append({"role": "system", "content": self._system})

    def close(self) -> None:
        """Cancel the answer that is being made; later turns raise ClosedError."""
        stream = None if self._open is None else self._open()
        if stream is not None:
            stream.close()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<slmq.ChatSession, {len(self._messages)} messages>"

    def _require_idle(self) -> None:
        if self._closed:
            raise ClosedError("the chat session is closed")
        stream = None if self._open is None else self._open()
        if stream is not None and not stream.finished:
            raise BusyError(
                "the previous answer is not finished; read its stream to the end or close() it"
            )


def _checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise TypeError(f"messages: expected a list of dicts, got {type(messages).__name__}")
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise ValueError(f"messages: expected dicts with a role, got {message!r:.80}")
    if messages and messages[-1]["role"] == "user":
        raise ValueError("messages: expected an answer last; send() the last question")
    return [dict(message) for message in messages]


def _system_of(messages: Sequence[Mapping[str, Any]]) -> str | None:
    first = messages[0] if messages else {}
    content = first.get("content")
    return content if first.get("role") == "system" and isinstance(content, str) else None


def _questions(history: Sequence[Mapping[str, Any]]) -> list[int]:
    """Where a user speaks."""
    return [i for i, message in enumerate(history) if message["role"] == "user"]


def _without_oldest_turn(history: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """A history without its first question and what follows it; None if that is the last one."""
    asked = _questions(history)
    if len(asked) < 2:
        return None
    first = next(i for i, message in enumerate(history) if message["role"] != "system")
    return history[:first] + history[asked[1] :]
