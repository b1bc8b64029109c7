"""What a request asks for beside its answer: a deadline, a twin, a part of the cache of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slmq.batch.requests import RequestError

__all__ = ["Wishes", "read_wishes"]

DEADLINE = "x-slmq-deadline-ms"
IDEMPOTENCY = "idempotency-key"
SALT = "cache_salt"  # vLLM's name for it
LONGEST_MS = 1e9


@dataclass(frozen=True)
class Wishes:
    """What the server itself does about a request.

    Attributes
    ----------
    deadline_s : float or None
        Seconds within which the answer is of use.
    twin : str or None
        Requests of the same are one that was sent again.
    salt : tuple of (int or None, str or None)
        The API key, if there are several, and what the client says. Only requests of the same share
        what was computed.
    """

    deadline_s: float | None
    twin: str | None
    salt: tuple[int | None, str | None]


def read_wishes(scope: Mapping[str, Any], body: Mapping[str, Any]) -> tuple[Wishes, dict[str, Any]]:
    """The wishes of a request, and the rest of its body.

    Raises
    ------
    RequestError
    """
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    rest = dict(body)
    salt = rest.pop(SALT, None)
    if not (salt is None or isinstance(salt, str)):
        raise RequestError(f"{SALT}: expected a string, got {salt!r:.80}", SALT)
    key: int | None = scope.get("slmq.key")
    return Wishes(_deadline_s(headers.get(DEADLINE)), headers.get(IDEMPOTENCY), (key, salt)), rest


def _deadline_s(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found <= LONGEST_MS:
        raise RequestError(f"{DEADLINE}: expected milliseconds above 0, got {text!r:.40}", DEADLINE)
    return found / 1e3
