"""Streams that decode while a long prompt arrives: how long they wait, and how long it does.

    python benchmarks/newcomer.py MODEL.gguf [--server PATH/TO/llama-server] [--rounds 3]
        [--long 2000]

Four answers are being read, one thread each, when a prompt of 2,000 tokens comes. Printed are the
99th percentile of the time between two tokens of the four until the newcomer's first, the longest,
and the time to that; and this last also for a newcomer who is alone. With --server, the same is
asked of llama.cpp's server, in turn.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

import slmq
from slmq.hub import resolve

STREAMS = 4
FIRST = 16  # tokens of each stream before the newcomer arrives
SHORT = 32  # of theirs
ANSWER = 1500  # most tokens of theirs, more than are read
READY_S = 120.0
HEADER = "                gap p99 ms   longest   first token ms   alone ms   ratio"

Ask = Callable[[list[int], int], Iterator[None]]  # a prompt, and how many tokens; yields at each


class Found(NamedTuple):
    """Milliseconds: gaps between tokens, time to the newcomer's first, and that when alone."""

    gaps: list[float]
    first: float
    alone: float


def measure(ask: Ask, long: int, most: int, vocabulary: int, rng: random.Random) -> Found:
    """One round."""

    def prompt(length: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(length)]

    began_s = time.perf_counter()
    next(ask(prompt(long), 1))
    alone_ms = (time.perf_counter() - began_s) * 1e3
    times: list[list[float]] = [[] for _ in range(STREAMS)]
    over = threading.Event()

    def read(which: int, tokens: list[int]) -> None:
        for _ in ask(tokens, most):
            times[which].append(time.perf_counter())
            if over.is_set():
                break

    readers = [
        threading.Thread(target=read, args=(i, prompt(SHORT)), daemon=True) for i in range(STREAMS)
    ]
    for reader in readers:
        reader.start()
    while min(map(len, times)) < FIRST:
        time.sleep(0.005)
    arrived_s = time.perf_counter()
    next(ask(prompt(long), 1))
    first_s = time.perf_counter()
    time.sleep(0.2)  # the tokens of the same run, and those that waited for it
    over.set()
    for reader in readers:
        reader.join()
    gaps = [
        (b - a) * 1e3 for each in times for a, b in pairwise(each) if b > arrived_s and a < first_s
    ]
    return Found(gaps, (first_s - arrived_s) * 1e3, alone_ms)


def asking(model: slmq.Model) -> Ask:
    """Of slmq, in this process."""

    def ask(prompt: list[int], count: int) -> Iterator[None]:
        with model.stream(prompt, max_tokens=count, ignore_eos=True) as stream:
            for _ in stream:
                yield

    return ask


@contextmanager
def serving(program: Path, model: Path, threads: int, long: int) -> Iterator[Ask]:
    """llama.cpp's server, as it is by default but for places, context and threads."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = (STREAMS + 1) * (long + ANSWER)
    words = ["-m", model, "-t", threads, "-np", STREAMS + 1, "-c", context, "--port", port]
    with subprocess.Popen(
        [str(program), *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:

        def ask(prompt: list[int], count: int) -> Iterator[None]:
            body = {"prompt": prompt, "n_predict": count, "stream": True, "ignore_eos": True}
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
            connection.request(
                "POST",
                "/completion",
                json.dumps(body | {"temperature": 0, "cache_prompt": False}),
                {"Content-Type": "application/json"},
            )
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"the server says {answer.status}: {answer.read(300)!r}")
            for line in answer:
                if line.startswith(b"data:"):
                    yield
            connection.close()

        try:
            wait_until_ready(process, port)
            yield ask
        finally:
            process.terminate()


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    """Until the server has loaded its model."""
    until_s = time.monotonic() + READY_S
    while time.monotonic() < until_s:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the server was not ready after {READY_S:.0f} s")


def main() -> int:
    """Prints a line for each engine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="a .gguf file, or a name that slmq resolves to one")
    parser.add_argument("--server", type=Path, help="llama.cpp's llama-server")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=int, default=2000)
    options = parser.parse_args()
    path = resolve(options.model).path
    with ExitStack() as stack:
        model = stack.enter_context(slmq.load(path, n_threads=options.threads, kv_bytes="2GB"))
        engines = {"slmq": asking(model)}
        if options.server is not None:
            server = stack.enter_context(
                serving(options.server, path, options.threads, options.long)
            )
            engines["llama-server"] = server
        rng, most = random.Random(4), min(ANSWER, model.n_ctx - SHORT)
        found: dict[str, list[Found]] = {name: [] for name in engines}
        for i in range(options.rounds + 1):
            for name, ask in engines.items():
                one = measure(ask, options.long, most, model.n_vocab, rng)
                if i:
                    found[name].append(one)
    print(HEADER)
    for name, rounds in found.items():
        gaps = [gap for one in rounds for gap in one.gaps]
        first, alone = (statistics.median(x) for x in zip(*(r[1:] for r in rounds), strict=True))
        print(
            f"{name:14}{np.percentile(gaps, 99):12.1f}{max(gaps):10.1f}{first:17.0f}{alone:11.0f}"
            f"{first / alone:8.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
