"""Work on the rows of a matrix, cut into pieces of about a cache."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

__all__ = ["in_chunks"]

CHUNK = 1 << 18  # weights


def in_chunks(n: int, k: int, threads: int, work: Callable[[int, int], None]) -> None:
    """Call ``work(begin, end)`` for ranges that cover `n` rows of `k` columns, on `threads`.

    Raises what a call raises.
    """
    step = max(1, CHUNK // k)
    ranges = [(begin, min(begin + step, n)) for begin in range(0, n, step)]
    if threads == 1 or len(ranges) == 1:
        for begin, end in ranges:
            work(begin, end)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda piece: work(*piece), ranges))
