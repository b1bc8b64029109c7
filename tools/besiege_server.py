"""Clients that mean no good, against the real `slmq serve`: what they leave behind, who noticed.

    python tools/besiege_server.py smollm2-135m-instruct [--only flood,read_slowly]
    python tools/besiege_server.py smollm2-135m-instruct --only endure --requests 10000

Each siege prints a line: how long it took, how long the /health requests took that went on beside
it, and what changed in pages of the cache, descriptors and memory. The exit code is 1 if an answer
was wrong, anything leaked, or /health took longer than --healthy-ms. The cache of keys and values
is small, so that it is full soon and memory has nothing to grow with.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial, update_wrapper
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Name three colours."}]
ASKED: dict[str, Any] = {"messages": HI, "max_tokens": 16, "temperature": 0}
ENDLESS: dict[str, Any] = {**ASKED, "max_tokens": 4000, "ignore_eos": True, "stream": True}
WORDS = ["red", "green", "house", "river", "why", "seven", "tell", "me", "song", "old", "machine"]
CACHE = "192MiB"
QUEUE = 120  # room for the 100 who read slowly, not for the flood
GIGABYTE = 1 << 30
LEAST_REST_S = 60.0


class Server:
    """`slmq serve` as a process of its own."""

    def __init__(self, model: str, *options: str) -> None:
        command = [sys.executable, "-m", "slmq.cli", "serve", model, "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        lines = iter(self.process.stderr.readline, "")
        line = next((line for line in lines if "serving at" in line), "")
        found = re.search(r":(\d+)$", line.strip())
        if found is None:
            raise SystemExit("the server did not start")
        self.port = int(found[1])
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def ask(self, path: str, body: Any = None, timeout_s: float = 300.0) -> tuple[int, bytes]:
        """Status and data of a response; bytes go as they are."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        try:
            connection.request("GET" if data is None else "POST", path, data, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def send(self, body: Any) -> socket.socket:
        """A connection with a request on it, of whose answer nothing was read."""
        data = json.dumps(body).encode()
        found = socket.create_connection(("127.0.0.1", self.port), timeout=300)
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        found.sendall(head.encode() + f"content-length: {len(data)}\r\n\r\n".encode() + data)
        return found

    def metric(self, name: str) -> float:
        """A value of /metrics."""
        text = self.ask("/metrics")[1].decode()
        found = re.search(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def rest(self) -> None:
        """Wait until nobody is answered any more."""
        end_s = time.monotonic() + LEAST_REST_S
        while self.metric("vllm:num_requests_running") + self.metric("vllm:num_requests_waiting"):
            if time.monotonic() > end_s:
                raise SystemExit("requests of clients that have left go on")
            time.sleep(0.05)
        time.sleep(0.3)

    def held(self) -> dict[str, float]:
        """Pages that nobody could take, descriptors and resident memory beside the cache."""
        process = Path("/proc") / str(self.process.pid)
        status = (process / "status").read_text()
        rss = re.search(r"VmRSS:\s+(\d+)", status)
        pages = self.metric("slmq:kv_pages_in_use")
        return {
            # What finished sequences keep counts for each that shares it: it may be more.
            "pages": max(0.0, pages - self.metric("slmq:kv_pages_kept")),
            "descriptors": sum(1 for _ in (process / "fd").iterdir()),
            # The cache of keys and values takes memory as it is used, up to a limit that is told.
            "MiB": (int(rss[1]) / 1024 if rss else 0.0) - self.metric("slmq:kv_bytes") / (1 << 20),
        }


class Pulse:
    """Asks for /health all the time, in a process of its own: this one is busy."""

    CODE = """
import sys, time
from http.client import HTTPConnection, HTTPException
while True:
    began_s = time.perf_counter()
    connection = HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
    except (OSError, HTTPException):
        break  # the server has ended
    connection.close()
    print((time.perf_counter() - began_s) * 1e3, response.status, flush=True)
    time.sleep(0.02)
"""

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-c", self.CODE, str(port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def stop(self) -> list[float]:
        """How long each took, in milliseconds; those refused while draining are left out."""
        self._process.terminate()
        text, _ = self._process.communicate()
        rows = [line.split() for line in text.splitlines()]
        return sorted(float(row[0]) for row in rows if len(row) == 2 and row[1] == "200")


# Sieges ---------------------------------------------------------------------------------------


def vanish(server: Server) -> str:
    """100 clients that leave at random moments."""
    chance = random.Random(1)

    def one(i: int) -> None:
        with server.send({**ENDLESS, "seed": i, "temperature": 1.0, "stream": i % 2 == 0}) as gone:
            gone.settimeout(chance.random() * 3 + 0.01)
            with suppress(TimeoutError):
                while gone.recv(chance.randrange(1, 4000)) and chance.random() > 0.05:
                    pass

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(one, range(100)))
    return ""


def read_slowly(server: Server) -> str:
    """100 clients that read a few bytes at a time; what they get is whole."""
    wanted = server.ask(CHAT, {**ASKED, "max_tokens": 40})[1]
    text = json.loads(wanted)["choices"][0]["message"]["content"]

    def one(i: int) -> bool:
        # `user` has no effect on the answer, `stop` keeps it from being shared.
        body = {**ASKED, "max_tokens": 40, "stream": True, "stop": [f"#{i}#"]}
        with server.send(body) as client:
            seen = b""
            while b"[DONE]" not in seen:
                seen += client.recv(150)
                time.sleep(0.02)
        events = [x[6:] for x in seen.decode("utf-8", "replace").split("\n") if x[:6] == "data: "]
        parts = [
            json.loads(event)["choices"][0]["delta"].get("content", "")
            for event in events
            if event != "[DONE]"
        ]
        return "".join(parts) == text

    with ThreadPoolExecutor(100) as pool:
        right = sum(pool.map(one, range(100)))
    return "" if right == 100 else f"{100 - right} answers are wrong"


def flood(server: Server) -> str:
    """Many more requests than may wait: each is answered, or told when to come back."""

    def one(i: int) -> int:
        return server.ask(CHAT, {**ASKED, "seed": i, "temperature": 1.0, "n": 4})[0]

    with ThreadPoolExecutor(150) as pool:
        found = list(pool.map(one, range(300)))
    refused = found.count(429)
    wrong = len(found) - refused - found.count(200)
    return f"{refused} were refused" if not wrong and refused else f"WRONG: {sorted(set(found))}"


def large_bodies(server: Server) -> str:
    """Bodies of 1 GB, of a length that is told and of one that is not."""

    def told(_: int) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            client.sendall(f"{head}content-length: {GIGABYTE}\r\n\r\n".encode())
            return client.recv(4096)

    def untold(_: int) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            client.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
            chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
            with suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(GIGABYTE >> 20):
                    client.sendall(chunk)
                return b"all of it was taken"
            with suppress(OSError):
                return client.recv(4096)
            return b"HTTP/1.1 413 "  # it closed while this side was still sending

    with ThreadPoolExecutor(8) as pool:
        seen = [*pool.map(told, range(8)), *pool.map(untold, range(8))]
    wrong = [data[:40] for data in seen if not data.startswith(b"HTTP/1.1 413 ")]
    return f"WRONG: {wrong[0]!r}" if wrong else ""


def drip(server: Server) -> str:
    """200 slow-loris connections: heads that never end."""
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    for client in clients:
        client.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\n")
    end_s = time.monotonic() + 25
    open_ones = clients
    while open_ones and time.monotonic() < end_s:
        for client in open_ones:
            with suppress(OSError):
                client.sendall(b"x-a: b\r\n")
        time.sleep(2)
        open_ones = [client for client in open_ones if not _closed(client)]
    for client in clients:
        client.close()
    return "" if not open_ones else f"WRONG: {len(open_ones)} are still open"


def _closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1000) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        client.setblocking(True)


def nonsense(server: Server) -> str:
    """Bodies that are no UTF-8, no JSON, nested deep, or of wrong types: all are 400."""
    chance = random.Random(2)
    good = json.dumps(ASKED).encode()
    bodies = [b"\xff\xfe", b"{", b"[" * 100_000, b'{"messages": "\\ud800"}', b"NaN", b"{}" * 2]
    bodies += [b'{"messages":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}"]
    for _ in range(300):
        broken = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        bodies.append(bytes(broken))
    statuses = [server.ask(CHAT, body)[0] for body in bodies]
    wrong = sorted({status for status in statuses if status not in (200, 400, 404)})
    return f"WRONG: {wrong}" if wrong else f"{statuses.count(400)} of {len(bodies)} were refused"


def kill_a_batch(model: str, folder: Path) -> str:
    """`slmq batch`, killed in the middle and begun again: the output of a run without that."""
    source = folder / "in.jsonl"
    with source.open("w") as file:
        for i in range(40):
            body = {"messages": [{"role": "user", "content": f"Count to {i}."}], "max_tokens": 24}
            line = {"custom_id": f"r{i}", "method": "POST", "url": CHAT, "body": body}
            file.write(json.dumps(line) + "\n")
    command = [sys.executable, "-m", "slmq.cli", "batch", str(source)]
    whole, broken = folder / "whole.jsonl", folder / "broken.jsonl"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, str(whole), "--model", model], check=True, **quiet)
    killed = 0
    for wait_s in (2.0, 2.5, 3.0, None):
        process = subprocess.Popen([*command, str(broken), "--model", model], **quiet)
        with suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
        if process.poll() is None:
            process.kill()
            process.wait()
            killed += 1
    same = whole.read_bytes() == broken.read_bytes()
    return f"killed {killed} times" if same and killed else f"WRONG: same={same}, killed={killed}"


def endure(server: Server, requests: int, growth_mib: float) -> str:
    """Requests of every kind, one after the other from eight threads: memory stays as it is."""
    lock, done = threading.Lock(), 0
    sizes: dict[int, float] = {}
    marks = [n for n in (1000, 2000, 3000, 5000, 7000) if n < requests] + [requests]

    def one(i: int) -> None:
        nonlocal done
        chance = random.Random(i)
        words = " ".join(chance.choice(WORDS) for _ in range(chance.randrange(1, 60)))
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": words}],
            "max_tokens": chance.randrange(1, 9),
            "temperature": i % 2,
            "stream": i % 3 == 0,
            "n": 1 + (i % 7 == 0),
        }
        if i % 11 == 0:
            body["max_tokens"] = 10**9  # refused
        if i % 13 == 0:
            with server.send({**body, "stream": True, "max_tokens": 200}) as gone:
                gone.recv(1 + chance.randrange(2000))
        else:
            server.ask(CHAT, body)
        with lock:
            done += 1
            if done in marks:
                sizes[done] = server.held()["MiB"]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(requests)))
    told = ", ".join(f"{size:.0f} MiB after {count}" for count, size in sizes.items())
    grown = sizes[marks[-1]] - sizes[marks[0]]
    return told if grown <= growth_mib else f"WRONG: {told}"


def end_under_load(server: Server) -> str:
    """SIGTERM while 20 answers are made: all are complete, and the exit code is 0."""
    body = {**ASKED, "max_tokens": 60, "ignore_eos": True, "stream": True, "temperature": 1.0}

    def one(i: int) -> bool:
        try:
            with server.send({**body, "seed": i}) as client:
                seen = client.recv(100)
                begun.release()
                while data := client.recv(1 << 16):
                    seen += data
            return seen.rstrip().endswith(b"0") and b'"finish_reason":"length"' in seen
        except (OSError, HTTPException):
            return False

    begun = threading.Semaphore(0)
    with ThreadPoolExecutor(20) as pool:
        found = [pool.submit(one, i) for i in range(20)]
        for _ in range(20):
            begun.acquire()
        server.process.send_signal(signal.SIGTERM)
        right = sum(one.result() for one in found)
    code = server.process.wait(60)
    return "" if right == 20 and code == 0 else f"WRONG: {right} of 20 complete, exit code {code}"


SIEGES = ("vanish", "read_slowly", "flood", "large_bodies", "drip", "nonsense", "endure",
          "end_under_load", "kill_a_batch")  # fmt: skip


def main() -> int:
    """Besiege a server."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--healthy-ms", type=float, default=50.0)
    parser.add_argument("--growth-mib", type=float, default=64.0)
    parser.add_argument("--only", help=f"some of {', '.join(SIEGES)}, with commas")
    parser.add_argument("--requests", type=int, default=2000, help="to endure")
    given = parser.parse_args()
    chosen = given.only.split(",") if given.only else SIEGES
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        # /dev/full is a disk without room: every line of the log is lost, and nothing else.
        options = ("--max-queue", str(QUEUE), "--kv-bytes", CACHE, "--log-requests", "/dev/full")
        server = Server(given.model, *options)
        truth = server.ask(CHAT, ASKED)[1]
        wanted = json.loads(truth)["choices"][0]["message"]["content"]
        vanish(server)  # once before it is looked at: the cache takes its memory
        server.rest()
        for siege in (vanish, read_slowly, flood, large_bodies, drip, nonsense):
            if siege.__name__ in chosen:
                failed += not _besiege(server, siege, given, wanted)
        if "endure" in chosen:
            long = partial(endure, requests=given.requests, growth_mib=given.growth_mib)
            failed += not _besiege(server, update_wrapper(long, endure), given, wanted)
        lost = server.metric("slmq:log_lines_lost_total")
        print(f"a full disk for logs: {lost:.0f} lines lost, all requests answered")
        failed += lost == 0
        if "end_under_load" in chosen:
            failed += not _end(server, given)
        if "kill_a_batch" in chosen:
            told = kill_a_batch(given.model, Path(name))
            print(f"kill_a_batch: {told}")
            failed += "WRONG" in told
        server.process.kill()
    return int(failed > 0)


def _end(server: Server, given: argparse.Namespace) -> bool:
    pulse, began_s = Pulse(server.port), time.monotonic()
    told = end_under_load(server)
    times = pulse.stop()
    _tell(end_under_load, told, time.monotonic() - began_s, times, "")
    return "WRONG" not in told and not (times and times[-1] > given.healthy_ms)


def _besiege(
    server: Server, siege: Callable[[Server], str], given: argparse.Namespace, wanted: str
) -> bool:
    before, began_s = server.held(), time.monotonic()
    pulse = Pulse(server.port)
    told = siege(server)
    took_s = time.monotonic() - began_s
    times = pulse.stop()
    server.rest()  # after the pulse, whose last connection would count
    answer = json.loads(server.ask(CHAT, ASKED)[1])["choices"][0]["message"]["content"]
    if answer != wanted:
        told += " WRONG: the answer has changed"
    after = server.held()
    grown = {name: after[name] - before[name] for name in after}
    changes = ", ".join(f"{name} {before[name]:.0f} to {after[name]:.0f}" for name in after)
    _tell(siege, told, took_s, times, changes)
    leaked = grown["pages"] > 0 or grown["descriptors"] > 0 or grown["MiB"] > given.growth_mib
    return not leaked and "WRONG" not in told and times[-1] <= given.healthy_ms


def _tell(
    siege: Callable[..., str], told: str, took_s: float, times: list[float], changes: str
) -> None:
    middle, late, slowest = (times[int(p * (len(times) - 1))] if times else 0.0
                             for p in (0.5, 0.99, 1.0))  # fmt: skip
    print(
        f"{siege.__name__}: {took_s:.1f} s; /health {len(times)} times, median {middle:.1f} ms, "
        f"p99 {late:.1f} ms, slowest {slowest:.1f} ms; {changes}{'; ' * bool(told)}{told}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
