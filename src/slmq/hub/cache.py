"""The cache folder: where it is, who may write to it now, and how a file appears in it whole.

A model is in the cache when its file carries its final name. Everything before that moment lives
under other names (``*.part``, ``*.tmp``), and `os.replace` is the only way to a final name.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slmq.errors import DownloadError
from slmq.machine.disk import free_bytes, lock_file, readable_bytes

__all__ = [
    "CacheError",
    "cache_dir",
    "cache_error",
    "locked",
    "make_folder",
    "require_free",
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


def cache_error(
    error: OSError, folder: Path, *, need: int | None = None, variable: str = "SLMQ_CACHE_DIR"
) -> CacheError:
    """Turn what the operating system said about `folder` into an error that says what to do."""
    advice = f"set {variable} to a folder with space that you may write to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        wanted = "" if need is None else f"{readable_bytes(need)} more needed, "
        return CacheError(
            f"the disk of {folder} is full: {wanted}{readable_bytes(free_bytes(folder))} free; "
            f"free some space, or {advice}"
        )
    reason = error.strerror or str(error)
    return CacheError(f"cannot write to the cache {folder}: {reason}; {advice}")


def make_folder(folder: Path, *, variable: str = "SLMQ_CACHE_DIR") -> None:
    """Create `folder` and its parents.

    Raises
    ------
    CacheError
        When the operating system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_error(error, folder, variable=variable) from error


def require_free(folder: Path, need: int, what: str, *, variable: str = "SLMQ_CACHE_DIR") -> None:
    """Check before a download that `need` more bytes fit on the disk of `folder`.

    Raises
    ------
    CacheError
        When they do not.
    """
    free = free_bytes(folder)
    if free < need:
        raise CacheError(
            f"{what} needs {readable_bytes(need)} in {folder}, where only {readable_bytes(free)} "
            f"are free; free some space, or set {variable} to a folder on another disk"
        )


def tree_bytes(folder: Path) -> int:
    """Return the bytes of the files under `folder`, links not followed."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # another process may be at work there
                total += Path(parent, name).lstat().st_size
    return total


@contextmanager
def locked(
    path: Path, tell: Callable[[str], None], *, variable: str = "SLMQ_CACHE_DIR"
) -> Iterator[None]:
    """Hold the lock of one model, against other threads and other processes.

    Parameters
    ----------
    path : Path
        The lock file, which stays.
    tell : callable
        Hears that another process has the lock, if so.
    variable : str
        What chooses the folder, for errors.

    Raises
    ------
    CacheError
        When the lock file cannot be made.
    """
    make_folder(path.parent, variable=variable)
    try:
        lock = lock_file(path)
        if lock is None:
            tell(f"{path.stem}: waiting for another process that is downloading it")
        while lock is None:
            time.sleep(_LOCK_POLL_S)
            lock = lock_file(path)
    except OSError as error:
        raise cache_error(error, path.parent, variable=variable) from error
    try:
        yield
    finally:
        os.close(lock)
