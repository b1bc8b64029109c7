"""Size of what a user downloads and of what that becomes on disk."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

from .common import once_for_all_isas


def wheel_file(direct_url: str | None) -> Path:
    """The wheel that pip noted as the source of an installation; a skip if there is none.

    asv installs each commit from the wheel in its build cache, so this is the wheel of the commit
    at hand, not merely the newest.
    """
    url = urlparse(json.loads(direct_url)["url"]) if direct_url else urlparse("")
    path = Path(unquote(url.path))
    if url.scheme != "file" or path.suffix != ".whl" or not path.is_file():
        raise NotImplementedError("slmq was not installed from a wheel that is still there")
    return path


class Wheel:
    """The file that a user downloads."""

    version = "1"
    timeout = 60
    unit = "bytes"

    def setup(self) -> None:
        once_for_all_isas()
        self.file = wheel_file(metadata.distribution("slmq").read_text("direct_url.json"))

    def track_size(self) -> int:
        return self.file.stat().st_size


class Installed:
    """What it becomes on disk, without compiled Python, which appears on first use."""

    version = "1"
    timeout = 60
    unit = "bytes"

    def setup(self) -> None:
        once_for_all_isas()
        files = metadata.distribution("slmq").files or []
        self.files = [file.locate() for file in files if file.suffix != ".pyc"]

    def track_size(self) -> int:
        return sum(Path(file).stat().st_size for file in self.files)
