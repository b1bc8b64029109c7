"""Requests that are the same, at the same time: one computation, and each reads all of it."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from live_server import LiveServer, live_server, wait_until

from slmq.generation.model import Model
from slmq.server.limits import Limits

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
LONG: dict[str, Any] = {"messages": HI, "max_tokens": 1500, "ignore_eos": True}


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_is_computed_once(server: LiveServer, stream: bool) -> None:
    body = {**LONG, "temperature": 1.0, "seed": 5, "stream": stream}
    before, joined = server.model.stats(), server.service.twins.joined
    with ThreadPoolExecutor(6) as pool:
        answered = list(pool.map(lambda _: server.ask(CHAT, body), range(6)))
    wait_until(lambda: server.idle)
    alone = server.model.generate(HI, max_tokens=1500, ignore_eos=True, temperature=1.0, seed=5)
    for one in answered:
        if stream:
            parts = [e["choices"][0]["delta"].get("content", "") for e in one.events]
            assert "".join(parts) == alone.text
        else:
            assert one.body["choices"][0]["message"]["content"] == alone.text
    after = server.model.stats()
    together = server.service.twins.joined - joined
    assert after.submitted - before.submitted == 6 - together + 1  # and the one of the comparison
    assert together >= 1


def test_one_may_leave(server: LiveServer) -> None:
    body = {**LONG, "stream": True, "seed": 6}
    joined = server.service.twins.joined
    with server.send(CHAT, body) as first:
        first.recv(200)
        second = server.send(CHAT, body)
        wait_until(lambda: server.service.twins.joined == joined + 1)
    with second:
        seen = b""
        while b"[DONE]" not in seen:
            data = second.recv(1 << 16)
            assert data
            seen += data
    assert seen.count(b'"content":') > 10
    assert b'"finish_reason":"length"' in seen


def test_all_may_leave(server: LiveServer) -> None:
    body = {**LONG, "stream": True, "seed": 7}
    cancelled = server.model.stats().cancelled
    clients = [server.send(CHAT, body) for _ in range(3)]
    wait_until(lambda: server.model.stats().running == 1)
    for client in clients:
        client.close()
    wait_until(lambda: server.idle)
    assert server.model.stats().cancelled == cancelled + 1
    assert not server.service.twins._open


def test_what_is_drawn_has_no_twin_unless_it_is_sent_again(server: LiveServer) -> None:
    body = {**LONG, "temperature": 1.0, "stream": True}
    joined = server.service.twins.joined
    with ExitStack() as clients:
        seeds = []
        for headers in ({}, {}, {"idempotency-key": "a"}, {"idempotency-key": "a"}):
            client = clients.enter_context(server.send(CHAT, body, headers))
            seen = b""
            while b"\r\n\r\n" not in seen:
                seen += client.recv(100)
            seeds += re.findall(rb"x-slmq-seed: (\d+)", seen)
    assert seeds[0] != seeds[1]
    assert seeds[2] == seeds[3]
    assert server.service.twins.joined == joined + 1
    wait_until(lambda: server.idle)


def test_keys_share_nothing(model: Model) -> None:
    """Neither a computation nor what was computed: its time would tell one what another asks."""
    with live_server({"tiny": model}, Limits(keys=("one", "two"))) as server:
        body = {"messages": [{"role": "user", "content": "secret " * 60}], "max_tokens": 2}

        def cached(key: str, **more: Any) -> int:
            headers = {"authorization": f"Bearer {key}"}
            answered = server.ask(CHAT, {**body, **more}, headers=headers)
            found: int = answered.body["usage"]["prompt_tokens_details"]["cached_tokens"]
            return found

        assert cached("one") < 20
        assert cached("one") > 300
        assert cached("two") < 20
        assert cached("two", cache_salt="mine") < 20
        assert cached("two", cache_salt="mine") > 300
