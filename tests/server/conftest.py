"""A server of the tiny model, for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from live_server import LiveServer, live_server

import slmq
from slmq.generation.model import Model


@pytest.fixture(scope="module")
def model(tiny_model_path: Path) -> Iterator[Model]:
    with slmq.load(tiny_model_path, n_ctx=2048) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[LiveServer]:
    with live_server({"tiny": model}) as running:
        yield running
