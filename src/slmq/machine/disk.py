"""Files that appear whole or not at all, who may write them now, and what may be opened.

A file is made under another name and gets its own when the disk has all of it (`publish`); two
processes agree by a lock that ends with its holder (`lock_file`, `lock_folder`). Whatever is made,
renamed or removed on the word of a stranger names the folder that it must lie `within`. Strangers'
files are opened by `open_regular`. What is refused leaves here as `OSError`: whoever asked knows
which error of slmq it means.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

__all__ = [
    "append",
    "check_within",
    "create",
    "free_bytes",
    "hash_file",
    "link",
    "lock_file",
    "lock_folder",
    "make_folders",
    "open_regular",
    "publish",
    "read_regular",
    "readable_bytes",
    "remove",
    "remove_empty",
    "remove_tree",
    "rename",
    "sha256_of",
    "sync",
]


class Digest(Protocol):
    """What `hashlib` makes."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes in."""

    def hexdigest(self) -> str:
        """The digest of what was taken in, in hexadecimal."""


_PIECE_BYTES = 1 << 20
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NEVER_A_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def readable_bytes(count: int) -> str:
    """A number of bytes for people: ``1.5 GB``, ``64 bytes``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def free_bytes(folder: Path) -> int:
    """Bytes free for us on the disk of `folder`, or of its nearest parent that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


# What a stranger may name ---------------------------------------------------------------------


def open_regular(path: Path, largest: int) -> IO[bytes]:
    """Open a regular file of at most `largest` bytes for reading.

    Pipes, devices and folders are refused before they are opened and, as the name may mean
    another thing by then, after; a pipe that nobody writes to does not hold us up.
    """
    _check_regular(path, path.stat(), largest)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _check_regular(path, os.fstat(file.fileno()), largest)
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: Path, largest: int) -> bytes:
    """The bytes of a regular file that has at most `largest` of them, even if it grows now."""
    with open_regular(path, largest) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1)
        if len(data) > size:  # it grows, or is of a kind that does not say its size
            data += file.read(largest + 1 - len(data))
    if len(data) > largest:
        raise _too_large(path, len(data), largest)
    return data


def _check_regular(path: Path, status: os.stat_result, largest: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "expected a regular file", os.fspath(path))
    if status.st_size > largest:
        raise _too_large(path, status.st_size, largest)


def _too_large(path: Path, size: int, largest: int) -> OSError:
    text = f"expected at most {largest:,} bytes, found {size:,}"
    return OSError(errno.EFBIG, text, os.fspath(path))


def check_within(path: Path, folder: Path) -> None:
    """Refuse a name that does not lie in `folder`, or that a link on the way leads out of it."""
    parent = Path(os.path.realpath(path.parent))
    if path.name in ("", os.curdir, os.pardir) or not parent.is_relative_to(
        os.path.realpath(folder)
    ):
        raise OSError(errno.EPERM, f"it does not lie in {folder}", os.fspath(path))


def create(path: Path, within: Path) -> IO[bytes]:
    """Open a new file for writing. What had the name goes; a link there is not followed."""
    remove(path, within)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NEVER_A_LINK
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def append(path: Path, within: Path) -> IO[bytes]:
    """Open a file to go on writing; one that is a link, or has a second name, is refused."""
    check_within(path, within)
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | _NEVER_A_LINK), "ab")
    opened, named = os.fstat(file.fileno()), path.lstat()  # not every system knows O_NOFOLLOW
    if not (stat.S_ISREG(opened.st_mode) and stat.S_ISREG(named.st_mode) and opened.st_nlink == 1):
        file.close()
        raise OSError(errno.EINVAL, "expected a file with one name", os.fspath(path))
    return file


def remove(path: Path, within: Path) -> None:
    """Delete a file or link (where it leads stays), if it is there."""
    check_within(path, within)
    path.unlink(missing_ok=True)


def remove_tree(folder: Path, within: Path) -> None:
    """Delete a folder with all that is in it; links are deleted and not followed."""
    check_within(folder, within)
    folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)


def remove_empty(folder: Path, within: Path) -> None:
    """Delete a folder in which nothing is left."""
    check_within(folder, within)
    if not any(folder.iterdir()):
        folder.rmdir()


def link(path: Path, target: Path, within: Path) -> None:
    """Make a link of this name to a file of the same `within`; what had the name goes."""
    check_within(target, within)
    remove(path, within)
    path.symlink_to(os.path.relpath(target, path.parent))


def make_folders(folder: Path, within: Path) -> None:
    """Make a folder and its parents; what is there may be a link that stays inside."""
    check_within(folder / "new", within)
    folder.mkdir(parents=True, exist_ok=True)


def rename(path: Path, target: Path, within: Path) -> None:
    """Give a file another name; what had that name before goes."""
    check_within(path, within)
    check_within(target, within)
    path.replace(target)


# Whole or not at all --------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Let the disk have a file or folder before its name says that it is whole."""
    if sys.platform == "win32" and path.is_dir():
        return  # Windows has no such call for folders
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(file: IO[bytes], temporary: Path, target: Path, within: Path) -> None:
    """Close `file`, which is open on `temporary`, and give it its final name, whole.

    The data reach the disk before the name does: after a crash there is the old state or the
    new, never a name over half a file.
    """
    file.flush()
    os.fsync(file.fileno())
    file.close()
    rename(temporary, target, within)
    sync(target.parent)


def sha256_of(path: Path, report: Callable[[int, int], None] | None = None) -> str:
    """The checksum of a file in hexadecimal; `report` hears how many bytes of how many are done."""
    return hash_file(path, hashlib.sha256(), report)


def hash_file(path: Path, digest: Digest, report: Callable[[int, int], None] | None = None) -> str:
    """Like `sha256_of`, with another digest, which may have begun."""
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            if report is not None:
                report(file.tell(), total)
    return digest.hexdigest()


# Locks --------------------------------------------------------------------------------------
#
# The operating system drops them when their holder dies, so no lock is ever stale.

if sys.platform == "win32":
    import msvcrt

    def _hold(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _open_for_folder(folder: Path) -> int:
        # A folder cannot be locked, and one that holds an open file cannot be renamed: the lock
        # is a file beside it, which vanishes with its last descriptor.
        flags = os.O_RDWR | os.O_CREAT | os.O_BINARY | os.O_TEMPORARY
        return os.open(folder.with_name(folder.name + ".lock"), flags)

else:
    import fcntl

    def _hold(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _open_for_folder(folder: Path) -> int:
        return os.open(folder, os.O_RDONLY)


def lock_file(path: Path) -> int | None:
    """Lock a file, made if need be: the descriptor that holds the lock, None if another has it.

    The empty file stays when the lock ends, because removing it would let two holders in. On a
    file system without locks everybody gets one.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NEVER_A_LINK, 0o666)
    try:
        if _hold(descriptor):
            return descriptor
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return descriptor
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def lock_folder(folder: Path) -> int | None:
    """Lock a folder: the descriptor that holds the lock, None if another has it.

    On a file system without locks nobody gets one: who holds this lock may delete the folder.
    """
    try:
        descriptor = _open_for_folder(folder)
    except PermissionError:
        if sys.platform == "win32":
            return None  # the last holder is just closing it
        raise
    try:
        if _hold(descriptor):
            return descriptor
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
    os.close(descriptor)
    return None
