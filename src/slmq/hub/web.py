"""HTTP with the standard library: proxies, certificates, credentials, and errors in plain words."""

from __future__ import annotations

import base64
import http.client
import importlib
import importlib.util
import os
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from slmq.errors import DownloadError

__all__ = [
    "NETWORK_ERRORS",
    "Remote",
    "SourceError",
    "is_untrusted",
    "open_remote",
    "reason",
    "site",
]

NETWORK_ERRORS = (OSError, http.client.HTTPException)
"""What urllib raises when the network fails (`URLError` and timeouts are `OSError`)."""

_USER_AGENT = "slmq (Python urllib)"


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
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or f"{parts.scheme}://{parts.path}"


def open_remote(
    remote: Remote, *, headers: Mapping[str, str] | None = None, timeout_s: float
) -> http.client.HTTPResponse:
    """Send a GET and return the open response, redirects followed.

    Raises
    ------
    OSError, http.client.HTTPException
        As urllib raises them; an HTTP status from 400 on is an ``urllib.error.HTTPError``.
    """
    request = urllib.request.Request(
        remote.url, headers={"User-Agent": _USER_AGENT, **(headers or {})}
    )
    if remote.authorization is not None:
        request.add_unredirected_header("Authorization", remote.authorization)
    opener = _opener(remote.certificates)
    response: http.client.HTTPResponse = opener.open(request, timeout=timeout_s)
    return response


def _opener(certificates: str | None) -> urllib.request.OpenerDirector:
    bundles = (certificates, os.environ.get("REQUESTS_CA_BUNDLE"), os.environ.get("CURL_CA_BUNDLE"))
    context = _tls(tuple(sorted({bundle for bundle in bundles if bundle})))
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
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
        return f"HTTP {error.code} {error.reason}".rstrip()
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return reason(error.reason)
    if isinstance(error, socket.gaierror):
        return "its name is not known here"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionError | http.client.HTTPException):
        return f"the connection was cut ({type(error).__name__})"
    return str(error) or type(error).__name__
