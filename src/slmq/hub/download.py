"""One file over HTTP: continued where it stopped, checked, and never visible half-done.

Bytes go to ``NAME.part``; ``NAME.part.json`` beside it remembers which version of the file they are
a part of, so that a later run, even of another process, asks for the rest of the same version.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import stat
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from slmq.errors import printable
from slmq.hub.cache import cache_error, require_free
from slmq.hub.progress import Progress
from slmq.hub.web import (
    NETWORK_ERRORS,
    FloodError,
    Remote,
    SlowError,
    SourceError,
    is_untrusted,
    open_remote,
    reason,
    site,
)
from slmq.machine.disk import append, create, read_regular, readable_bytes, remove

__all__ = ["ChecksumError", "Retry", "discard", "download", "fetch_verified"]

_PIECE_BYTES = 1 << 18
_WORTH_ANOTHER_BYTES = 1 << 16
_NOTE_BYTES = 4096
_LONGEST_VALIDATOR = 256
_NUMBER = "[0-9]{1,18}"
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
        Failures in a row, with next to nothing gained, after which we give up.
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
    remove(part, part.parent)
    remove(_note(part), part.parent)


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
    largest: int,
    size: int | None = None,
    reserve: int = 0,
    retry: Retry | None = None,
    variable: str = "SLMQ_CACHE_DIR",
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
    largest : int
        Bytes that the file may have at most.
    size : int, optional
        Bytes that the file must have.
    reserve : int
        Bytes of disk that will be needed afterwards; they must be free as well.
    retry : Retry, optional
        How stubborn to be.
    variable : str
        What chooses the folder, for errors.

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
            _Transfer(
                remote, part, label, progress, largest, size, reserve, retry.timeout_s, variable
            ).run()
            return
        except _CutError as cut:
            have = part.stat().st_size if part.exists() else 0
            # A server that breaks off after every byte would otherwise be asked for ever.
            failures = 1 if have >= best + _WORTH_ANOTHER_BYTES else failures + 1
            best = max(best, have)
            if failures >= retry.attempts:
                kept = (
                    f"; {readable_bytes(have)} are kept, run it again to continue" if have else ""
                )
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
    largest: int
    size: int | None
    reserve: int
    timeout_s: float
    variable: str

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
            response = open_remote(
                self.remote, headers=headers, largest=self.largest, timeout_s=self.timeout_s
            )
        except urllib.error.HTTPError as error:
            self._refused(error, have)
        except NETWORK_ERRORS as error:
            self._broken(error, reason(error))
        with response:
            have, total = self._agree(response, have)
            try:
                self._receive(response, have, total)
            except OSError as error:
                need = None if total is None else total - have + self.reserve
                raise cache_error(
                    error, self.part.parent, need=need, variable=self.variable
                ) from error

    def _broken(self, error: BaseException, words: str) -> NoReturn:
        """The line failed: ask again, unless that would not help."""
        if is_untrusted(error):
            raise SourceError(f"{site(self.remote.url)}: {words}", use_pip=True) from error
        if isinstance(error, SlowError | FloodError):
            raise SourceError(f"{site(self.remote.url)}: {words}") from error
        raise _CutError(words) from error

    def _state(self) -> tuple[int, str | None, int | None]:
        """What an earlier run left: bytes, validator, total; a part of unknown origin is none."""
        try:
            note = json.loads(read_regular(_note(self.part), _NOTE_BYTES))
            validator, total = note["validator"], note["total"]
            part = self.part.lstat()
            have = part.st_size if stat.S_ISREG(part.st_mode) else 0
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return 0, None, None
        if type(total) not in (int, type(None)) or type(validator) not in (str, type(None)):
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
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.strip().lower() != "identity":
            raise SourceError(
                f"{site(self.remote.url)}: sends the file encoded as {printable(encoding)}, "
                f"which was not asked for"
            )
        length = response.headers.get("Content-Length", "")
        total = int(length) if re.fullmatch(_NUMBER, length) else None
        if response.status == 206:
            got = re.fullmatch(
                rf"bytes ({_NUMBER})-{_NUMBER}/({_NUMBER}|\*)",
                response.headers.get("Content-Range", ""),
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
            if total > self.largest:
                raise self._too_much(total)
            require_free(
                self.part.parent,
                total - have + self.reserve,
                self.label,
                variable=self.variable,
            )
        return have, total

    def _too_much(self, got: int) -> ChecksumError:
        return ChecksumError(
            f"{site(self.remote.url)}: expected at most {self.largest:,} bytes, got {got:,}"
        )

    def _receive(self, response: http.client.HTTPResponse, have: int, total: int | None) -> None:
        """Write the body. An `OSError` that leaves here comes from the disk."""
        folder = self.part.parent
        if not have:
            # Begun anew before the note is written: a note never speaks of older bytes.
            create(self.part, folder).close()
        note = json.dumps({"validator": _validator(response), "total": total})
        with create(_note(self.part), folder) as file:
            file.write(note.encode("utf-8"))
        limit = self.largest if total is None else total
        done = have
        with append(self.part, folder) as file:
            self.progress.update(self.label, done, total)
            while True:
                try:
                    # read1 hands over what is there: when the line dies, little is lost.
                    piece = response.read1(_PIECE_BYTES)
                except http.client.IncompleteRead as error:
                    file.write(error.partial)
                    raise _CutError(
                        f"connection lost after {readable_bytes(done + len(error.partial))}"
                    ) from error
                except (*NETWORK_ERRORS, ValueError) as error:
                    self._broken(error, f"{reason(error)}, after {readable_bytes(done)}")
                if not piece:
                    break
                done += len(piece)
                if done > limit:
                    file.close()
                    discard(self.part)
                    raise (
                        self._too_much(done)
                        if total is None
                        else ChecksumError(
                            f"{site(self.remote.url)}: sent more than the promised {total:,} bytes"
                        )
                    )
                file.write(piece)
                self.progress.update(self.label, done, total)
            file.flush()
            os.fsync(file.fileno())
        if total is not None and done < total:
            whole = readable_bytes(total)
            raise _CutError(f"connection lost after {readable_bytes(done)} of {whole}")


def _validator(response: http.client.HTTPResponse) -> str | None:
    """Return what ``If-Range`` may carry: a strong ETag, else the date of the file."""
    etag: str | None = response.headers.get("ETag")
    if etag is None or not etag.startswith('"'):
        etag = response.headers.get("Last-Modified")
    # It is sent back as it came, so it is a plain line or none at all.
    plain = etag is not None and len(etag) <= _LONGEST_VALIDATOR
    return etag if plain and re.fullmatch("[ -~]+", etag or "") else None
