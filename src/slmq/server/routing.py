"""`model="auto"`: a router chooses who answers, and the next one is asked if that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from slmq.batch.requests import RequestError
from slmq.embedding.routing.config import MODES
from slmq.embedding.routing.ledger import Ledger, entry_of
from slmq.embedding.routing.router import last_question
from slmq.errors import (
    BusyError,
    CacheFullError,
    CheckpointError,
    ClosedError,
    ContextOverflowError,
    DeadlineError,
    DownloadError,
    UnsupportedModelError,
    WriteError,
)
from slmq.server.exchange import only
from slmq.server.faults import RefusedError
from slmq.server.guard import body_of
from slmq.server.remote import RemoteAnswer, RemoteError, open_answer
from slmq.server.replies import Reply, Stream, until_gone

if TYPE_CHECKING:
    from starlette.requests import Request

    from slmq.embedding.routing.decision import Decision
    from slmq.embedding.routing.router import Router
    from slmq.server.service import Service

__all__ = ["AUTO", "Counts", "Routing"]

log = logging.getLogger("slmq.server")

AUTO = "auto"
REMOTE_THREADS = 64  # each reads one answer of another server
# What is no fault of the request, so that another model may succeed.
FAILURES = (
    BusyError, CacheFullError, CheckpointError, ClosedError, ContextOverflowError, DeadlineError,
    DownloadError, MemoryError, RemoteError, UnsupportedModelError,
)  # fmt: skip
ROUTED = ("model", "messages", "input", "tools", "max_tokens", "max_completion_tokens")
Counts = Callable[[int, int], None]  # is told the tokens of prompt and answer
Local = Callable[["Request", Mapping[str, Any], Counts], Awaitable[Any]]


class Routing:
    """The router of a server.

    Parameters
    ----------
    service : Service
    router : Router
    """

    def __init__(self, service: Service, router: Router) -> None:
        self.router = router
        self._service = service
        self._ledger = Ledger(router.config.log)
        self._threads = ThreadPoolExecutor(REMOTE_THREADS, "slmq-remote")
        self._turn = asyncio.Lock()  # the encoder takes one text at a time

    def takes(self, name: Any) -> bool:
        """Whether a request names the router."""
        return isinstance(name, str) and (name == AUTO or name.startswith(AUTO + ":"))

    def close(self) -> None:
        """Let go of encoder and threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.router.close()

    async def dry_run(self, request: Request) -> Reply:
        """POST /v1/route: what would be chosen, and why."""
        given = only(body_of(request.scope), ROUTED)
        messages = given.get("messages", given.get("input"))
        if not isinstance(messages, (str, list)):
            raise RequestError(f"messages: expected a list, got {messages!r:.80}", "messages")
        decision = await until_gone(request.receive, self._decide({**given, "messages": messages}))
        return Reply(decision.as_json())

    async def answer(self, request: Request, body: Mapping[str, Any], local: Local) -> Any:
        """Answer a chat request for "auto"; `local` answers for a model of this server.

        Raises
        ------
        RefusedError
            If no model answers.
        """
        self._service.require_open()
        decision = await until_gone(request.receive, self._decide(body))
        order = decision.order
        if decision.shadow:
            order = [decision.reference, *(n for n in order if n != decision.reference)]
        failures: dict[str, str] = {}
        for name in order:
            counts = partial(self._note, request, body, decision, name, failures)
            try:
                found = await self._ask(request, body, name, local, counts)
            except FAILURES as error:
                if isinstance(error, RemoteError) and error.fault:
                    raise RefusedError(400, f"{name}: {error}") from None
                failures[name] = f"{error}"[:300]
                log.warning("%s does not answer: %s", name, failures[name])
                continue
            return _with_headers(found, decision, name)
        self._note(request, body, decision, None, failures, 0, 0)
        told = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise RefusedError(503, f"no model answers: {told}", headers={"retry-after": "5"})

    async def _decide(self, body: Mapping[str, Any]) -> Decision:
        _, _, mode = str(body.get("model") or AUTO).partition(":")
        if mode and mode not in MODES:
            raise RequestError(
                f"model: expected {AUTO} or {AUTO}:MODE of {', '.join(MODES)}", "model"
            )
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        work = partial(
            self.router.route,
            body.get("messages") or "",
            tools=bool(body.get("tools")),
            max_tokens=limit if isinstance(limit, int) and limit > 0 else None,
            mode=mode or None,
        )
        async with self._turn:
            found: Decision = await self._service.run(work)
            return found

    async def _ask(
        self,
        request: Request,
        body: Mapping[str, Any],
        name: str,
        local: Local,
        counts: Counts,
    ) -> Any:
        model = self.router.config.model(name)
        if model.url is None:
            return await local(request, {**body, "model": name}, counts)
        loop = asyncio.get_running_loop()
        wait_s = self.router.config.policy.timeout_s
        begun = loop.run_in_executor(self._threads, partial(open_answer, model, body, wait_s))
        answer = await until_gone(request.receive, begun)
        if body.get("stream"):
            return Stream(self._lines(answer, counts), answer.close)
        found = await until_gone(request.receive, loop.run_in_executor(self._threads, answer.whole))
        counts(answer.tokens_in, answer.tokens_out)
        return Reply(found)

    async def _lines(self, answer: RemoteAnswer, counts: Counts) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        try:
            while (line := await loop.run_in_executor(self._threads, answer.next_line)) is not None:
                yield line
        finally:
            counts(answer.tokens_in, answer.tokens_out)

    def _note(
        self,
        request: Request,
        body: Mapping[str, Any],
        decision: Decision,
        answered: str | None,
        failures: Mapping[str, str],
        tokens_in: int,
        tokens_out: int,
    ) -> None:
        """Write a request down once it is over."""
        config = self.router.config
        entry = entry_of(
            config,
            decision,
            id=request.scope["slmq.id"],
            answered=answered,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            reference_right=self.router.right(decision, decision.reference),
            text=last_question(body.get("messages") or "") if config.log_text else None,
            failures=failures,
        )
        try:
            self._ledger.write(entry)
        except WriteError as error:
            log.warning("%s", error)


def _with_headers(found: Any, decision: Decision, name: str) -> Any:
    """A response that says who answers, and why."""
    reason = decision.reason if name == decision.model else f"{decision.model} does not answer"
    if decision.shadow:
        reason = f"shadow: {decision.model} would be chosen"
    found.add_headers(
        {
            "x-slmq-route": name,
            "x-slmq-route-reason": reason.encode("ascii", "replace").decode(),
        }
    )
    return found
