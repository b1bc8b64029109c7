"""What a repository holds, as the hub says: every field is checked before anything relies on it."""

from __future__ import annotations

import json
import queue
import re
import urllib.error
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from slmq.errors import DownloadError, ModelNotFoundError, printable
from slmq.hub.background import in_background
from slmq.hub.names import HubModel, is_plain_name, select_files
from slmq.hub.settings import hub_endpoint, hub_token
from slmq.hub.web import NETWORK_ERRORS, Remote, open_remote, read_body, reason

__all__ = ["HubFile", "Listing", "ask_hub", "hub_remote", "refusal"]

WAIT_S = 8.0
"""Seconds that the hub has for the whole listing, the name lookup included."""

_LISTING_BYTES = 8 << 20
_MOST_NAMES = 20_000
_MOST_FILES = 1_000
_LARGEST_COMPANION = 256 << 20
_LARGEST_SIZE = 1 << 50


@dataclass(frozen=True)
class HubFile:
    """A file that is to be fetched.

    Attributes
    ----------
    name : str
        Its name in the repository, fit for every disk.
    size : int
        Bytes that it has.
    checksum : str
        sha256 of a large file (64 digits), or the SHA-1 of its Git object (40): the name under
        which the cache keeps it.
    """

    name: str
    size: int
    checksum: str


@dataclass(frozen=True)
class Listing:
    """A version of a repository, and what of it is wanted."""

    commit: str
    files: tuple[HubFile, ...]


def hub_remote(path: str) -> Remote:
    """Return an address of the hub, with the user's token."""
    remote = Remote.parse(f"{hub_endpoint()}/{path}")
    token = hub_token()
    return remote if token is None else Remote(remote.url, f"Bearer {token}")


def ask_hub(model: HubModel) -> Listing:
    """Ask the hub which version there is, and choose the files to load.

    Raises
    ------
    ModelNotFoundError
        When the repository, the revision or a fitting file does not exist.
    DownloadError
        When the hub does not answer, refuses, or says what no hub would say.
    """
    # No socket timeout covers the name lookup, nor all of a long answer; hence a thread.
    replies: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            replies.put(_read_listing(model))
        except Exception as error:  # it belongs to the thread that waits
            replies.put(error)

    in_background(ask)
    try:
        reply = replies.get(timeout=WAIT_S)
    except queue.Empty:
        reply = TimeoutError()
    if isinstance(reply, urllib.error.HTTPError):
        raise refusal(model, reply) from reply
    if isinstance(reply, NETWORK_ERRORS):
        raise DownloadError(
            f"{model}: {hub_endpoint()} did not answer ({reason(reply)})"
        ) from reply
    if isinstance(reply, Exception):
        raise reply
    return _parse(model, reply)


def _read_listing(model: HubModel) -> bytes:
    path = f"api/models/{model.repo}"
    if model.revision is not None:
        path += f"/revision/{quote(model.revision, safe='')}"
    remote = hub_remote(f"{path}?blobs=true")
    with open_remote(remote, largest=_LISTING_BYTES, timeout_s=WAIT_S) as response:
        return read_body(response, _LISTING_BYTES)


def refusal(
    model: HubModel, error: urllib.error.HTTPError, file: str | None = None
) -> DownloadError | ModelNotFoundError:
    """Say what a status of the hub means, for the listing or a file, and what to do."""
    page = f"{hub_endpoint()}/{model.repo}"
    code = error.headers.get("X-Error-Code")
    if code == "GatedRepo":
        return DownloadError(
            f"{model} is gated; accept its conditions at {page}, then set HF_TOKEN to a token of "
            "your account (or run `hf auth login`)"
        )
    if code == "RevisionNotFound":
        return ModelNotFoundError(f"{model}: {page} has no revision {model.revision!r}")
    if file is None and (code == "RepoNotFound" or (code is None and error.code in (401, 404))):
        return ModelNotFoundError(
            f"{model}: {page} does not exist or is private; if it is private, set HF_TOKEN "
            "to a token of an account that has access"
        )
    what = "" if file is None else f" {file}"
    return DownloadError(f"{model}: {hub_endpoint()} refuses{what} ({reason(error)})")


def _nonsense(model: HubModel, what: str) -> DownloadError:
    return DownloadError(f"{model}: {hub_endpoint()} sent {what}; it is no model hub, or a bad one")


def _parse(model: HubModel, body: bytes) -> Listing:
    try:
        listing = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _nonsense(model, "a listing that is not JSON") from error
    if not isinstance(listing, dict):
        raise _nonsense(model, f"a listing that is a {type(listing).__name__}")
    commit = listing.get("sha")
    if not isinstance(commit, str) or re.fullmatch("[0-9a-f]{40}", commit) is None:
        raise _nonsense(model, f"{_shown(commit)} as its commit")
    siblings = listing.get("siblings")
    if not isinstance(siblings, list) or len(siblings) > _MOST_NAMES:
        count = len(siblings) if isinstance(siblings, list) else "no"
        raise _nonsense(model, f"{count} files, where 0 to {_MOST_NAMES:,} are expected")
    by_name: dict[str, dict[str, Any]] = {}
    for sibling in siblings:
        name = sibling.get("rfilename") if isinstance(sibling, dict) else None
        if not isinstance(name, str) or name in by_name:
            raise _nonsense(model, f"{_shown(name)} as the name of a file, or sent it twice")
        by_name[name] = sibling
    chosen = select_files(list(by_name), model)
    if len(chosen) > _MOST_FILES:
        raise _nonsense(model, f"{len(chosen)} files that make up one model")
    return Listing(commit, tuple(_file(model, name, by_name[name]) for name in chosen))


def _file(model: HubModel, name: str, sibling: dict[str, Any]) -> HubFile:
    if not is_plain_name(name):
        raise _nonsense(model, f"{_shown(name)} as the name of a file")
    lfs = sibling.get("lfs")
    size = sibling.get("size")
    weights = name.lower().endswith((".gguf", ".safetensors"))
    largest = _LARGEST_SIZE if weights else _LARGEST_COMPANION
    if type(size) is not int or not 0 <= size <= largest:
        raise _nonsense(
            model,
            f"{_shown(size)} as the size of {name}, where 0 to {largest:,} bytes are expected",
        )
    if lfs is None:
        return HubFile(name, size, _checksum(model, name, sibling.get("blobId"), 40))
    if not isinstance(lfs, dict) or lfs.get("size", size) != size:
        raise _nonsense(model, f"two sizes of {name}")
    return HubFile(name, size, _checksum(model, name, lfs.get("sha256"), 64))


def _checksum(model: HubModel, name: str, value: object, digits: int) -> str:
    if not isinstance(value, str) or re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is None:
        raise _nonsense(model, f"{_shown(value)} as the checksum of {name}")
    return value


def _shown(value: object) -> str:
    return printable(repr(value)[:100]) if not isinstance(value, str) else printable(value, 100)
