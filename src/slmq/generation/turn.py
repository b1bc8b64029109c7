"""A turn of a chat with tools: answers and calls, until the model has said something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from slmq.generation.results import GenerationResult, StreamChunk
from slmq.tools.calls import ToolCall
from slmq.tools.tool import Tool

if TYPE_CHECKING:
    from typing_extensions import Self

    from slmq.generation.stream import TokenStream

__all__ = ["OnCall", "ToolTurn", "as_message", "check_tools"]

Message = dict[str, Any]
OnCall = Callable[[ToolCall], "str | None"]
Begin = Callable[[Sequence[Message], str], "TokenStream"]


class ToolTurn:
    """Iterator over the chunks of a turn; made by `ChatSession.stream` where there are tools.

    An answer that is calls is followed by the next one, so a chunk with ``finish_reason`` may be
    followed by others. Calls run in the thread that reads, between two answers. What a tool raises
    is told to the model; what `on_call` raises, or Ctrl-C, ends the turn without a trace.
    """

    def __init__(
        self,
        begin: Begin,
        tools: Sequence[Tool],
        *,
        choice: str,
        max_rounds: int,
        on_call: OnCall | None,
        remember: Callable[[list[Message]], None],
    ) -> None:
        self._begin = begin
        self._tools = {tool.name: tool for tool in tools}
        self._left = max_rounds
        self._on_call = on_call
        self._remember = remember
        self._said: list[Message] = []
        self._result: GenerationResult | None = None
        self._ended = False
        self._stream = begin([], choice if max_rounds else "none")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamChunk:
        while not self._ended:
            try:
                return next(self._stream)
            except StopIteration:
                pass
            except BaseException:
                self._ended = True
                raise
            result = self._stream.result
            if result is None or result.finish_reason != "tool_calls":
                self._conclude(result)
            else:
                self._go_on(result)
        raise StopIteration

    @property
    def result(self) -> GenerationResult | None:
        """The last answer, once it was read to its end or closed; None before."""
        return self._result

    @property
    def finished(self) -> bool:
        """Whether the turn is complete, cancelled or failed."""
        return self._ended

    def finish(self) -> GenerationResult:
        """Read to the end and return the last answer; a failure cancels the turn."""
        with self:
            for _ in self:
                pass
        return self._stream.complete()

    def close(self) -> None:
        """Cancel the turn; harmless at any other time."""
        self._stream.close()
        if not self._ended:
            self._conclude(self._stream.result)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _go_on(self, result: GenerationResult) -> None:
        """Run the calls, and begin the answer to their results."""
        try:
            self._said.append(as_message(result))
            for call in result.tool_calls:
                self._said.append(
                    {
                        "role": "tool",
                        "tool_call_id": call.id,
                        "name": call.name,
                        "content": self._outcome(call),
                    }
                )
            self._left -= 1
            # What had to be called was called; in the end the model has to answer.
            self._stream = self._begin(self._said, "auto" if self._left else "none")
        except BaseException:
            self._ended = True
            raise

    def _outcome(self, call: ToolCall) -> str:
        """What the model is told of a call."""
        told = None if self._on_call is None else self._on_call(call)
        if told is not None:
            return told
        try:
            return self._tools[call.name].call(call.arguments)
        except Exception as error:
            return f"Error: {type(error).__name__}: {error}"

    def _conclude(self, result: GenerationResult | None) -> None:
        self._ended = True
        self._result = result
        if result is not None and (result.text or result.finish_reason != "cancelled"):
            self._remember([*self._said, as_message(result)])


def as_message(result: GenerationResult) -> Message:
    """An answer as a message of the history."""
    message: Message = {"role": "assistant", "content": result.text}
    if result.reasoning:
        message["reasoning_content"] = result.reasoning
    if result.tool_calls:
        message["tool_calls"] = [call.message for call in result.tool_calls]
    return message


def check_tools(tools: Sequence[Tool], max_rounds: object) -> None:
    """Raise TypeError or ValueError unless a chat can run these tools for so many rounds."""
    if isinstance(max_rounds, bool) or not isinstance(max_rounds, int):
        raise TypeError(f"max_rounds: expected an int >= 0, got {type(max_rounds).__name__}")
    if max_rounds < 0:
        raise ValueError(f"max_rounds: expected an int >= 0, got {max_rounds}")
    for tool in tools:
        if tool.function is None:
            raise TypeError(
                f"tools: a chat runs its calls, but {tool.name!r} has a schema only; pass a "
                f"function, or a Tool with one"
            )
