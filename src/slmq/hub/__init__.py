"""Models by name: the catalogue, the cache, and the ways to fill it.

>>> from slmq import hub
>>> hub.resolve("smollm2-135m-instruct").path          # doctest: +SKIP
"""

from __future__ import annotations

import os

from slmq.hub.cache import cache_dir
from slmq.hub.catalogue import (
    ArchiveEntry,
    CatalogueEntry,
    FileEntry,
    RepositoryEntry,
    catalogue,
)
from slmq.hub.progress import LogProgress, Progress
from slmq.hub.store import CachedModel, ResolvedModel, Store

__all__ = [
    "ArchiveEntry",
    "CachedModel",
    "CatalogueEntry",
    "FileEntry",
    "LogProgress",
    "Progress",
    "RepositoryEntry",
    "ResolvedModel",
    "cache_dir",
    "catalogue",
    "list_models",
    "pull",
    "remove",
    "resolve",
]


def resolve(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
) -> ResolvedModel:
    """Find a model on this disk, and download it when it is not there.

    Parameters
    ----------
    model : str or os.PathLike
        A path that exists, a catalogue name, or a hub id: ``org/name``, or ``org/name:pattern``
        for the GGUF file that the pattern matches.
    revision : str, optional
        Branch, tag or commit of a hub id.
    local_files_only : bool
        Never ask the network.
    progress : Progress, optional
        Who is told; messages go to the logger ``slmq.hub`` by default.

    Raises
    ------
    ModelNotFoundError
        When nothing answers to the name, or it is not on disk and `local_files_only` is set.
    DownloadError
        When it cannot be fetched, a checksum is wrong, or the disk is full or refuses.
    ValueError
        When `revision` is given for a catalogue name whose file is pinned.
    """
    return Store().resolve(
        model, revision=revision, local_files_only=local_files_only, progress=progress
    )


def pull(
    name: str, *, revision: str | None = None, progress: Progress | None = None
) -> ResolvedModel:
    """Download a model unless it is there; a hub id is compared with the hub's newest version.

    Parameters and errors are those of `resolve`.
    """
    return Store().resolve(name, revision=revision, refresh=True, progress=progress)


def list_models() -> list[CachedModel]:
    """Return the models in the cache, sorted by name; those that are not whole are left out."""
    return Store().list_models()


def remove(name: str) -> int:
    """Delete a model from the cache and return the bytes freed.

    Parameters
    ----------
    name : str
        A catalogue name, or the hub id of a model that slmq pulled (without a pattern: all of its
        files that were pulled).

    Raises
    ------
    ModelNotFoundError
        When the cache has no such model. Nothing outside the cache is ever deleted.
    DownloadError
        When the operating system refuses.
    """
    return Store().remove(name)
