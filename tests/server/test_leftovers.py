"""Requests are forgotten with their last reader: nothing of them waits for a collection.

What holds itself, in a circle, stays until the collector comes to it, and an answer holds as much
as the vocabulary has entries.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer, in_line, live_server, wait_until
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.generation.answer import Answer
from slmq.generation.job import Job
from slmq.generation.model import Model
from slmq.generation.scheduler import Scheduler
from slmq.generation.stream import TokenStream
from slmq.server.service import Submitted
from slmq.server.talk import Talk

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
ASKED: dict[str, Any] = {"messages": HI, "max_tokens": 5, "temperature": 0}
ENDLESS: dict[str, Any] = {"messages": HI, "max_tokens": 1500, "ignore_eos": True}
KINDS = {Job, Answer, TokenStream, Submitted, Talk, RequestResponseCycle}


@pytest.fixture(scope="module")
def crowded(tiny_model_path: Path) -> Iterator[LiveServer]:
    """A server with room for two answers, and for three that wait."""
    engine = open_engine(tiny_model_path, LoadOptions(n_ctx=2048, n_threads=1), name="tiny")
    with (
        Model(engine, Scheduler(engine, most_running=2, most_waiting=3)) as loaded,
        live_server({"tiny": loaded}) as running,
    ):
        yield running


def living() -> Counter[str]:
    return Counter(type(x).__name__ for x in gc.get_objects() if type(x) in KINDS)


@contextmanager
def nothing_stays(server: LiveServer) -> Iterator[None]:
    assert server.ask(CHAT, ASKED).status == 200  # what is made once is made now
    wait_until(lambda: server.idle)
    gc.collect()
    gc.disable()
    try:
        yield
        wait_until(lambda: server.idle)
        wait_until(lambda: not living(), 10)
    finally:
        gc.enable()


def whole(server: LiveServer) -> None:
    assert server.ask(CHAT, {**ASKED, "n": 3, "temperature": 1.0}).status == 200


def streamed(server: LiveServer) -> None:
    assert server.ask(CHAT, {**ASKED, "stream": True, "logprobs": True}).status == 200


def shared(server: LiveServer) -> None:
    joined = server.service.twins.joined
    asked = {**ENDLESS, "temperature": 0, "max_tokens": 200, "stream": True}
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(server.ask, CHAT, asked) for _ in range(4)]
        assert {one.result().status for one in found} == {200}
    assert server.service.twins.joined > joined


def shaped(server: LiveServer) -> None:
    asked = {**ASKED, "max_tokens": 40, "response_format": {"type": "json_object"}}
    assert server.ask(CHAT, asked).status == 200
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    asked = {**ASKED, "max_tokens": 40, "tools": [tool], "tool_choice": "required"}
    assert server.ask(CHAT, {**asked, "stream": True}).status == 200


def other_apis(server: LiveServer) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": "Once"}),
        ("/v1/responses", {"input": "Once", "max_output_tokens": 5, "stream": True}),
        ("/v1/messages", {"messages": HI, "max_tokens": 5, "stream": True}),
        ("/api/chat", {"messages": HI, "options": {"num_predict": 5}}),
        ("/v1/decisions", {"input": "Once", "labels": ["yes", "no"]}),
    ):
        server.ask(path, {"model": "tiny", **body})


def refused(server: LiveServer) -> None:
    for wrong in (
        {"temperature": -1},
        {"messages": "x"},
        {"model": "none"},
        {"max_tokens": 10**9},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}},
    ):
        assert 400 <= server.ask(CHAT, {**ASKED, **wrong}).status < 500


def crowd(server: LiveServer) -> None:
    """Some find no place, and some would have to wait longer than they want."""
    clients = []
    for i in range(5):
        clients.append(server.send(CHAT, {**ENDLESS, "stream": True, "seed": i}))
        wait_until(
            lambda: in_line(server.model) == (min(len(clients), 2), max(0, len(clients) - 2))
        )
    for i in range(6):
        body = {**ASKED, "n": 2, "temperature": i % 2, "stream": i % 3 == 0}
        assert server.ask(CHAT, body).status == 429
    clients.pop().close()
    wait_until(lambda: in_line(server.model) == (2, 2))
    late = {"x-slmq-deadline-ms": "1"}
    assert server.ask(CHAT, ASKED, headers=late).status == 504
    for client in clients:
        client.close()


def late(server: LiveServer) -> None:
    """Deadlines that pass while it is answered, of a stream and of an answer in one piece."""
    for stream in (True, False):
        server.ask(CHAT, {**ENDLESS, "stream": stream}, headers={"x-slmq-deadline-ms": "60"})


def vanish(server: LiveServer) -> None:
    for i in range(6):
        body = {**ENDLESS, "stream": i % 2 == 0, "temperature": i % 3, "n": 2}
        with server.send(CHAT, body):
            wait_until(lambda: server.model.stats().running > 0)
        wait_until(lambda: server.idle)


@pytest.mark.parametrize(
    "requests", [whole, streamed, shared, shaped, other_apis, refused, crowd, late, vanish]
)
def test_what_is_over_is_gone(crowded: LiveServer, requests: Callable[[LiveServer], None]) -> None:
    with nothing_stays(crowded):
        requests(crowded)
