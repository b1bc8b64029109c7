"""Cache folders of a test's own, so that no damage is known before it was measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture(autouse=True)
def empty_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], None]:
    """A new empty cache folder, and another one whenever it is called."""

    def begin() -> None:
        monkeypatch.setenv("SLMQ_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))

    begin()
    return begin
