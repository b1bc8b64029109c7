"""Files appear whole or not at all, under their own name and no other."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slmq.machine.disk import (
    append,
    create,
    free_bytes,
    link,
    lock_file,
    lock_folder,
    make_folders,
    open_regular,
    publish,
    read_regular,
    readable_bytes,
    remove,
    remove_empty,
    remove_tree,
    rename,
    sha256_of,
)

HOLDER = """
import sys, time
from collections.abc import Callable
from pathlib import Path
from slmq.machine import disk
print(getattr(disk, sys.argv[1])(Path(sys.argv[2])) is not None, flush=True)
sys.stdin.read()
"""


def test_bytes_for_people() -> None:
    assert [readable_bytes(n) for n in (7, 1500, 98_362_432, 4_000_000_000)] == [
        "7 bytes",
        "1.5 kB",
        "98.4 MB",
        "4.0 GB",
    ]


def test_free_bytes_of_a_folder_that_is_to_come(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") > 0


def test_a_file_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    new, name = tmp_path / "x.tmp", tmp_path / "x"
    name.write_bytes(b"old")
    with create(new, tmp_path) as file:
        file.write(b"new")
        assert name.read_bytes() == b"old"
        publish(file, new, name, tmp_path)
    assert (name.read_bytes(), new.exists()) == (b"new", False)


def test_a_link_is_never_written_through(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for leads_to in (outside, tmp_path / "nowhere"):
        outside.write_bytes(b"precious")
        link = tmp_path / "x.tmp"
        link.symlink_to(leads_to)
        with create(link, tmp_path) as file:
            file.write(b"new")
        assert outside.read_bytes() == b"precious"
        assert not link.is_symlink()
        assert link.read_bytes() == b"new"
        link.unlink()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system follows links")
def test_a_lock_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "x.lock").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match=r"x\.lock"):
        lock_file(tmp_path / "x.lock")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("lock", [lock_file, lock_folder])
def test_a_lock_ends_with_its_holder(lock: Callable[[Path], int | None], tmp_path: Path) -> None:
    path = tmp_path / "it"
    if lock is lock_folder:
        path.mkdir()
    command = [sys.executable, "-c", HOLDER, lock.__name__, str(path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    assert lock(path) is None
    holder.kill()
    holder.communicate()
    mine = lock(path)
    assert mine is not None
    assert lock(path) is None
    os.close(mine)


def test_checksums_say_how_far_they_are(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 5)
    (tmp_path / "x").write_bytes(data)
    heard: list[tuple[int, int]] = []
    got = sha256_of(tmp_path / "x", lambda *news: heard.append(news))
    assert got == hashlib.sha256(data).hexdigest()
    assert heard == [(1 << 20, len(data)), (len(data), len(data))]


# ---- what a stranger may name --------------------------------------------------------------------


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    """A folder with a file, beside one that is nobody's business; a link leads there."""
    folder = tmp_path / "yard"
    for place in (folder, tmp_path / "outside"):
        place.mkdir()
        (place / "file").write_bytes(b"precious")
    (folder / "way").symlink_to(tmp_path / "outside")
    (folder / "one").symlink_to(tmp_path / "outside" / "file")
    return folder


OUTSIDE = ["../outside/file", "../outside/new", "way/file", "way/new", "..", ".", "../yard"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize(
    "change",
    [
        lambda path, yard: create(path, yard).close(),
        lambda path, yard: append(path, yard).close(),
        remove,
        remove_tree,
        remove_empty,
        lambda path, yard: rename(path, yard / "new", yard),
        lambda path, yard: rename(yard / "file", path, yard),
        lambda path, yard: link(path, yard / "file", yard),
        lambda path, yard: link(yard / "new", path, yard),
    ],
    ids=["create", "append", "remove", "tree", "empty", "from", "to", "link", "target"],
)
def test_nothing_outside_is_changed(
    change: Callable[[Path, Path], None], name: str, yard: Path
) -> None:
    before = {path: path.lstat() for path in yard.parent.rglob("*") if path.name != "yard"}
    with pytest.raises(OSError, match="does not lie in"):
        change(yard / name, yard)
    after = {path: path.lstat() for path in yard.parent.rglob("*") if path.name != "yard"}
    assert {p: (s.st_size, s.st_mtime_ns) for p, s in after.items()} == {
        p: (s.st_size, s.st_mtime_ns) for p, s in before.items()
    }


def test_no_folder_is_made_outside(yard: Path) -> None:
    for name in ("../new/deep", "way/new/deep", ".."):
        with pytest.raises(OSError, match="does not lie in"):
            make_folders(yard / name, yard)
    assert not list(yard.parent.rglob("new"))


def test_what_is_in_the_folder_may_change(yard: Path) -> None:
    with append(yard / "file", yard) as file:
        file.write(b"!")
    rename(yard / "file", yard / "other", yard)
    link(yard / "file", yard / "other", yard)
    assert (yard / "file").read_bytes() == b"precious!"
    remove(yard / "one", yard)
    remove_tree(yard / "way", yard)
    make_folders(yard / "a" / "b", yard)
    remove_empty(yard / "a" / "b", yard)
    assert sorted(path.name for path in yard.iterdir()) == ["a", "file", "other"]
    assert (yard.parent / "outside" / "file").read_bytes() == b"precious"


def test_a_second_name_is_not_appended_to(yard: Path) -> None:
    (yard / "two").hardlink_to(yard.parent / "outside" / "file")
    for name in ("one", "two"):
        with pytest.raises(OSError, match=r"one name|symbolic links"):
            append(yard / name, yard)


def test_only_regular_files_of_plausible_size_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="expected at most 4 bytes, found 5"):
        open_regular(tmp_path / "file", 4)
    with pytest.raises(OSError, match="expected a regular file"):
        read_regular(tmp_path, 5)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none", 5)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_pipes_sockets_and_devices_hold_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to a pipe").symlink_to("pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
    began = time.monotonic()
    for name in ("pipe", "to a pipe", "device", "socket"):
        with pytest.raises(OSError, match="expected a regular file"):
            open_regular(tmp_path / name, 1 << 40)
    assert time.monotonic() - began < 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no such file system here")
def test_a_file_that_says_it_is_empty_and_is_not() -> None:
    with pytest.raises(OSError, match="expected at most 100 bytes, found 101"):
        read_regular(Path("/proc/self/status"), 100)
