"""Whether the server is well: what /livez, /readyz and /health say."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from slmq.server.faults import RefusedError

if TYPE_CHECKING:
    from slmq.server.service import Service

__all__ = ["ALIVE", "PATHS", "Health"]

ALIVE = "/livez"
PATHS = (ALIVE, "/readyz", "/health", "/v1/health")
STUCK_S = 120.0  # without a step while there is something to do


class Health:
    """Looks at the models. All of it belongs to the event loop.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._steps: dict[str, tuple[int, float]] = {}  # of models: steps, and since when so many

    def check(self, path: str) -> dict[str, str]:
        """What is answered at one of `PATHS`.

        Raises
        ------
        RefusedError
            If a model that has something to do does not get on with it; but for `ALIVE`, also if
            no requests are taken.
        """
        if path != ALIVE:
            self._service.require_open()
        now_s = time.monotonic()
        for book in self._service.shelf.books:
            if book.loaded is None or book.base is not None:
                continue
            stats = book.loaded.model.stats()
            runs, since_s = self._steps.get(book.name, (-1, now_s))
            if stats.runs != runs or stats.running == 0:
                since_s = now_s
            self._steps[book.name] = stats.runs, since_s
            if now_s - since_s > STUCK_S:
                raise RefusedError(503, f"{book.name} has made no step for {now_s - since_s:.0f} s")
        return {"status": "ok"}
