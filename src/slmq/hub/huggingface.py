"""Models of a hub repository: fetched, checked, and kept where other programs look for them.

The transfer is our own; docs/design/hub.md says why. A model that another program fetched is not
fetched again.
"""

from __future__ import annotations

import hashlib
import urllib.error
from functools import partial
from pathlib import Path
from urllib.parse import quote

from slmq.errors import DownloadError
from slmq.hub import snapshots
from slmq.hub.cache import cache_error, locked, make_folder, require_free
from slmq.hub.download import ChecksumError, Retry, discard, download, fetch_verified
from slmq.hub.listing import HubFile, Listing, ask_hub, hub_remote, refusal
from slmq.hub.names import HubModel
from slmq.hub.progress import Progress
from slmq.hub.settings import hub_is_offline
from slmq.hub.web import SourceError
from slmq.machine.disk import Digest, append, hash_file, make_folders, publish, readable_bytes

__all__ = ["download_model"]

_PLACE = "HF_HOME"  # what chooses the folder, for errors


def download_model(model: HubModel, progress: Progress, retry: Retry | None = None) -> Path:
    """Download what is missing of a model, check it, and return its path.

    Parameters
    ----------
    model : HubModel
        What to bring.
    progress : Progress
        Who is told.
    retry : Retry, optional
        How stubborn to be.

    Raises
    ------
    ModelNotFoundError
        When the repository, the revision or a fitting file does not exist.
    DownloadError
        When the hub does not answer or refuses (a gated model), or what it sends is not what it
        promised.
    CacheError
        When the disk is full or refuses.
    """
    if hub_is_offline():
        raise DownloadError(f"{model} is not in the cache, and HF_HUB_OFFLINE forbids downloading")
    listing = ask_hub(model)
    repo = snapshots.repo_folder(model)
    with locked(snapshots.lock_path(model), progress.message, variable=_PLACE):
        try:
            _fetch_missing(model, listing, progress, retry)
            snapshots.write_ref(model, listing.commit)
        except OSError as error:
            raise cache_error(error, repo, variable=_PLACE) from error
    names = [file.name for file in listing.files]
    return snapshots.model_path(repo / "snapshots" / listing.commit, names)


def _fetch_missing(
    model: HubModel, listing: Listing, progress: Progress, retry: Retry | None
) -> None:
    repo = snapshots.repo_folder(model)
    snapshot, blobs = repo / "snapshots" / listing.commit, repo / "blobs"
    missing = [file for file in listing.files if not (snapshot / file.name).exists()]
    wanted = [file for file in missing if not _has(blobs / file.checksum, file)]
    # Two names of one file, as of two empty ones, are fetched once.
    need = sum({file.checksum: file.size for file in wanted}.values())
    require_free(repo, need, str(model), variable=_PLACE)
    if missing:
        progress.message(f"{model}: downloading {len(missing)} files, {readable_bytes(need)}")
        make_folder(repo, variable=_PLACE)
        make_folders(blobs, repo)
    done = 0
    for file in missing:
        blob = blobs / file.checksum
        if not _has(blob, file):
            told = _Whole(progress, str(model), done, need)
            _fetch(model, listing.commit, file, blob, told, retry)
            done += file.size
        snapshots.link_blob(model, blob, snapshot / file.name)


def _has(blob: Path, file: HubFile) -> bool:
    try:
        return blob.is_file() and blob.stat().st_size == file.size
    except OSError:
        return False


class _Whole:
    """The progress of a whole model, told that of one file after the other."""

    def __init__(self, progress: Progress, label: str, before: int, total: int) -> None:
        self._progress = progress
        self._label = label
        self._before = before
        self._total = total
        self.message = progress.message

    def update(self, label: str, done: int, total: int | None) -> None:
        """Report the bytes of this file and those before it."""
        self._progress.update(self._label, self._before + done, self._total)


def _fetch(
    model: HubModel,
    commit: str,
    file: HubFile,
    blob: Path,
    progress: Progress,
    retry: Retry | None,
) -> None:
    """Bring one file under its checksum into the cache."""
    part = blob.with_name(f"{blob.name}.slmq.part")
    address = f"{model.repo}/resolve/{commit}/{quote(file.name)}"
    fetch = partial(
        download,
        hub_remote(address),
        part,
        label=file.name,
        progress=progress,
        largest=file.size,
        size=file.size,
        retry=retry,
        variable=_PLACE,
    )
    try:
        fetch_verified(fetch, part, partial(_verify, part, file))
    except SourceError as error:
        if isinstance(error.__cause__, urllib.error.HTTPError):
            raise refusal(model, error.__cause__, file.name) from error
        raise DownloadError(f"{model}: {file.name}: {error}") from error
    repo = snapshots.repo_folder(model)
    with append(part, repo) as opened:
        publish(opened, part, blob, repo)
    discard(part)


def _verify(part: Path, file: HubFile) -> None:
    """Hold the hub's checksum against what arrived: sha256, or that of a Git object."""
    kind = "sha256" if len(file.checksum) == 64 else "SHA-1 of the Git object"
    digest: Digest = hashlib.sha256()
    if kind != "sha256":
        digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    got = hash_file(part, digest)
    if got != file.checksum:
        raise ChecksumError(
            f"wrong checksum of {file.name}: expected {kind} {file.checksum}, got {got}; "
            "the file was deleted; try again"
        )
