"""The site: it builds, its links lead somewhere, and it fetches nothing."""

from __future__ import annotations

import html.parser
import importlib.util
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from places import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("mkdocs") is None or not (ROOT / "mkdocs.yml").is_file(),
        reason="needs the docs extra and the source tree",
    ),
]


class Page(html.parser.HTMLParser):
    """What a page links to, what a browser fetches for it, and the names of its parts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.names: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links and names."""
        found = {name: value or "" for name, value in attrs}
        self.names |= {found["id"]} if "id" in found else set()
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if "src" in found:
            self.fetched.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.fetched.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file.read_text("utf-8")) for file in site.rglob("*.html")}


def test_no_link_is_dead(site: Path, pages: dict[Path, Page]) -> None:
    dead = []
    for file, page in pages.items():
        for link in [*page.links, *page.fetched]:
            parts = urlparse(link)
            if parts.scheme or parts.netloc or file.name == "404.html":
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].names if target in pages else {"", parts.fragment}
            if not target.exists() or unquote(parts.fragment) not in known:
                dead.append(f"{file.relative_to(site)}: {link}")
    assert dead == []


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for page in pages.values():
        assert [link for link in page.fetched if urlparse(link).netloc] == []
    for file in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        text = file.read_text("utf-8")
        assert "url(http" not in text.replace('"', ""), file
        assert "@import" not in text, file


def test_the_references_name_what_there_is(pages: dict[Path, Page]) -> None:
    names = {file.name: page.names for file, page in pages.items()}
    assert {"slmq-run", "slmq-quantize", "slmq-doctor"} <= names["commands.html"]
    assert {"slmq.generation.model.Model.ask", "slmq.errors.BusyError"} <= names["python.html"]
