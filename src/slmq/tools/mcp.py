"""Tools of a server that speaks the Model Context Protocol: a process, over its stdin and stdout.

The protocol's package is asynchronous, chats are not: its event loop runs in a thread of its own,
and one task there holds the connection from its beginning to its end.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from slmq.errors import ClosedError, ToolServerError, printable
from slmq.tools.tool import Tool

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["McpServer"]

T = TypeVar("T")
MOST_PAGES = 100  # of a list of tools


class McpServer:
    """A server of tools, started as a process; needs ``pip install slmq[mcp]``.

    >>> with slmq.McpServer("python", ["server.py"]) as server:  # doctest: +SKIP
    ...     chat = m.chat(tools=[*server.tools, add])

    Parameters
    ----------
    command : str
        The program.
    args : sequence of str
        Its arguments.
    env : mapping, optional
        Its environment; by default a few variables of ours, such as PATH.
    cwd : str or path, optional
        The folder that it runs in.
    timeout_s : float
        Most seconds for its start and for a call.

    Attributes
    ----------
    tools : list of Tool

    Raises
    ------
    ImportError
        If the package ``mcp`` is missing.
    ToolServerError
        If the server cannot be started, does not answer, or has tools that nobody could call.
    """

    def __init__(
        self,
        command: str,
        args: Sequence[str] = (),
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        try:
            import mcp
        except ImportError:
            raise ImportError("McpServer needs the package mcp: pip install 'slmq[mcp]'") from None
        if isinstance(args, str):
            raise TypeError(f"args: expected a list of str, got str {args!r:.60}")
        self._name = command
        self._timeout_s = timeout_s
        self._parameters = mcp.StdioServerParameters(
            command=command,
            args=list(args),
            env=None if env is None else dict(env),
            cwd=None if cwd is None else os.fspath(cwd),
        )
        self._session: Any = None
        self._stop: asyncio.Event | None = None
        self._closed = False
        self._started: concurrent.futures.Future[list[Tool]] = concurrent.futures.Future()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="slmq-mcp", daemon=True)
        self._thread.start()
        try:
            self.tools = self._started.result(timeout_s)
        except (Exception, KeyboardInterrupt) as error:
            self.close()
            if isinstance(error, KeyboardInterrupt):
                raise
            raise self._failed("cannot be started", error) from error

    def close(self) -> None:
        """End the server; later calls of its tools raise ClosedError."""
        self._closed = True
        with suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._let_go)
        self._thread.join(self._timeout_s)

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
        return f"<slmq.McpServer {self._name!r}{', closed' if self._closed else ''}>"

    def _run(self) -> None:
        """The thread: the loop lives as long as the connection."""
        try:
            self._loop.run_until_complete(self._connect())
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(_root(error))
        finally:
            self._closed = True
            self._loop.close()

    async def _connect(self) -> None:
        import mcp

        self._stop = asyncio.Event()
        self._task = asyncio.current_task()
        async with (
            mcp.stdio_client(self._parameters) as (read, write),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            self._session = session
            tools = await self._listed()
            self._started.set_result(tools)
            await self._stop.wait()

    async def _listed(self) -> list[Tool]:
        import mcp

        found: list[Tool] = []
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            params = mcp.types.PaginatedRequestParams(cursor=cursor) if cursor else None
            page = await self._session.list_tools(params=params)
            for tool in page.tools:
                schema = {"type": "object", **tool.input_schema}
                call = partial(self._call, tool.name)
                found.append(Tool(tool.name, tool.description or "", schema, call))
            cursor = page.next_cursor
            if not cursor:
                return found
        raise ToolServerError(f"expected a list of tools of at most {MOST_PAGES} pages, got more")

    def _let_go(self) -> None:
        if self._stop is not None and self._started.done():
            self._stop.set()
        elif self._stop is not None and self._task is not None:
            self._task.cancel()

    def _call(self, name: str, /, **arguments: Any) -> str:
        """Run a tool; what chats call."""
        result = self._wait(self._session.call_tool(name, arguments))
        text = "\n".join(map(_shown, result.content))
        if result.is_error:
            raise ToolServerError(text or f"the tool {name!r} failed without a message")
        return text

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._closed:
            coroutine.close()
            raise ClosedError(f"the server {self._name!r} is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(self._timeout_s)
        except ToolServerError:
            raise
        except Exception as error:
            future.cancel()
            raise self._failed("did not answer", error) from error

    def _failed(self, what: str, error: Exception) -> ToolServerError:
        reason = (
            f" within {self._timeout_s:g} s" if isinstance(error, TimeoutError | _TIMEOUT) else ""
        )
        said = "" if reason else f": {type(error).__name__}: {printable(str(error), 400)}"
        return ToolServerError(f"the server {self._name!r} {what}{reason}{said}")


_TIMEOUT = concurrent.futures.TimeoutError  # before Python 3.11 a class of its own


def _root(error: BaseException) -> BaseException:
    """The first error of a group of them."""
    while hasattr(error, "exceptions") and error.exceptions:
        error = error.exceptions[0]
    return error


def _shown(part: Any) -> str:
    """A part of a result as text."""
    text = getattr(part, "text", None)
    return text if isinstance(text, str) else f"[{part.type}]"
