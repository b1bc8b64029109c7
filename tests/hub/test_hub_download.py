"""Transfers over a line that breaks, from servers that lie."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
from hub_cases import (
    BODY,
    HUB_PATH,
    NAME,
    QUICK,
    Notes,
    files_left,
)
from hub_server import Page, Server

from slmq.errors import DownloadError
from slmq.hub.download import ChecksumError, Retry, download
from slmq.hub.store import Store
from slmq.hub.web import Remote, SourceError, open_remote, site


def fetch(server: Server, part: Path, notes: Notes, **options: object) -> None:
    remote = Remote(f"{server.url}/f")
    options = {"largest": len(BODY), "retry": QUICK, **options}
    download(remote, part, label="f", progress=notes, **options)  # type: ignore[arg-type]


def test_a_cut_connection_is_continued(server: Server, tmp_path: Path, notes: Notes) -> None:
    server.pages["/f"] = Page(BODY, etag='"1"', cuts=[100_000, 200_000])
    fetch(server, tmp_path / "f.part", notes)
    assert (tmp_path / "f.part").read_bytes() == BODY
    assert server.gets("/f") == [None, "bytes=100000-", "bytes=300000-"]
    assert server.requests[1].headers["If-Range"] == '"1"'
    assert len(notes.messages) == 2
    assert "connection lost after 100.0 kB of 600.0 kB" in notes.messages[0]


def test_a_connection_that_is_always_cut(server: Server, tmp_path: Path, notes: Notes) -> None:
    server.pages["/f"] = Page(BODY, etag='"1"', cuts=[200_000, *[0] * 99])
    with pytest.raises(SourceError, match=r"200\.0 kB are kept, run it again to continue"):
        fetch(server, tmp_path / "f.part", notes)
    assert len(server.gets("/f")) == QUICK.attempts
    server.pages["/f"].cuts.clear()
    fetch(server, tmp_path / "f.part", notes)
    assert (tmp_path / "f.part").read_bytes() == BODY
    assert server.gets("/f")[-1] == "bytes=200000-"


def test_a_file_that_changed_starts_again(server: Server, tmp_path: Path, notes: Notes) -> None:
    server.pages["/f"] = Page(b"old" * 100_000, etag='"1"', cuts=[1000, *[0] * 99])
    with pytest.raises(SourceError):
        fetch(server, tmp_path / "f.part", notes)
    server.pages["/f"] = Page(BODY, etag='"2"')
    fetch(server, tmp_path / "f.part", notes)
    assert (tmp_path / "f.part").read_bytes() == BODY


def test_a_server_without_ranges(server: Server, tmp_path: Path, notes: Notes) -> None:
    server.pages["/f"] = Page(BODY, ranges=False, cuts=[100_000, 50_000])
    fetch(server, tmp_path / "f.part", notes)
    assert (tmp_path / "f.part").read_bytes() == BODY


def test_a_part_of_unknown_origin_is_not_trusted(
    server: Server, tmp_path: Path, notes: Notes
) -> None:
    (tmp_path / "f.part").write_bytes(b"?" * 1000)
    server.pages["/f"] = Page(BODY)
    fetch(server, tmp_path / "f.part", notes)
    assert (tmp_path / "f.part").read_bytes() == BODY
    assert server.gets("/f") == [None]


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path, notes: Notes) -> None:
    server.pages["/f"] = Page(BODY, failures=[503, 429])
    fetch(server, tmp_path / "f.part", notes)
    assert (tmp_path / "f.part").read_bytes() == BODY


def test_a_refusal_is_final(server: Server, tmp_path: Path, notes: Notes) -> None:
    with pytest.raises(SourceError, match="HTTP 404"):
        fetch(server, tmp_path / "f.part", notes)
    assert len(server.requests) == 1


def test_a_server_that_falls_silent(server: Server, tmp_path: Path, notes: Notes) -> None:
    server.pages["/f"] = Page(BODY, etag='"1"', hang=threading.Event(), stall_after=100_000)
    impatient = Retry(attempts=1, backoff_s=0.01, timeout_s=0.3)
    with pytest.raises(SourceError, match=r"no answer in time, after 100\.0 kB"):
        download(
            Remote(f"{server.url}/f"),
            tmp_path / "f.part",
            label="f",
            progress=notes,
            largest=len(BODY),
            retry=impatient,
        )


def test_another_size_than_promised(server: Server, tmp_path: Path, notes: Notes) -> None:
    server.pages["/f"] = Page(BODY)
    with pytest.raises(ChecksumError, match="expected a file of 7 bytes, the server has"):
        fetch(server, tmp_path / "f.part", notes, size=7)


def test_a_range_that_is_gone(server: Server, tmp_path: Path, notes: Notes) -> None:
    server.pages["/f"] = Page(BODY, etag='"1"', cuts=[1000] * 3)
    with pytest.raises(SourceError):
        download(
            Remote(f"{server.url}/f"),
            tmp_path / "f.part",
            label="f",
            progress=notes,
            largest=len(BODY),
            retry=Retry(attempts=1, timeout_s=5),
        )
    server.pages["/f"] = Page(BODY, failures=[416])
    fetch(server, tmp_path / "f.part", notes)
    assert (tmp_path / "f.part").read_bytes() == BODY
    assert server.gets("/f")[-1] is None


def test_a_wrong_first_half_costs_one_more_download(store: Store, server: Server) -> None:
    # No validator: the server cannot tell us that the file changed, only the checksum can.
    server.pages[HUB_PATH] = Page(b"x" * len(BODY), cuts=[300_000, 0, 0])
    with pytest.raises(DownloadError):
        store.resolve(NAME)
    server.pages[HUB_PATH] = Page(BODY)
    assert store.resolve(NAME).path.read_bytes() == BODY
    assert server.gets(HUB_PATH)[-2:] == ["bytes=300000-", None]


def test_a_wrong_checksum_is_deleted(store: Store, server: Server) -> None:
    wrong = BODY[:-1] + bytes([BODY[-1] ^ 1])
    server.pages[HUB_PATH] = Page(wrong, etag='"1"')
    with pytest.raises(DownloadError) as caught:
        store.resolve(NAME)
    assert hashlib.sha256(BODY).hexdigest() in str(caught.value)
    assert hashlib.sha256(wrong).hexdigest() in str(caught.value)
    assert files_left(store) == []
    assert store.list_models() == []


def test_credentials_do_not_follow_a_redirect(server: Server) -> None:
    with Server() as elsewhere:
        elsewhere.pages["/f"] = Page(b"ok")
        server.pages["/f"] = Page(
            status=302, headers={"Location": f"{elsewhere.url}/f"}, authorization="Basic dTpw"
        )
        remote = Remote.parse(f"http://u:p@{server.host}/f")
        with open_remote(remote, largest=len(BODY), timeout_s=5) as response:
            assert response.read() == b"ok"
        assert elsewhere.requests[0].headers["Authorization"] is None
        assert remote.at(f"{elsewhere.url}/f").authorization is None
        assert remote.at(f"{server.url}/g").authorization == "Basic dTpw"
    assert "p@" not in site(f"http://u:p@{server.host}/f")


def test_a_proxy_of_the_environment_is_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    server.pages["http://far.example/f"] = Page(b"by proxy")
    with open_remote(Remote("http://far.example/f"), largest=len(BODY), timeout_s=5) as response:
        assert response.read() == b"by proxy"


def test_other_schemes_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(OSError, match="unknown url type"):
        open_remote(Remote((tmp_path / "f").as_uri()), largest=1, timeout_s=1)
