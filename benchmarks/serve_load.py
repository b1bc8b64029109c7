"""Many clients at one server: how long each waits, for its first token and between two.

    python benchmarks/serve_load.py MODEL.gguf [--server PATH/TO/llama-server] [--rounds 2]
        [--clients 1,4,8,16,32] [--tokens 64] [--words 40] [--each 2] [--out FILE.jsonl]

All clients begin at once, and each asks for `--each` answers, one after the other, as streams of
OpenAI's completions. Prompts differ. Servers run side by side and are measured in turns: while one
is asked, the other has nothing to do. A gap is what a reader sees, the time between two events.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from threading import Thread

import numpy as np
from newcomer import wait_until_ready

WORDS = [
    *("sun", "moon", "river", "stone", "bird", "tree", "cloud", "light", "road", "house"),
    *("water", "wind", "song", "name", "hand", "door"),
]
HEADER = (
    "server        clients  tokens/s   first token ms p50      p99   gap ms p50    p99   peak MiB"
)


@dataclass
class Server:
    """A server under test.

    Attributes
    ----------
    name : str
    port : int
    process : subprocess.Popen
    """

    name: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def peak_mib(self) -> float:
        """Most memory that it has held, mapped weights included."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+)", status)
        return int(found[1]) / 1024 if found else 0.0


@dataclass
class Times:
    """Milliseconds of one level of one round."""

    firsts: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0


def client(port: int, prompts: list[str], tokens: int, found: Times) -> None:
    """Ask for some answers and note when what came."""
    for prompt in prompts:
        body = {
            "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        connection = HTTPConnection("127.0.0.1", port, timeout=900)
        began_s = time.perf_counter()
        data = json.dumps(body)
        connection.request("POST", "/v1/completions", data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {response.read(300)!r}")
        came_s, usage = [], 0
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            if b'"usage":{' in line:
                usage = json.loads(line[6:])["usage"]["completion_tokens"]
            if b'"choices":[]' not in line:
                came_s.append(time.perf_counter())
        connection.close()
        found.firsts.append((came_s[0] - began_s) * 1e3)
        found.gaps += [(b - a) * 1e3 for a, b in pairwise(came_s)]
        found.tokens += usage


def measure(server: Server, clients: int, args: argparse.Namespace, rng: random.Random) -> Times:
    """One level of one round."""
    found = [Times() for _ in range(clients)]
    prompts = [
        [" ".join(rng.choices(WORDS, k=args.words)) for _ in range(args.each)] for _ in found
    ]
    threads = [
        Thread(target=client, args=(server.port, asked, args.tokens, times))
        for asked, times in zip(prompts, found, strict=True)
    ]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = Times(seconds=time.perf_counter() - began_s)
    for times in found:
        if len(times.firsts) != args.each:
            raise RuntimeError("a client failed")
        whole.firsts += times.firsts
        whole.gaps += times.gaps
        whole.tokens += times.tokens
    return whole


@contextmanager
def running(name: str, command: list[str], port: int) -> Iterator[Server]:
    """A server, once it is ready."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until_ready(process, port)
            yield Server(name, port, process)
        finally:
            process.terminate()


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def commands(args: argparse.Namespace) -> Iterator[tuple[str, list[str], int]]:
    """What is measured: name, command and port."""
    most = max(args.clients)
    context = 4 * args.words + args.tokens + 64
    port = free_port()
    ours = [sys.executable, "-m", "slmq.cli", "serve", args.model, "--port", str(port)]
    yield "slmq", [*ours, "--threads", str(args.threads), "--n-ctx", str(context)], port
    if args.server is not None:
        port = free_port()
        theirs = [str(args.server), "-m", args.model, "-t", str(args.threads), "-np", str(most)]
        yield "llama-server", [*theirs, "-c", str(most * context), "--port", str(port)], port


def row(server: Server, clients: int, rounds: list[Times]) -> dict[str, float | str]:
    """The figures of a level: rates as the median of the rounds, times over all of them."""
    firsts = [ms for times in rounds for ms in times.firsts]
    gaps = [ms for times in rounds for ms in times.gaps] or [0.0]
    return {
        "server": server.name,
        "clients": clients,
        "tokens_per_s": statistics.median(times.tokens / times.seconds for times in rounds),
        "first_p50_ms": float(np.percentile(firsts, 50)),
        "first_p99_ms": float(np.percentile(firsts, 99)),
        "gap_p50_ms": float(np.percentile(gaps, 50)),
        "gap_p99_ms": float(np.percentile(gaps, 99)),
        "peak_mib": server.peak_mib,
    }


def main() -> int:
    """Prints a line for each server and number of clients."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="a .gguf file")
    parser.add_argument("--server", type=Path, help="llama.cpp's llama-server")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", default="1,4,8,16,32")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--words", type=int, default=40, help="of each prompt")
    parser.add_argument("--each", type=int, default=2, help="answers for each client")
    parser.add_argument("--out", type=Path, help="append the figures to this file, as JSON")
    args = parser.parse_args()
    args.clients = [int(count) for count in args.clients.split(",")]
    rng = random.Random(1)
    print(HEADER)
    with ExitStack() as stack:
        servers = [stack.enter_context(running(*one)) for one in commands(args)]
        for server in servers:
            measure(server, 2, args, rng)  # warm
        for clients in args.clients:
            found: dict[str, list[Times]] = {server.name: [] for server in servers}
            for number in range(args.rounds):
                for server in servers if number % 2 == 0 else reversed(servers):
                    found[server.name].append(measure(server, clients, args, rng))
            for server in servers:
                line = row(server, clients, found[server.name])
                print(
                    f"{server.name:<13} {clients:>7}  {line['tokens_per_s']:>8.1f}  "
                    f"{line['first_p50_ms']:>18.0f}  {line['first_p99_ms']:>8.0f}  "
                    f"{line['gap_p50_ms']:>10.1f} {line['gap_p99_ms']:>7.1f}  "
                    f"{line['peak_mib']:>8.0f}",
                    flush=True,
                )
                if args.out is not None:
                    with args.out.open("a") as file:
                        file.write(json.dumps({"model": Path(args.model).name, **line}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
