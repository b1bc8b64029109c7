"""One file over HTTP: continued where it stopped, checked, and never visible half-done.

Bytes go to ``NAME.part``; ``NAME.part.json`` beside it remembers which version of the file they are
a part of, so that a later run, even of another process, asks for the rest of the same version.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from slmq.hub.cache import cache_error, megabytes, require_free
from slmq.hub.progress import Progress
from slmq.hub.web import (
    NETWORK_ERRORS,
    Remote,
    SourceError,
    is_untrusted,
    open_remote,
    reason,
    site,
)

__all__ = ["ChecksumError", "Retry", "discard", "download", "fetch_verified"]

_PIECE_BYTES = 1 << 18
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_PIP_MAY_KNOW = frozenset({401, 403, 407})


class ChecksumError(SourceError):
    """The bytes that arrived are not the bytes that were promised."""


class _CutError(Exception):
    """The transfer broke off; what arrived is kept and the rest may be asked for."""


@dataclass(frozen=True)
class Retry:
    """How stubborn a download is.

    Attributes
    ----------
    attempts : int
        Failures in a row, without a byte gained, after which we give up.
    backoff_s : float
        Wait after the first failure; it doubles with each further one.
    timeout_s : float
        Silence of the server that counts as a failure.
    """

    attempts: int = 4
    backoff_s: float = 1.0
    timeout_s: float = 30.0


def discard(part: Path) -> None:
    """Delete a partial file and what we remember of it."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def fetch_verified(fetch: Callable[[], None], part: Path, verify: Callable[[], None]) -> None:
    """Fetch and verify; a mismatch deletes the file.

    When the file had been continued from an earlier run, the mismatch may come of the old half,
    so it is fetched once more from the start before we give up.

    Raises
    ------
    ChecksumError
        From `verify`, when a file fetched in one go is wrong.
    """
    continued = part.exists()
    fetch()
    try:
        verify()
    except ChecksumError:
        discard(part)
        if not continued:
            raise
        fetch()
        try:
            verify()
        except ChecksumError:
            discard(part)
            raise


def download(
    remote: Remote,
    part: Path,
    *,
    label: str,
    progress: Progress,
    size: int | None = None,
    reserve: int = 0,
    retry: Retry | None = None,
) -> None:
    """Bring `remote` to the file `part`, continuing what is there.

    Parameters
    ----------
    remote : Remote
        Where from.
    part : Path
        Where to; its folder exists.
    label : str
        Name of the job in progress reports and messages.
    progress : Progress
        Who is told.
    size : int, optional
        Bytes that the file must have.
    reserve : int
        Bytes of disk that will be needed afterwards; they must be free as well.
    retry : Retry, optional
        How stubborn to be.

    Raises
    ------
    SourceError
        When the server refuses, offers another size, or breaks off again and again. What arrived
        is kept.
    CacheError
        When the disk is full or refuses.
    """
    retry = retry or Retry()
    failures = 0
    best = 0
    while True:
        try:
            _Transfer(remote, part, label, progress, size, reserve, retry.timeout_s).run()
            return
        except _CutError as cut:
            have = part.stat().st_size if part.exists() else 0
            failures = 1 if have > best else failures + 1
            best = max(best, have)
            if failures >= retry.attempts:
                kept = f"; {megabytes(have)} are kept, run it again to continue" if have else ""
                raise SourceError(f"{site(remote.url)}: {cut}{kept}") from cut.__cause__
            wait = retry.backoff_s * 2 ** (failures - 1)
            progress.message(f"{label}: {cut}; trying again in {wait:.0f} s")
            time.sleep(wait)


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


@dataclass(frozen=True)
class _Transfer:
    """One request, from what is on disk to the end of the file."""

    remote: Remote
    part: Path
    label: str
    progress: Progress
    size: int | None
    reserve: int
    timeout_s: float

    def run(self) -> None:
        have, validator, total = self._state()
        if have and have == (self.size or total):
            return
        headers = {}
        if have:
            headers["Range"] = f"bytes={have}-"
            if validator is not None:
                headers["If-Range"] = validator
        try:
            response = open_remote(self.remote, headers=headers, timeout_s=self.timeout_s)
        except urllib.error.HTTPError as error:
            self._refused(error, have)
        except NETWORK_ERRORS as error:
            if is_untrusted(error):
                raise SourceError(
                    f"{site(self.remote.url)}: {reason(error)}", use_pip=True
                ) from error
            raise _CutError(reason(error)) from error
        with response:
            have, total = self._agree(response, have)
            try:
                self._receive(response, have, total)
            except OSError as error:
                need = None if total is None else total - have + self.reserve
                raise cache_error(error, self.part.parent, need=need) from error

    def _state(self) -> tuple[int, str | None, int | None]:
        """What an earlier run left: bytes, validator, total; a part of unknown origin is none."""
        try:
            note = json.loads(_note(self.part).read_text(encoding="utf-8"))
            validator, total = note["validator"], note["total"]
            have = self.part.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return 0, None, None
        limit = self.size or total
        return (0, None, None) if limit is not None and have > limit else (have, validator, total)

    def _refused(self, error: urllib.error.HTTPError, have: int) -> NoReturn:
        with error:
            if error.code == 416 and have:
                discard(self.part)
                raise _CutError("the server no longer has the rest of this file") from error
            if error.code in _TRANSIENT:
                raise _CutError(reason(error)) from error
            raise SourceError(
                f"{site(self.remote.url)}: {reason(error)}", use_pip=error.code in _PIP_MAY_KNOW
            ) from error

    def _agree(self, response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
        """Check what the server sends; return where its bytes start and the size of the file."""
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        if response.status == 206:
            got = re.fullmatch(
                r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "")
            )
            if got is None or int(got[1]) != have:
                discard(self.part)
                raise _CutError("the server sent a different range than requested")
            total = int(got[2]) if got[2] != "*" else None if total is None else have + total
        else:
            have = 0
        if self.size is not None and total is not None and total != self.size:
            raise ChecksumError(
                f"{site(self.remote.url)}: expected a file of {self.size:,} bytes, "
                f"the server has {total:,}"
            )
        total = total if total is not None else self.size
        if total is not None:
            require_free(self.part.parent, total - have + self.reserve, self.label)
        return have, total

    def _receive(self, response: http.client.HTTPResponse, have: int, total: int | None) -> None:
        """Write the body. An `OSError` that leaves here comes from the disk."""
        if not have:
            # Truncated before the note is written: a note never speaks of older bytes.
            self.part.open("wb").close()
        note = json.dumps({"validator": _validator(response), "total": total})
        _note(self.part).write_text(note, encoding="utf-8")
        done = have
        with self.part.open("ab") as file:
            self.progress.update(self.label, done, total)
            while True:
                try:
                    # read1 hands over what is there: when the line dies, little is lost.
                    piece = response.read1(_PIECE_BYTES)
                except http.client.IncompleteRead as error:
                    file.write(error.partial)
                    raise _CutError(
                        f"connection lost after {megabytes(done + len(error.partial))}"
                    ) from error
                except NETWORK_ERRORS as error:
                    raise _CutError(f"{reason(error)}, after {megabytes(done)}") from error
                if not piece:
                    break
                file.write(piece)
                done += len(piece)
                self.progress.update(self.label, done, total)
            file.flush()
            os.fsync(file.fileno())
        if total is not None and done < total:
            raise _CutError(f"connection lost after {megabytes(done)} of {megabytes(total)}")
        if total is not None and done > total:
            discard(self.part)
            raise ChecksumError(
                f"{site(self.remote.url)}: sent more than the promised {total:,} bytes"
            )


def _validator(response: http.client.HTTPResponse) -> str | None:
    """Return what ``If-Range`` may carry: a strong ETag, else the date of the file."""
    etag: str | None = response.headers.get("ETag")
    if etag is not None and etag.startswith('"'):
        return etag
    return response.headers.get("Last-Modified")
