"""Any number of tokens for any number of sequences, cut into runs that the plan takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmq.engine.engine import Rows

__all__ = ["cut_runs"]


def cut_runs(parts: Sequence[Rows], chunk: int) -> Iterator[list[Rows]]:
    """Parts of any length, in order, as batches of at most `chunk` tokens for `Engine.run`.

    Parameters
    ----------
    parts : sequence of (TokenSequence, tokens, wanted) or (..., ids)
        As `Engine.run` takes them.
    chunk : int
    """
    run: list[Rows] = []
    room = chunk
    for sequence, tokens, wanted, *ids in parts:
        start, first_wanted = 0, len(tokens) - wanted
        while start < len(tokens):
            stop = min(len(tokens), start + room)
            now = max(0, stop - max(start, first_wanted))
            rows: Rows = (sequence, tokens[start:stop], now)
            run.append((*rows, ids[0]) if ids else rows)
            room -= stop - start
            start = stop
            if room == 0:
                yield run
                run, room = [], chunk
    if run:
        yield run
