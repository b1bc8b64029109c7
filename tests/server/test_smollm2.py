"""The real model behind the real program: alone, among others, cold, cached, through each API."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
N = 24


@pytest.fixture(scope="module")
def port(smollm2_path: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "slmq.cli", "serve", str(smollm2_path), "--port", "0"]
    process = subprocess.Popen([*command, "--n-ctx", "2048"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    line = next(line for line in lines if "serving at" in line)
    found = re.search(r":(\d+)$", line)
    assert found is not None
    try:
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        process.stderr.close()


def ask(port: int, path: str, body: Any = None) -> Any:
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"content-type": "application/json"}
    connection.request("GET" if body is None else "POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    assert response.status == 200, data
    return json.loads(data)


def chat(port: int, question: str) -> str:
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": N, "temperature": 0}
    return str(ask(port, "/v1/chat/completions", body)["choices"][0]["message"]["content"])


def test_one_answer(port: int) -> None:
    question = "Name three colours."
    messages = [{"role": "user", "content": question}]
    cold = chat(port, question)
    assert len(cold) > 20
    assert chat(port, question) == cold  # cached
    with ThreadPoolExecutor(32) as pool:
        others = [pool.submit(chat, port, f"What is {i} and {i}?") for i in range(31)]
        assert pool.submit(chat, port, question).result() == cold
        slowest_s = 0.0
        while not all(other.done() for other in others):
            began_s = time.perf_counter()
            ask(port, "/health")
            slowest_s = max(slowest_s, time.perf_counter() - began_s)
            time.sleep(0.05)  # between two looks
        assert all(other.result() for other in others)
    print(f"slowest /health beside 32 clients: {slowest_s * 1e3:.1f} ms")
    anthropic = {"messages": messages, "max_tokens": N, "temperature": 0}
    assert ask(port, "/v1/messages", anthropic)["content"][0]["text"] == cold
    options = {"num_predict": N, "temperature": 0}
    ollama = {"messages": messages, "stream": False, "options": options}
    assert ask(port, "/api/chat", ollama)["message"]["content"] == cold
    responses = {"input": question, "max_output_tokens": N, "temperature": 0}
    output = ask(port, "/v1/responses", responses)["output"]
    assert output[0]["content"][0]["text"] == cold
    prompt = ask(port, "/apply-template", {"messages": messages})["prompt"]
    tokens = ask(port, "/tokenize", {"content": prompt})["tokens"]
    raw = {"prompt": tokens, "max_tokens": N, "temperature": 0}
    assert ask(port, "/v1/completions", raw)["choices"][0]["text"] == cold
