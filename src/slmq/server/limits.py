"""How much the server takes from its clients, and who may be one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may do.

    Attributes
    ----------
    keys : tuple of str
        API keys; none lets everybody in who can reach the server.
    hosts : tuple of str
        Names of this server beside localhost, its own name and addresses; "*" is any.
    origins : tuple of str
        Pages that may use it beside its own, such as "https://chat.example.org"; "*" is any.
    body_bytes : int
        Longest body of a request.
    upload_bytes : int
        Longest file.
    head_s, body_s, write_s : float
        Seconds until the head of a request, and its body, are here, and until a client that does
        not read is given up.
    ping_s : float
        Seconds between signs of life in a stream that has nothing to say.
    answer_s : float, optional
        Seconds that an answer may take.
    drain_s : float
        Seconds that running answers have left when the server is told to end.
    connections : int
        At a time.
    adapters : Path, optional
        A folder: adapters in it may be loaded by clients.
    """

    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    body_bytes: int = 4 << 20
    upload_bytes: int = 64 << 20
    head_s: float = 20.0
    body_s: float = 30.0
    write_s: float = 60.0
    ping_s: float = 15.0
    answer_s: float | None = None
    drain_s: float = 30.0
    connections: int = 1000
    adapters: Path | None = None
