"""A small server that speaks OpenAI's chat API, to stand for a remote model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class StubOpenAI:
    """What it is to do, and what it was asked.

    Attributes
    ----------
    status : int
        Of its answers.
    text : str
    body : bytes or None
        Sent in place of an answer.
    hang : bool
        Whether it takes connections and says nothing.
    requests : list
        (headers, body) of those that came.
    """

    def __init__(self) -> None:
        self.status = 200
        self.text = "From afar."
        self.body: bytes | None = None
        self.hang = False
        self.requests: list[tuple[dict[str, str], Any]] = []
        self.url = ""
        self.released = threading.Event()


def _handler(stub: StubOpenAI) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            stub.requests.append((headers, {**body, "path": self.path}))
            if stub.hang:
                stub.released.wait(30)
                return
            if stub.body is not None or stub.status != 200:
                self._send(stub.body or b'{"error": {"message": "no"}}', "application/json")
                return
            usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            if not body.get("stream"):
                message = {"role": "assistant", "content": stub.text}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                found = {"id": "x", "object": "chat.completion", "model": body["model"]}
                data = json.dumps({**found, "choices": [choice], "usage": usage}).encode()
                self._send(data, "application/json")
                return
            chunks: list[Any] = [
                {"choices": [{"index": 0, "delta": {"content": word}}]}
                for word in stub.text.split()
            ]
            if body.get("stream_options", {}).get("include_usage"):
                chunks.append({"choices": [], "usage": usage})
            events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
            self._send("".join([*events, "data: [DONE]\n\n"]).encode(), "text/event-stream")

        def _send(self, data: bytes, kind: str) -> None:
            self.send_response(stub.status)
            if 300 <= stub.status < 400:
                self.send_header("location", "http://elsewhere.invalid/")
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    return Handler


@contextmanager
def stub_openai() -> Iterator[StubOpenAI]:
    """A stub that runs at a free port of this machine."""
    stub = StubOpenAI()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stub))
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        stub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
