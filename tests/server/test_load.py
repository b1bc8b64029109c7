"""Clients that leave, that flood, that come while the server ends: nothing is left behind."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer, in_line, live_server, wait_until

from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.generation.model import Model
from slmq.generation.scheduler import Scheduler

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
ENDLESS: dict[str, Any] = {"messages": HI, "max_tokens": 1500, "ignore_eos": True}
HEALTHY_S = 0.5  # issue: 50 ms; beside other tests on two cores a thread may wait longer than that

linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts in /proc")


@pytest.fixture
def small(tiny_model_path: Path) -> Iterator[Model]:
    """A model with room for two answers, and for three that wait."""
    engine = open_engine(tiny_model_path, LoadOptions(n_ctx=2048, n_threads=1), name="tiny")
    with Model(engine, Scheduler(engine, most_running=2, most_waiting=3)) as loaded:
        yield loaded


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@linux
def test_clients_that_vanish_leave_nothing(server: LiveServer) -> None:
    chance = random.Random(3)
    before = server.model.stats()
    open_before = descriptors()

    def vanish(i: int) -> None:
        body = {**ENDLESS, "stream": i % 2 == 0, "seed": i, "temperature": 1.0, "n": 1 + i % 3}
        with server.send(CHAT, body) as client:
            if body["stream"]:
                client.recv(chance.randrange(1, 5000))  # it has begun
            else:
                client.settimeout(chance.random() * 0.05 + 0.001)
                with suppress(TimeoutError):
                    client.recv(1)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(vanish, range(100)))
    wait_until(lambda: server.idle)
    wait_until(lambda: not server.wire.server_state.connections)
    wait_until(lambda: descriptors() <= open_before)
    after = server.model.stats()
    assert after.cancelled > before.cancelled
    assert after.submitted == after.cancelled + after.finished  # some left before they were queued
    assert after.pages_in_use <= after.pages_kept  # nothing but what later prompts may use
    assert server.ask(CHAT, {"messages": HI, "max_tokens": 3}).status == 200


def test_who_leaves_before_the_answer_is_not_answered(server: LiveServer) -> None:
    """Without a stream, nothing is written before the end, so nothing fails by itself."""
    cancelled = server.model.stats().cancelled
    with server.send(CHAT, ENDLESS):
        wait_until(lambda: server.model.stats().running == 1)
    wait_until(lambda: server.idle)
    assert server.model.stats().cancelled == cancelled + 1


def test_a_flood_is_told_when_to_come_back(small: Model) -> None:
    with live_server({"tiny": small}) as server:
        clients = []
        for i in range(5):
            clients.append(server.send(CHAT, {**ENDLESS, "stream": True, "seed": i}))
            wait_until(lambda: in_line(small) == (min(len(clients), 2), max(0, len(clients) - 2)))
        try:
            for stream in (False, True):
                answered = server.ask(CHAT, {**ENDLESS, "stream": stream})
                assert answered.status == 429
                assert int(answered.headers["retry-after"]) >= 1
                assert answered.body["error"]["code"] == "rate_limit_exceeded"
            began_s = time.perf_counter()
            assert server.ask("/health").status == 200
            assert time.perf_counter() - began_s < HEALTHY_S
            assert small.stats().waiting == 3
        finally:
            for client in clients:
                client.close()
        wait_until(lambda: server.idle)
        assert server.ask(CHAT, {"messages": HI, "max_tokens": 3}).status == 200


def test_an_answer_fails_with_an_event_when_its_model_is_closed(small: Model) -> None:
    with live_server({"tiny": small}) as server:
        with server.send(CHAT, {**ENDLESS, "stream": True}) as client:
            seen = client.recv(4096)
            server.service.end_answers()
            while b"[DONE]" not in seen:
                seen += client.recv(4096)
        assert b'"code":"closing"' in seen


# The real program ----------------------------------------------------------------------------


class Program:
    """`slmq serve` as a process of its own."""

    def __init__(self, model: Path, *options: str) -> None:
        command = [sys.executable, "-m", "slmq.cli", "serve", str(model), "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        lines = iter(self.process.stderr.readline, "")  # warnings may come before it
        self.line = next(line for line in lines if "serving at" in line)
        found = re.search(r"serving at http://127\.0\.0\.1:(\d+)", self.line)
        self.port = int(found[1]) if found else 0

    def begin(self, body: dict[str, Any]) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"content-type": "application/json"}
        connection.request("POST", CHAT, json.dumps(body), headers)
        return connection

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


def test_the_first_line_says_what_is_served(tiny_model_path: Path) -> None:
    with Program(tiny_model_path, "--n-ctx", "256", "--kv-bytes", "1MB") as program:
        for part in ("tiny-llama", "llama", "threads", "context 256", "tokens/s", "998.4 kB"):
            assert part in program.line
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(30) == 0


def test_the_first_signal_drains_and_the_second_ends(tiny_model_path: Path) -> None:
    asked = {**ENDLESS, "max_tokens": 100, "stream": True}
    with Program(tiny_model_path, "--n-ctx", "2048") as program:
        running = [program.begin(asked).getresponse() for _ in range(4)]
        program.process.send_signal(signal.SIGTERM)
        for response in running:
            data = response.read()
            assert data.count(b'"content"') > 1
            assert b'"finish_reason":"length"' in data
            assert data.endswith(b"data: [DONE]\n\n")
        assert program.process.wait(30) == 0
    with Program(tiny_model_path, "--n-ctx", "2048", "--drain", "600") as program:
        waiting = program.begin({**ENDLESS, "n": 9}).getresponse
        thread = threading.Thread(target=lambda: _quietly(waiting))
        thread.start()
        endless = program.begin({**ENDLESS, "n": 9, "stream": True})
        response = endless.getresponse()
        response.read(1)
        for _ in range(2):
            program.process.send_signal(signal.SIGTERM)
            time.sleep(0.05)  # two signals at once may come as one
        began_s = time.monotonic()
        assert program.process.wait(30) == 0
        assert time.monotonic() - began_s < 10
        thread.join()


def test_who_does_not_end_in_time_is_told(tiny_model_path: Path) -> None:
    with Program(tiny_model_path, "--n-ctx", "2048", "--drain", "0.2") as program:
        response = program.begin({**ENDLESS, "n": 9, "stream": True}).getresponse()
        response.read(1)
        program.process.send_signal(signal.SIGTERM)
        data = response.read()
        assert b'"code":"closing"' in data
        assert data.endswith(b"data: [DONE]\n\n")
        assert program.process.wait(30) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets")
def test_a_unix_socket_is_for_its_owner_and_does_not_stay(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    import socket

    path = tmp_path / "slmq.sock"
    with Program(tiny_model_path, "--unix-socket", str(path)) as program:
        assert f"unix:{path}" in program.line
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(30) == 0
    assert not path.exists()


def test_a_port_that_is_taken_is_one_line(server: LiveServer, tiny_model_path: Path) -> None:
    command = [sys.executable, "-m", "slmq.cli", "serve", str(tiny_model_path)]
    done = subprocess.run(
        [*command, "--port", str(server.port)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "in use" in done.stderr


def _quietly(function: Any) -> None:
    """Call a function of a connection that the other side may cut."""
    try:
        function()
    except (OSError, HTTPException):
        return
