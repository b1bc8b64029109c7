"""The cache folder: where it is, who may write to it now, and how a file appears in it whole.

A model is in the cache when its file carries its final name. Everything before that moment lives
under other names (``*.part``, ``*.tmp``), and `os.replace` is the only way to a final name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from slmq.errors import DownloadError
from slmq.hub.progress import Progress

__all__ = [
    "CacheError",
    "cache_dir",
    "cache_error",
    "locked",
    "make_folder",
    "megabytes",
    "publish",
    "require_free",
    "sha256_of",
    "tree_bytes",
]

_LOCK_POLL_S = 0.1


class CacheError(DownloadError):
    """The disk refused: another source would not help."""


def cache_dir() -> Path:
    """Return the folder in which slmq keeps models; it need not exist yet.

    ``SLMQ_CACHE_DIR`` when set, else ``slmq`` in the user's cache folder (``XDG_CACHE_HOME`` or
    ``~/.cache`` on Linux, ``~/Library/Caches`` on macOS, ``%LOCALAPPDATA%`` on Windows).
    """
    chosen = os.environ.get("SLMQ_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
        return Path(base).expanduser() / "slmq" / "cache"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/slmq").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "slmq"


def megabytes(count: int) -> str:
    """Write a number of bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count:,} bytes"


def cache_error(
    error: OSError, folder: Path, *, need: int | None = None, variable: str = "SLMQ_CACHE_DIR"
) -> CacheError:
    """Turn what the operating system said about `folder` into an error that says what to do."""
    advice = f"set {variable} to a folder with space that you may write to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        wanted = "" if need is None else f"{megabytes(need)} more needed, "
        return CacheError(
            f"the disk of {folder} is full: {wanted}{megabytes(_free(folder))} free; "
            f"free some space, or {advice}"
        )
    reason = error.strerror or str(error)
    return CacheError(f"cannot write to the cache {folder}: {reason}; {advice}")


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents.

    Raises
    ------
    CacheError
        When the operating system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_error(error, folder) from error


def require_free(folder: Path, need: int, what: str, *, variable: str = "SLMQ_CACHE_DIR") -> None:
    """Check before a download that `need` more bytes fit on the disk of `folder`.

    Raises
    ------
    CacheError
        When they do not.
    """
    free = _free(folder)
    if free < need:
        raise CacheError(
            f"{what} needs {megabytes(need)} in {folder}, where only {megabytes(free)} are free; "
            f"free some space, or set {variable} to a folder on another disk"
        )


def _free(folder: Path) -> int:
    """Bytes free for us on the disk of `folder`, or of its nearest parent that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def publish(file: IO[bytes], temporary: Path, target: Path) -> None:
    """Close `file`, which is open on `temporary`, and give it its final name, whole.

    The data reach the disk before the name does: after a crash there is the old state or the
    new, never a name over half a file.

    Raises
    ------
    OSError
        As the operating system raises it.
    """
    file.flush()
    os.fsync(file.fileno())
    file.close()
    temporary.replace(target)
    if sys.platform != "win32":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sha256_of(path: Path, label: str, progress: Progress) -> str:
    """Return the checksum of a file in hexadecimal."""
    digest = hashlib.sha256()
    total = path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            progress.update(label, file.tell(), total)
    return digest.hexdigest()


def tree_bytes(folder: Path) -> int:
    """Return the bytes of the files under `folder`, links not followed."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # another process may be at work there
                total += Path(parent, name).lstat().st_size
    return total


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            # A file system without locks: two downloads at once would cost a checksum error, no
            # lock at all would cost the download.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        return True


@contextmanager
def locked(root: Path, name: str, progress: Progress) -> Iterator[None]:
    """Hold the lock of one model, against other threads and other processes.

    The operating system drops the lock when its holder dies, so no lock is ever stale; the empty
    lock file stays, because removing it would let two holders in.

    Raises
    ------
    CacheError
        When the lock file cannot be made.
    """
    folder = root / "locks"
    make_folder(folder)
    try:
        file = (folder / f"{name}.lock").open("ab")
    except OSError as error:
        raise cache_error(error, folder) from error
    with file:
        if not _try_lock(file):
            progress.message(f"{name}: waiting for another process that is downloading it")
            while not _try_lock(file):
                time.sleep(_LOCK_POLL_S)
        yield
