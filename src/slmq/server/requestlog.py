"""What every request has cost, as lines of JSON in a file; what was said is not in it.

A thread of its own writes, so a disk that hangs or is full keeps nobody waiting: lines that cannot
be written are counted.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slmq.server.talk import Talk

__all__ = ["RequestLog"]

log = logging.getLogger("slmq.server")

MOST_WAITING = 10_000  # lines
CLOSE_S = 5.0  # for a disk to take what is left


class RequestLog:
    """A file that grows; made anew if it was moved away.

    Parameters
    ----------
    path : Path or None
        None writes nothing.

    Attributes
    ----------
    lost : int
        Lines that could not be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.lost = 0
        self._path = path
        self._lines: Queue[str | None] = Queue(MOST_WAITING)
        self._thread: Thread | None = None
        if path is not None:
            self._thread = Thread(target=self._run, name="slmq-log", daemon=True)
            self._thread.start()

    def write(self, talk: Talk) -> None:
        """Note a request that is over."""
        if self._thread is None:
            return
        try:
            self._lines.put_nowait(json.dumps(_entry(talk)))
        except Full:
            self.lost += 1

    def close(self) -> None:
        """Write what is left."""
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                assert self._path is not None
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError as error:
                if self.lost == 0:
                    log.warning("%s: requests are not logged: %s", self._path, error)
                self.lost += 1


def _entry(talk: Talk) -> dict[str, Any]:
    results = [result for result in talk.results if result is not None]
    found: dict[str, Any] = {
        "time": round(time.time(), 3),
        "id": talk.request_id,
        "path": talk.path,
        "model": talk.book.name,
        "outcome": talk.outcome,
        "answers": len(talk.results),
        "total_ms": _ms(talk.took_s),
        "queue_ms": _ms(max((result.queue_s for result in results), default=0.0)),
        "prompt_tokens": sum(result.prompt_tokens for result in results),
        "cached_tokens": sum(result.cached_tokens for result in results),
        "tokens": sum(result.generated_tokens for result in results),
        "drafted_tokens": sum(result.drafted_tokens for result in results),
        "accepted_tokens": sum(result.accepted_tokens for result in results),
        "shared": not talk.pays,
    }
    # Of requests that share a computation, the last one bears its cost.
    costs = [source.ledger for source in talk.sources] if talk.pays else []
    return found | {
        "prompt_ms": _ms(sum(cost.prompt_s for cost in costs)),
        "decode_ms": _ms(sum(cost.decode_s for cost in costs)),
        "mask_ms": _ms(sum(cost.mask_s for cost in costs)),
        "cpu_s": round(sum(cost.cpu_s for cost in costs), 6),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
