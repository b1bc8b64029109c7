"""Which package indexes this user's pip (or uv) would ask, read from where pip reads it.

Only what a plain download needs is understood here. Anything cleverer sets `needs_pip`, and pip
itself is asked when our own request fails.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["IndexConfig", "read_index_config"]

_PYPI = "https://pypi.org/simple"
_CLEVER = ("proxy", "client_cert", "trusted_host", "keyring_provider")


@dataclass(frozen=True)
class IndexConfig:
    """Where wheels come from.

    Attributes
    ----------
    indexes : tuple of str
        Addresses of simple indexes, the main one first.
    folders : tuple of str
        Local folders (``find-links``) that may hold wheels.
    certificates : str or None
        A bundle to trust in addition.
    needs_pip : bool
        True when something is configured that only pip carries out.
    """

    indexes: tuple[str, ...]
    folders: tuple[str, ...]
    certificates: str | None
    needs_pip: bool


def read_index_config(
    environ: Mapping[str, str] | None = None, files: list[Path] | None = None
) -> IndexConfig:
    """Read the configuration of pip: its files, then ``PIP_*``, then ``UV_*`` where pip is silent.

    Parameters
    ----------
    environ : mapping, optional
        Environment; `os.environ` by default.
    files : list of Path, optional
        Configuration files, the strongest last; pip's own places by default.
    """
    environ = os.environ if environ is None else environ
    options: dict[str, str] = {}
    for path in _config_files(environ) if files is None else files:
        options.update(_read(path))
    for key, value in environ.items():
        if key.startswith("PIP_") and value:
            options[key[4:].lower()] = value
    main = (
        options.get("index_url") or environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL")
    )
    extra = [
        *options.get("extra_index_url", "").split(),
        *environ.get("UV_EXTRA_INDEX_URL", "").split(),
        *environ.get("UV_INDEX", "").split(),
    ]
    links = options.get("find_links", "").split()
    no_index = options.get("no_index", "").lower() in ("1", "true", "yes", "on")
    # uv writes NAME=URL for an index with a name.
    indexes = [_unnamed(url).rstrip("/") for url in (main or _PYPI, *extra)]
    return IndexConfig(
        indexes=() if no_index else tuple(dict.fromkeys(indexes)),
        folders=tuple(link for link in links if _is_local(link)),
        certificates=options.get("cert"),
        needs_pip=any(options.get(key) for key in _CLEVER)
        or any(not _is_local(link) for link in links),
    )


def _unnamed(url: str) -> str:
    name, _, rest = url.partition("=")
    return rest if rest and "/" not in name else url


def _is_local(link: str) -> bool:
    return link.startswith("file:") or "://" not in link


def _read(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the options of one file that apply to ``pip download``; a broken file has none."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, configparser.Error):
        return
    for section in ("global", "download"):
        if parser.has_section(section):
            for key, value in parser.items(section):
                yield key.replace("-", "_"), value


def _config_files(environ: Mapping[str, str]) -> list[Path]:
    """Return the files that pip reads, the weakest first."""
    chosen = environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return []
    home = Path.home()
    if sys.platform == "win32":
        shared = [Path(environ.get("PROGRAMDATA", "C:/ProgramData")) / "pip" / "pip.ini"]
        user = [home / "pip" / "pip.ini", Path(environ.get("APPDATA", home)) / "pip" / "pip.ini"]
        site = Path(sys.prefix) / "pip.ini"
    else:
        config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
        shared = [
            *(
                Path(folder) / "pip" / "pip.conf"
                for folder in reversed((environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":"))
            ),
            Path("/etc/pip.conf"),
        ]
        user = [home / ".pip" / "pip.conf", config / "pip" / "pip.conf"]
        site = Path(sys.prefix) / "pip.conf"
        if sys.platform == "darwin":
            support = Path("Library/Application Support/pip/pip.conf")
            shared.insert(0, Path("/") / support)
            user.append(home / support)
    return [*shared, *user, site, *([Path(chosen)] if chosen else [])]
