"""The chat page: the files beside this one, put together into a document that needs no other.

Nothing is loaded from anywhere, and the policy that goes with the page lets nothing be: its own
style and script are named by their hashes, and it may talk to the server that it came from.
"""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from pathlib import Path

__all__ = ["page"]

HERE = Path(__file__).parent
SCRIPTS = ("wire.js", "settings.js", "tokens.js", "view.js", "chat.js")  # in this order
KIND = "text/html; charset=utf-8"


@lru_cache(maxsize=1)
def page() -> tuple[str, dict[str, str]]:
    """The document, and the headers that go with it."""
    style = _read("page.css")
    # One function around all of it: nothing is left in the global scope.
    script = "(() => {\n'use strict';\n" + "".join(map(_read, SCRIPTS)) + "})();\n"
    html = _read("page.html").replace("/* style */", style).replace("/* script */", script)
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {
        "content-type": KIND,
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
    }
    return html, headers


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
