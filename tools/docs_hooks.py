"""What the site needs beyond Markdown: links out of the folder of pages, and nothing fetched."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?P<path>(?:\.\./)+[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
# What a browser would load by itself, as opposed to a link that somebody follows.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?https?:"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|preconnect|icon))[^>]*\bhref=[\"']?https?:"
)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_more: Any) -> str:
    """Describe the commands on their page; links out of docs/ lead to the repository."""
    if page.file.src_uri == "reference/commands.md":
        sys.path.insert(0, str(ROOT / "tools"))
        from command_reference import reference

        markdown += "\n" + reference()
    here = posixpath.dirname(page.file.src_uri)

    def led(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", here, match["path"]))
        if target.startswith("docs/"):
            return match[0]
        if not (ROOT / target).exists():
            raise ValueError(f"{page.file.src_uri} links to {match['path']}, which is not there")
        return f"]({config.repo_url}/blob/main/{target}{match['anchor'] or ''})"

    return LINK.sub(led, markdown)


def on_post_page(output: str, *, page: Any, **_more: Any) -> str:
    """Refuse pages that would fetch something."""
    found = FETCHED.search(output)
    if found is not None:
        raise ValueError(f"{page.file.src_uri} fetches from elsewhere: {found[0]}")
    return output
