"""Limits of the machine, measured in turn with the work that is compared with them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from time import perf_counter

import numpy as np
import numpy.typing as npt

from .common import need

ROUNDS = 5
SPELL_S = 0.15  # of work, and of probing the machine's limit, in turn
MOST = 1.05  # of a limit: more is a mistake of its probe
ABSENT = 7  # a byte that is not in the memory that is searched


def read_bytes_per_s(threads: int, count: float) -> float:
    """Plain reading of memory by that many threads, now.

    As many bytes as the work reads: passes that take as long as the work are disturbed as often by
    a neighbour, and gain as much from a large cache. The better of two readers: the commit's own,
    which was slow in the project's first days, and the C library's search for a byte.
    """
    size = max(int(count), 1 << 20)
    probe = need("slmq._native", "memory_read_gb_per_s")
    rate: float = probe(threads, size, SPELL_S / 2) * 1e9
    return max(rate, _searched_bytes_per_s(threads, size))


def _searched_bytes_per_s(threads: int, size: int) -> float:
    """The same by `memchr`, which every machine has and which leaves the GIL."""
    search, memory = ctypes.CDLL(None).memchr, _memory(size)
    search.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    piece = -(-size // (4 * threads))
    starts = range(0, size, piece)

    def read(start: int) -> None:
        search(memory.ctypes.data + start, ABSENT, min(piece, size - start))

    def read_all() -> None:
        if threads == 1:
            search(memory.ctypes.data, ABSENT, size)
        else:
            list(pool.map(read, starts))

    with ThreadPoolExecutor(threads) as pool:
        return size / shortest_s(read_all, SPELL_S / 2)


@lru_cache(maxsize=1)
def _memory(size: int) -> npt.NDArray[np.uint8]:
    return np.ones(size, np.uint8)  # written: zeros would share one page


def read_fraction(work: Callable[[], object], count: float, threads: int) -> float:
    """How near `work`, which reads `count` bytes, comes to plain reading of as many."""
    return fraction(lambda: read_bytes_per_s(threads, count), work, count)


def integer_macs_per_s(threads: int, isa: str | None = None) -> float:
    """int8 multiply-accumulates from registers by that many threads, now."""
    probe = need("slmq._native", "integer_peak_gmac_per_s")
    rate: float = probe(threads, isa, SPELL_S) * 1e9
    return rate


def fraction(limit: Callable[[], float], work: Callable[[], object], amount: float) -> float:
    """How near `work` comes to a limit of the machine, best against best; NaN if past it.

    Limit and work take turns, so that a busy neighbour slows both.

    Parameters
    ----------
    limit : callable
        Measures the limit: units per second.
    work : callable
        Does `amount` units of work.
    """
    work()
    highest, shortest = 0.0, float("inf")
    for _ in range(ROUNDS):
        highest = max(highest, limit())
        shortest = min(shortest, shortest_s(work))
    found = amount / shortest / highest
    return found if found <= MOST else float("nan")


def shortest_s(work: Callable[[], object], spell_s: float | None = None) -> float:
    """Seconds of the fastest of several calls."""
    spell_s = SPELL_S if spell_s is None else spell_s
    shortest, began = float("inf"), perf_counter()
    while (start := perf_counter()) - began < spell_s:
        work()
        shortest = min(shortest, perf_counter() - start)
    return shortest
