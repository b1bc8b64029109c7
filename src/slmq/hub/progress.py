"""How a download tells its caller what it does.

The hub never draws: it calls a `Progress`, and whoever owns the terminal decides what to show.
"""

from __future__ import annotations

import logging
from typing import Protocol

__all__ = ["LogProgress", "Progress"]

_log = logging.getLogger("slmq.hub")


class Progress(Protocol):
    """Receives the news of a download.

    The calls may come from another thread than the one that started the download, but never two
    at a time.
    """

    def message(self, text: str) -> None:
        """Say something once: which source is used, which did not answer, what is tried again."""

    def update(self, label: str, done: int, total: int | None) -> None:
        """Report `done` of `total` bytes of the job `label`; a new label is a new job.

        `total` is None while it is unknown. `done` can fall when a server makes us start again.
        """


class LogProgress:
    """The default: messages go to the logger ``slmq.hub`` at level INFO, bytes go nowhere."""

    def message(self, text: str) -> None:
        """Log the message."""
        _log.info("%s", text)

    def update(self, label: str, done: int, total: int | None) -> None:
        """Stay quiet; a log is no place for a bar."""
