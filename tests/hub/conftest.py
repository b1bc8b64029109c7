"""Every hub test runs against its own server and cache, and sees nothing of this machine's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_cases import Notes, make_store
from hub_server import Server

from slmq.hub.store import Store


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(autouse=True)
def _only_the_server(monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path) -> None:
    """Point hub, index and cache at the test; nothing of the machine's configuration remains."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_", "HF_", "SLMQ_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("SLMQ_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)
