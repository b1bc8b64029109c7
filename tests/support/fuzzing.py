"""Damage for the fuzzers of file readers, and the tally of how its cases ended.

``SLMQ_FUZZ_CASES`` sets the number of cases per seed file and ``SLMQ_FUZZ_SEED`` the start, for
longer runs than the ones in the suite.
"""

from __future__ import annotations

import copy
import os
import random
import re
import signal
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

CASES = int(os.environ.get("SLMQ_FUZZ_CASES", "700"))
START = int(os.environ.get("SLMQ_FUZZ_SEED", "1"))

HANG_SECONDS = 60 + CASES  # a bound on all cases of a test; on an idle machine it takes one or two
PEAK_BYTES = 8 << 20  # the files have a few hundred bytes; the interpreter grows tables of its own

INTERESTING = [
    *(0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 31, 32, 33, 63, 64, 127, 128, 255, 256),
    *(1000, 4096, 65535, 65536, 65537, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32),
    *(1 << 40, 1 << 59, 1 << 60, 1 << 61, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 32),
    *((1 << 64) - 8, (1 << 64) - 2, (1 << 64) - 1),
]
TOKENS = [
    *(b"-1", b"0", b"1e9", b"1.0", b"true", b"null", b"[]", b"{}", b'""', b'"F16"', b'"BF16"'),
    *(b"9223372036854775807", b"18446744073709551616", b"1" * 60, b"NaN", b"\\ud800", b"[", b"{"),
    *(b'"__metadata__":{},', b'"dtype"', b'"shape"', b'"data_offsets"', b",", b":", b"]", b"}"),
]


@pytest.fixture
def no_hang() -> Iterator[None]:
    """Turn a hang into a failure. This is no measurement: the bound is far from the usual time."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"the cases did not end within {HANG_SECONDS} s")

    if not hasattr(signal, "alarm") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# -- mutations -----------------------------------------------------------------------------------


def flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def set_byte(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])


def put_integer(data: bytearray, rng: random.Random) -> None:
    size = rng.choice([1, 2, 4, 8, 8])
    value = rng.choice(INTERESTING) % (1 << 8 * size)
    at = rng.randrange(len(data))
    data[at : at + size] = value.to_bytes(size, "little")


def change_integer(data: bytearray, rng: random.Random) -> None:
    size = rng.choice([4, 8])
    at = rng.randrange(len(data))
    old = int.from_bytes(data[at : at + size], "little")
    new = (old + rng.choice([-32, -8, -4, -1, 1, 4, 8, 32])) % (1 << 8 * size)
    data[at : at + size] = new.to_bytes(size, "little")


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def remove(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice([1, 4, 8, rng.randrange(1, 64)])]


def insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.choice([1, 4, 8, 32]))


def splice(data: bytearray, rng: random.Random) -> None:
    source, at = rng.randrange(len(data)), rng.randrange(len(data))
    piece = data[source : source + rng.randrange(1, 96)]
    data[at : at + rng.choice([0, len(piece)])] = piece


def put_token(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at : at + rng.choice([0, 1, 2, 5])] = rng.choice(TOKENS)


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    *(flip_bits, set_byte, put_integer, put_integer, change_integer, cut, remove, insert, splice),
    put_token,
]


def mutants(seed: bytes, n: int, salt: str) -> Iterator[bytes]:
    """`n` damaged copies, each from one to four mutations; the same for the same salt."""
    for case in range(START, START + n):
        rng = random.Random(f"{salt}:{case}")
        data = bytearray(seed)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            if data:
                rng.choice(MUTATIONS)(data, rng)
        yield bytes(data)


# -- values of a header ---------------------------------------------------------------------------


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with every key or index in it."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def change_value(header: dict[str, Any], rng: random.Random) -> None:
    container, key = rng.choice(list(places(header)))
    old = container[key]
    if isinstance(old, int) and rng.random() < 0.5:
        container[key] = old + rng.choice([-8, -4, -1, 1, 4, 8])
    elif isinstance(old, list) and rng.random() < 0.5:
        old.append(rng.choice(INTERESTING))
    else:
        values: list[Any] = [None, True, -1, 0.5, "", "F16", "I64", "F4", [], {}, [0], [2, 4]]
        container[key] = copy.deepcopy(rng.choice(values + INTERESTING + list(header.values())))


# -- outcomes ------------------------------------------------------------------------------------


class Tally:
    """How the cases ended, and how much memory the hungriest took."""

    def __init__(self, read: Callable[[Path], str]) -> None:
        self._read = read  # "" or why a file was refused
        self.outcomes: Counter[bool] = Counter()  # accepted or not
        self.reasons: set[str] = set()  # of refusals, without their numbers and names
        self.peak_bytes = 0

    def run(self, path: Path) -> bool:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        refusal = self._read(path)
        _, peak = tracemalloc.get_traced_memory()
        self.peak_bytes = max(self.peak_bytes, peak - before)
        self.outcomes[not refusal] += 1
        if refusal:
            self.reasons.add(re.sub(r"'.*'|\d+|b\".*", "", refusal)[:30])
        return not refusal

    def check(self, reasons: int) -> None:
        """Both outcomes occur and many checks speak, else the mutations miss what they test."""
        assert self.peak_bytes < PEAK_BYTES
        assert self.outcomes[True] > CASES // 50
        assert self.outcomes[False] > CASES // 5
        assert len(self.reasons) >= reasons, self.reasons
