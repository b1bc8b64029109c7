"""HTTP with the standard library: proxies, certificates, credentials, and errors in plain words.

No server is believed: what it sends is metered in bytes and in time from the first byte of its
status line on, a redirect is checked before it is followed, and its words reach no terminal raw.
"""

from __future__ import annotations

import base64
import http.client
import importlib
import importlib.util
import io
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from slmq.errors import DownloadError, printable

__all__ = [
    "NETWORK_ERRORS",
    "SLOWEST_BYTES_PER_S",
    "FloodError",
    "Remote",
    "SlowError",
    "SourceError",
    "is_untrusted",
    "open_remote",
    "read_body",
    "reason",
    "site",
]

NETWORK_ERRORS = (OSError, http.client.HTTPException)
"""What urllib raises when the network fails (`URLError` and timeouts are `OSError`)."""

SLOWEST_BYTES_PER_S = 1024
"""A server that sends less over a whole timeout is given up."""

_USER_AGENT = "slmq (Python urllib)"
_MOVED = frozenset({301, 302, 303, 307, 308})
_REDIRECTS = 8
_LONGEST_ADDRESS = 8192  # signed addresses of content servers have some 1,500 characters
_HEADER_BYTES = 1 << 20  # of status line and headers; real ones have some 4 kB


class SourceError(DownloadError):
    """One source failed; another may do.

    Attributes
    ----------
    notable : bool
        False when the source merely lacks the file, which is no news while another has it.
    use_pip : bool
        True when pip, with its keyrings, client certificates and trust stores, may succeed.
    """

    def __init__(self, message: str, *, notable: bool = True, use_pip: bool = False) -> None:
        super().__init__(message)
        self.notable = notable
        self.use_pip = use_pip


@dataclass(frozen=True)
class Remote:
    """An address, and the credentials that its own host (and no redirect target) may see."""

    url: str
    authorization: str | None = None
    certificates: str | None = None

    @classmethod
    def parse(cls, url: str, certificates: str | None = None) -> Remote:
        """Split ``https://user:password@host/`` into an address and basic credentials."""
        parts = urlsplit(url)
        userinfo, _, host = parts.netloc.rpartition("@")
        if not userinfo:
            return cls(url, None, certificates)
        token = base64.b64encode(unquote(userinfo).encode()).decode()
        return cls(urlunsplit(parts._replace(netloc=host)), f"Basic {token}", certificates)

    def at(self, url: str) -> Remote:
        """Return another address; the credentials come along to the same host only."""
        same = urlsplit(url)[:2] == urlsplit(self.url)[:2]
        return Remote(url, self.authorization if same else None, self.certificates)


def site(url: str) -> str:
    """Return what to call the server of `url` in a message; credentials and tokens left out."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return printable(url)
    return printable(parts.netloc.rpartition("@")[2] or f"{parts.scheme}://{parts.path}")


def open_remote(
    remote: Remote,
    *,
    largest: int,
    headers: Mapping[str, str] | None = None,
    timeout_s: float,
) -> http.client.HTTPResponse:
    """Send a GET and return the open response, redirects followed.

    Parameters
    ----------
    remote : Remote
        Where.
    largest : int
        Bytes of body that the caller may read; a server that sends twice as many, however they
        are wrapped, is cut off.
    headers : mapping, optional
        Further headers of the request.
    timeout_s : float
        Silence that counts as a failure, and the time in which `SLOWEST_BYTES_PER_S` is measured.

    Raises
    ------
    OSError, http.client.HTTPException
        As urllib raises them; an HTTP status from 400 on is an ``urllib.error.HTTPError``.
        `SlowError` when the server drips, `FloodError` when it never ends.
    """
    opener = _opener(remote.certificates, largest)
    for _ in range(_REDIRECTS):
        try:
            request = urllib.request.Request(
                remote.url, headers={"User-Agent": _USER_AGENT, **(headers or {})}
            )
            if remote.authorization is not None:
                request.add_unredirected_header("Authorization", remote.authorization)
            response: http.client.HTTPResponse = opener.open(request, timeout=timeout_s)
            return response
        except urllib.error.HTTPError as error:
            if error.code not in _MOVED:
                raise
            with error:
                remote = _moved(remote, error)
        except ValueError as error:  # no address at all, or not one that HTTP can spell
            raise urllib.error.URLError(f"{site(remote.url)} is no address: {error}") from error
    raise urllib.error.URLError(f"it was redirected {_REDIRECTS} times")


def read_body(response: http.client.HTTPResponse, largest: int) -> bytes:
    """Read an answer of at most `largest` bytes; errors are those of `open_remote`."""
    pieces: list[bytes] = []
    left = largest + 1
    try:
        while left > 0 and (piece := response.read1(left)):
            pieces.append(piece)
            left -= len(piece)
    except ValueError as error:  # chunks of lengths that are none
        raise http.client.HTTPException(str(error)) from error
    if left <= 0:
        raise FloodError(f"it sends more than {largest:,} bytes")
    return b"".join(pieces)


def _moved(remote: Remote, error: urllib.error.HTTPError) -> Remote:
    """Where a redirect leads. Its body is not read."""
    target = error.headers.get("Location")
    if not target or len(target) > _LONGEST_ADDRESS:
        raise urllib.error.URLError("it redirects to nowhere")
    try:
        url = urljoin(remote.url, target)
        before, after = urlsplit(remote.url).scheme, urlsplit(url).scheme
    except ValueError as why:
        raise urllib.error.URLError(f"it redirects to no address: {why}") from error
    if after not in ("http", "https") or (before, after) == ("https", "http"):
        raise urllib.error.URLError(f"it redirects from {before} to {printable(after)}")
    return remote.at(url)


class SlowError(TimeoutError):
    """The server sends, but so little at a time that it would never end."""


class FloodError(OSError):
    """The server sends more than anybody asked for."""


class _Metered(io.RawIOBase):
    """The bytes of a connection, whatever they carry: status lines, headers, chunks or a body.

    What is measured is the time spent waiting for the server, not that of whoever reads.
    """

    def __init__(self, raw: io.RawIOBase, window_s: float | None) -> None:
        self._raw = raw
        self._window_s = window_s
        self._waited_s = 0.0
        self._got: int | None = None  # in this window; None until the first byte
        self.allowance = _HEADER_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        began = time.monotonic()
        got = self._raw.readinto(buffer)
        self.allowance -= got or 0
        if self.allowance < 0:
            raise FloodError("it sends without end")
        if self._got is None:
            self._got = got
        elif self._window_s is not None:
            self._got += got or 0
            self._waited_s += time.monotonic() - began
            if self._waited_s >= self._window_s:
                if self._got < self._window_s * SLOWEST_BYTES_PER_S:
                    raise SlowError(f"it sends less than {SLOWEST_BYTES_PER_S} bytes a second")
                self._waited_s, self._got = 0.0, 0
        return got

    def close(self) -> None:
        self._raw.close()
        super().close()


class _MeteredSocket:
    """As much of a socket as `http.client.HTTPResponse` uses."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def makefile(self, mode: str) -> io.BufferedReader:
        self.meter = _Metered(self._sock.makefile("rb", buffering=0), self._sock.gettimeout())
        return io.BufferedReader(self.meter)


def _response_of(largest: int) -> type[http.client.HTTPResponse]:
    class Response(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
            self._metered = _MeteredSocket(sock)
            as_socket: Any = self._metered
            super().__init__(as_socket, *args, **options)

        def begin(self) -> None:
            super().begin()
            self._metered.meter.allowance = 2 * largest + _HEADER_BYTES

    return Response


def _opener(certificates: str | None, largest: int) -> urllib.request.OpenerDirector:
    bundles = (certificates, os.environ.get("REQUESTS_CA_BUNDLE"), os.environ.get("CURL_CA_BUNDLE"))
    given = tuple(sorted({bundle for bundle in bundles if bundle}))

    class Plain(http.client.HTTPConnection):
        response_class = _response_of(largest)

    class Secure(http.client.HTTPSConnection):
        response_class = _response_of(largest)

    class PlainHandler(urllib.request.AbstractHTTPHandler):
        http_request = urllib.request.AbstractHTTPHandler.do_request_

        def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, request)

    class SecureHandler(urllib.request.AbstractHTTPHandler):
        https_request = urllib.request.AbstractHTTPHandler.do_request_

        def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, request, context=_tls(given))

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        PlainHandler(),
        SecureHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


@lru_cache(maxsize=4)
def _tls(bundles: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for bundle in bundles:
        if Path(bundle).is_file():
            context.load_verify_locations(bundle)
    # Some Pythons (python.org's for macOS) come without a trust store.
    if not context.cert_store_stats()["x509_ca"] and importlib.util.find_spec("certifi"):
        context.load_verify_locations(importlib.import_module("certifi").where())
    return context


def is_untrusted(error: BaseException) -> bool:
    """Tell whether a certificate was refused: no matter of trying again, maybe one for pip."""
    return isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError)


def reason(error: BaseException) -> str:
    """Say in a few words what went wrong on the network."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {printable(str(error.reason))}".rstrip()
    if isinstance(error, urllib.error.URLError):
        why = error.reason
        return reason(why) if isinstance(why, BaseException) else printable(why)
    if isinstance(error, socket.gaierror):
        return "its name is not known here"
    if isinstance(error, SlowError | FloodError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionError | http.client.HTTPException):
        return f"the connection was cut ({type(error).__name__})"
    return printable(str(error)) or type(error).__name__
