"""A conversation of several turns over one model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from slmq.errors import BusyError, ClosedError
from slmq.generation.results import GenerationResult
from slmq.generation.sampling import SamplingArgs, SamplingParams
from slmq.settings import takes

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from slmq.generation.answer import Progress
    from slmq.generation.stream import OnFinish, TokenStream

__all__ = ["ChatSession"]


class Submit(Protocol):
    """What a session needs of a model: `Model.submit`."""

    def __call__(
        self,
        prompt: Sequence[Mapping[str, Any]],
        params: Mapping[str, Any],
        *,
        progress: Progress | None = None,
        on_finish: OnFinish | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> TokenStream:
        """Queue the messages of a conversation."""


class ChatSession:
    """A conversation; made by `Model.chat`.

    Every turn is the chat template over the whole history, exactly as a fresh prompt would be;
    what its tokens share with the turn before was kept, so only the new part is computed.

    A turn that is cancelled keeps what it has said so far; one that has said nothing, or that
    failed, leaves no trace in the history.
    """

    def __init__(
        self,
        submit: Submit,
        *,
        system: str | None,
        params: Mapping[str, Any],
        template: Mapping[str, Any] | None = None,
    ) -> None:
        if system is not None and not isinstance(system, str):
            raise TypeError(f"system: expected a str or None, got {type(system).__name__}")
        SamplingParams.from_kwargs(params)
        self._submit = submit
        self._system = system
        self._params = dict(params)
        self._template = None if template is None else dict(template)
        self._guard = threading.Lock()
        self._open: weakref.ref[TokenStream] | None = None
        self._closed = False
        self._messages: list[dict[str, Any]] = []
        self.reset()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """A copy of the history: system message, then user and assistant in turns."""
        return [dict(message) for message in self._messages]

    @takes(SamplingParams)
    def send(
        self,
        text: str,
        *,
        progress: Callable[[int, int], None] | None = None,
        **params: Unpack[SamplingArgs],
    ) -> GenerationResult:
        """Say something and wait for the answer; parameters and errors as in `Model.generate`."""
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
        progress: Callable[[int, int], None] | None = None,
        **params: Unpack[SamplingArgs],
    ) -> TokenStream:
        """Say something and read the answer token by token.

        The turn enters the history when the stream ends or is closed. Raises BusyError while
        the stream of the turn before is still open.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected a str, got {type(text).__name__}")
        if not text:
            raise ValueError("text: expected a message, got ''")
        with self._guard:
            self._require_idle()
            user = {"role": "user", "content": text}
            history = [*self._messages, user]

            def remember(result: GenerationResult) -> None:
                if result.text or result.finish_reason != "cancelled":
                    said = {"role": "assistant", "content": result.text}
                    self._messages = [*history, said]

            stream = self._submit(
                history,
                {**self._params, **params},
                progress=progress,
                on_finish=remember,
                chat_template_kwargs=self._template,
            )
            self._open = weakref.ref(stream)
        return stream

    def undo(self) -> bool:
        """Forget the last turn; False if there is none."""
        with self._guard:
            self._require_idle()
            if not self._messages or self._messages[-1]["role"] != "assistant":
                return False
            self._messages = self._messages[:-2]
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
