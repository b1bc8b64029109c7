"""Disks that refuse or fill up, and several downloads at once."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hub_cases import (
    BODY,
    CATALOGUE,
    HUB_PATH,
    MEMBER,
    NAME,
    QUICK,
    WHEEL,
    WHEEL_NAME,
    Notes,
    child,
    environment,
    files_left,
    only_the_wheel,
)
from hub_server import Page, Server, make_wheel

from slmq.hub.cache import CacheError, cache_error, locked
from slmq.hub.catalogue import parse_catalogue
from slmq.hub.store import Store


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


# Somebody else fills the disk when `argv[4]` begins.
FILLED = """
import sys
from pathlib import Path
from slmq.hub.cache import CacheError
from slmq.hub.catalogue import parse_catalogue
from slmq.hub.store import Store
root, catalogue, name, job = sys.argv[1:]

class Filler:
    def message(self, text):
        pass

    def update(self, label, done, total):
        other = Path(root, "other")
        if label == job and not other.exists():
            with other.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(1 << 12)):
                        pass
                except OSError:
                    pass

store = Store(Path(root), parse_catalogue(Path(catalogue).read_text()))
try:
    store.resolve(name, progress=Filler())
except CacheError as error:
    print(error)
assert store.list_models() == []
assert not list(Path(root, "models", name).glob("*.gguf"))
"""


@pytest.mark.skipif(os.name != "posix", reason="no disk in memory here")
@pytest.mark.parametrize("job", [NAME, f"unpacking {NAME}"])
def test_a_disk_that_fills_up(job: str, tmp_path: Path, server: Server) -> None:
    body = random.Random(2).randbytes(3_000_000)
    if job == NAME:
        server.pages[HUB_PATH] = Page(body)
    else:
        server.add_wheel(*make_wheel("tiny-wheel", "1.2", {MEMBER: body}))
    text = CATALOGUE.replace(hashlib.sha256(BODY).hexdigest(), hashlib.sha256(body).hexdigest())
    (tmp_path / "catalogue.toml").write_text(text.replace(str(len(BODY)), str(len(body))))
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=8m tmpfs '{disk}'"
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*unshare, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mount namespaces here: {error}")
    command = [*unshare, f'{mount} && exec "$@"', "sh", sys.executable, "-c", FILLED]
    done = subprocess.run(
        [*command, str(disk), str(tmp_path / "catalogue.toml"), NAME, job],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    full = r"disk of .* is full: 3\.0 MB more needed, .* free; free some space"
    assert re.search(full, done.stdout)


def test_a_file_larger_than_the_disk_is_not_begun(tmp_path: Path, server: Server) -> None:
    server.add_wheel(WHEEL_NAME, WHEEL)
    store = only_the_wheel(tmp_path, bytes=1 << 60)
    with pytest.raises(
        CacheError, match=r"needs 1152921504\.\d GB in .* are free; free some space"
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
    with locked(store.root / "locks" / f"{NAME}.lock", notes.message):
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
