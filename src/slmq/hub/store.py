"""From what a user types to a path: a file or folder, a catalogue name, or a hub id."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from slmq.errors import Error, ModelNotFoundError
from slmq.hub import snapshots
from slmq.hub.cache import CacheError, cache_dir, cache_error, locked, make_folder, tree_bytes
from slmq.hub.catalogue import (
    ArchiveEntry,
    CatalogueEntry,
    FileEntry,
    RepositoryEntry,
    catalogue,
    is_model_name,
    nearest,
)
from slmq.hub.names import HubModel, parse_hub_id
from slmq.hub.progress import LogProgress, Progress
from slmq.machine.disk import create, publish, read_regular, remove, remove_tree

if TYPE_CHECKING:
    from slmq.hub.download import Retry

__all__ = ["CachedModel", "ResolvedModel", "Store"]

NOTE_BYTES = 4096  # of what is remembered about a hub model
MANY = 8  # names that fit into an error


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this disk.

    Attributes
    ----------
    path : Path
        A ``.gguf`` file, or a folder with ``config.json``.
    name : str
        What to call it: the catalogue name, the hub id, or the name of the file or folder.
    entry : CatalogueEntry or None
        Licence, context and suggested sampling when the catalogue knows it.
    """

    path: Path
    name: str
    entry: CatalogueEntry | None


@dataclass(frozen=True)
class CachedModel:
    """A model that was pulled.

    Attributes
    ----------
    name : str
        Catalogue name or hub id.
    path : Path
        Where it lies.
    bytes : int
        Its size on disk.
    source : str
        ``"catalogue"`` or ``"hub"``.
    revision : str or None
        Of a hub model that was pulled with one.
    licence : str or None
        When the catalogue knows it.
    """

    name: str
    path: Path
    bytes: int
    source: str
    revision: str | None = None
    licence: str | None = None


def _hub_id(entry: CatalogueEntry | None) -> str | None:
    return entry.repository if isinstance(entry, RepositoryEntry) else None


def _existing(text: str) -> Path | None:
    """Return the path that `text` names, if it does."""
    try:
        path = Path(text).expanduser()
        return path if text and path.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None  # too long for a name, a null byte, no such user: no path at any rate


class Store:
    """The models under one cache folder.

    Parameters
    ----------
    root : Path, optional
        The cache folder; `cache_dir` by default.
    entries : mapping of str to CatalogueEntry, optional
        The catalogue; the shipped one by default.
    retry : Retry, optional
        How stubborn downloads are.
    """

    def __init__(
        self,
        root: Path | None = None,
        entries: Mapping[str, CatalogueEntry] | None = None,
        retry: Retry | None = None,
    ) -> None:
        self.root = cache_dir() if root is None else root
        self.entries = catalogue() if entries is None else entries
        self.retry = retry

    def resolve(
        self,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        refresh: bool = False,
        progress: Progress | None = None,
    ) -> ResolvedModel:
        """Find a model, downloading it when needed; see `slmq.hub.resolve`."""
        text = os.fspath(model)
        path = _existing(text)
        if path is not None:
            return ResolvedModel(path, path.stem if path.is_file() else path.absolute().name, None)
        progress = progress or LogProgress()
        entry = self._named(text)
        if isinstance(entry, (ArchiveEntry, FileEntry)):
            if revision is not None:
                raise ValueError(
                    f"revision applies to hub ids; the catalogue pins that of {text}, got "
                    f"{revision!r}"
                )
            return self._resolve_entry(entry, local_files_only, progress)
        hub = parse_hub_id(_hub_id(entry) or text, revision)
        if hub is None:
            raise self._unknown(text)
        name = text if entry is None else entry.name
        return self._resolve_hub(hub, name, local_files_only, refresh, progress)

    def _named(self, text: str) -> CatalogueEntry | None:
        """Return the entry of a name of the catalogue, whose names are in lower case."""
        return self.entries.get(text.lower())

    def _unknown(self, text: str) -> ModelNotFoundError:
        close = nearest(text, self.entries)
        meant = f"; did you mean {' or '.join(close)}?" if close else ""
        known = ", ".join(sorted(self.entries))
        if len(self.entries) > MANY:
            known = "`slmq list --catalogue`"
        return ModelNotFoundError(
            f"no model {text!r}: not a file or folder, not in the catalogue ({known}), "
            f"and not a hub id (org/name or org/name:gguf-pattern){meant}"
        )

    def _entry_of(self, hub: HubModel) -> RepositoryEntry | None:
        """Return what the catalogue knows about a repository."""
        for entry in self.entries.values():
            if isinstance(entry, RepositoryEntry) and entry.repository == str(hub):
                return entry
        return None

    def _lock(self, name: str) -> Path:
        return self.root / "locks" / f"{name}.lock"

    def _file(self, entry: ArchiveEntry | FileEntry) -> Path:
        """Where the model lies: a file, or a folder."""
        last = "model" if isinstance(entry, ArchiveEntry) else entry.file
        return self.root / "models" / entry.name / last

    def _is_whole(self, entry: ArchiveEntry | FileEntry) -> bool:
        path = self._file(entry)
        sizes = {path: entry.bytes}
        if isinstance(entry, ArchiveEntry):
            sizes = {path / file.path: file.bytes for file in entry.files}
        try:
            return all(file.stat().st_size == size for file, size in sizes.items())
        except OSError:
            return False

    def _resolve_entry(
        self, entry: ArchiveEntry | FileEntry, local_files_only: bool, progress: Progress
    ) -> ResolvedModel:
        found = ResolvedModel(self._file(entry), entry.name, entry)
        if self._is_whole(entry):
            return found
        if local_files_only:
            raise ModelNotFoundError(
                f"{entry.name} is not in the cache {self.root}, and local_files_only forbids "
                f"downloading it; `slmq pull {entry.name}` downloads it"
            )
        with locked(self._lock(entry.name), progress.message):
            # Whoever held the lock before us may have done the work.
            if not self._is_whole(entry):
                # The network code (ssl, zipfile, subprocess) is loaded by those who need it.
                from slmq.hub.archive import fetch_archive
                from slmq.hub.race import fetch_entry

                folder = self._file(entry).parent
                if isinstance(entry, ArchiveEntry):
                    fetch_archive(entry, folder, progress, self.retry)
                else:
                    fetch_entry(entry, folder, progress, self.retry)
        return found

    def _resolve_hub(
        self, hub: HubModel, name: str, local_files_only: bool, refresh: bool, progress: Progress
    ) -> ResolvedModel:
        entry = self._entry_of(hub)
        local = None if refresh and not local_files_only else snapshots.find_local(hub)
        if local is not None:
            return ResolvedModel(local[0], name, entry)
        if local_files_only:
            raise ModelNotFoundError(
                f"{name} is not (or not completely) in the hub cache, and local_files_only forbids "
                f"downloading it; `slmq pull {name}` downloads it"
            )
        try:
            # The network code (ssl, http) is loaded by those who need it.
            from slmq.hub.huggingface import download_model

            path = download_model(hub, progress, self.retry)
        except ModelNotFoundError as error:
            close = [known for known in nearest(hub.repo, self.entries) if known != name]
            if not close:
                raise
            raise ModelNotFoundError(f"{error}; the catalogue has {' and '.join(close)}") from error
        try:
            self._remember(hub)
        except CacheError as error:
            progress.message(f"{hub} was downloaded, but `slmq list` will not show it: {error}")
        return ResolvedModel(path, name, entry)

    def _remember(self, hub: HubModel) -> None:
        """Note that slmq pulled a hub model, so that `list_models` can tell it from others'."""
        make_folder(self.root / "hub")
        text = json.dumps({"model": str(hub), "revision": hub.revision})
        note = self._note(hub)
        temporary = note.with_suffix(".tmp")
        try:
            with create(temporary, self.root) as file:
                file.write(text.encode("utf-8"))
                publish(file, temporary, note, self.root)
        except OSError as error:
            raise cache_error(error, note.parent) from error

    def _note(self, hub: HubModel) -> Path:
        return self.root / "hub" / (quote(f"{hub}@{hub.revision or ''}", safe="") + ".json")

    def _remembered(self) -> Iterator[HubModel]:
        for note in sorted((self.root / "hub").glob("*.json")):
            try:
                fields = json.loads(read_regular(note, NOTE_BYTES))
                hub = parse_hub_id(fields["model"], fields["revision"])
            except (Error, OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
            if hub is not None:
                yield hub

    def list_models(self) -> list[CachedModel]:
        """Return the models that are in the cache whole; see `slmq.hub.list_models`."""
        found = [
            CachedModel(
                entry.name, self._file(entry), entry.bytes, "catalogue", None, entry.licence
            )
            for entry in self.entries.values()
            if isinstance(entry, (ArchiveEntry, FileEntry)) and self._is_whole(entry)
        ]
        for hub in self._remembered():
            local = snapshots.find_local(hub)
            if local is not None:
                entry = self._entry_of(hub)
                name, licence = (str(hub), None) if entry is None else (entry.name, entry.licence)
                found.append(CachedModel(name, *local, "hub", hub.revision, licence))
        return sorted(found, key=lambda model: model.name)

    def remove(self, name: str, *, progress: Progress | None = None) -> int:
        """Delete a model and what is left of its downloads; see `slmq.hub.remove`."""
        entry = self._named(name)
        name = name if entry is None else entry.name
        known_as = _hub_id(entry) or name
        hub = parse_hub_id(known_as)
        pulled = [known for known in self._remembered() if known_as in (str(known), known.repo)]
        if hub is not None and pulled:
            try:
                freed = sum(snapshots.delete(known) for known in pulled)
                for known in pulled:
                    remove(self._note(known), self.root)
            except OSError as error:
                raise cache_error(error, Path(error.filename or self.root)) from error
            return freed
        folder = self.root / "models" / name
        if not is_model_name(name) or not folder.is_dir():
            names = ", ".join(model.name for model in self.list_models()) or "nothing"
            raise ModelNotFoundError(f"no model {name!r} in the cache, which contains {names}")
        with locked(self._lock(name), (progress or LogProgress()).message):
            # Where a link leads is not ours to delete.
            freed = 0 if folder.is_symlink() else tree_bytes(folder)
            try:
                remove_tree(folder, self.root)
            except OSError as error:
                raise cache_error(error, folder) from error
        return freed
