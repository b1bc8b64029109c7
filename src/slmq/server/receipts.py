"""Receipts of the latest answers, for whoever knows the id of the request."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from slmq.batch.receipts import make_receipt
from slmq.server.faults import RefusedError
from slmq.server.replies import as_json
from slmq.server.shelf import LoadedAdapter

if TYPE_CHECKING:
    from slmq.server.talk import Talk

__all__ = ["Receipts"]

KEPT_BYTES = 16 << 20


class Receipts:
    """What was answered lately; the oldest make room.

    Parameters
    ----------
    kept_bytes : int
        Most bytes of all that are kept.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept: OrderedDict[str, tuple[int | None, bytes]] = OrderedDict()
        self._most = kept_bytes
        self._bytes = 0

    def add(self, talk: Talk) -> None:
        """Keep the receipt of a complete answer."""
        submitted, base = talk.submitted, talk.book.base or talk.book
        loaded = submitted.loaded
        body = {name: value for name, value in submitted.body.items() if name != "model"}
        receipt = make_receipt(
            model=base.name,
            named=submitted.fingerprint,
            loading=submitted.loaded.options,
            url=submitted.url,
            body=body,
            defaults=submitted.loaded.suggested,
            seed=submitted.seed,
            adapter=loaded.digest if isinstance(loaded, LoadedAdapter) else None,
            results=[result for result in talk.results if result is not None],
        )
        data = as_json(receipt)
        self._kept[talk.request_id] = talk.key, data
        self._bytes += len(data)
        while self._bytes > self._most:
            _, (_, oldest) = self._kept.popitem(last=False)
            self._bytes -= len(oldest)

    def find(self, request_id: str, key: int | None) -> bytes:
        """A receipt as JSON; each API key has its own.

        Raises
        ------
        RefusedError
        """
        owner, data = self._kept.get(request_id, (key, b""))
        if not data or owner != key:
            raise RefusedError(404, f"there is no receipt of {request_id!r:.80}", code="not_found")
        return data
