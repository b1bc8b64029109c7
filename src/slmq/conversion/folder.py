"""Folders of weights that appear whole or not at all."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slmq.checkpoint import Checkpoint, open_checkpoint
from slmq.errors import CheckpointError, WriteError
from slmq.machine.disk import free_bytes, lock_folder, sha256_of, sync

__all__ = ["check_room", "check_target", "new_folder", "source_files"]

PART = ".part"
SPARE_BYTES = 64 << 20  # for tokenizer and configuration, when the free space is looked at


def source_files(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Name, bytes and sha256 of every file of a checkpoint."""
    files = []
    for file in checkpoint.files:
        digest = sha256_of(file.path)
        files.append({"name": file.path.name, "bytes": file.size, "sha256": digest})
    return files


def check_target(target: Path, force: bool) -> None:
    """Check that a folder may be written.

    Raises
    ------
    WriteError
        It exists and is not to be replaced (or nothing that slmq wrote), or its parent is missing.
    """
    if not target.parent.is_dir():
        raise WriteError(f"cannot write {target}: the folder {target.parent} does not exist")
    if not os.path.lexists(target):
        return
    if not force:
        raise WriteError(
            f"{target} already exists; choose another folder, or use force (--force) to replace it"
        )
    try:
        with open_checkpoint(target) as old:
            ours = old.packed and target.is_dir() and not target.is_symlink()
    except CheckpointError:
        ours = False
    if not ours:
        raise WriteError(
            f"{target} already exists and was not written by slmq, so force does not replace it; "
            f"delete it yourself or choose another folder"
        )


@contextmanager
def new_folder(target: Path, nbytes: int, force: bool) -> Iterator[Path]:
    """A folder beside `target` which takes its place at the end of the block, or vanishes.

    Raises
    ------
    WriteError
        It cannot be written, or the disk has no room for `nbytes`.
    """
    _remove_stale(target)
    check_room(target, nbytes)
    folder = target.parent / f".{target.name}.{secrets.token_hex(4)}{PART}"
    lock = None
    try:
        folder.mkdir()
        lock = lock_folder(folder)
        yield folder
        for path in (*folder.rglob("*"), folder):
            sync(path)
        _publish(folder, target, force)
        sync(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(f"cannot write {target}: {reason}; nothing was kept") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def check_room(target: Path, nbytes: int) -> None:
    """Raises WriteError if the disk of a new folder has no room for so many bytes."""
    free = free_bytes(target.parent)
    if nbytes + SPARE_BYTES > free:
        raise WriteError(
            f"cannot write {target}: the weights need {nbytes:,} bytes, but only {free:,} are free"
        )


def _publish(folder: Path, target: Path, force: bool) -> None:
    """Rename a finished folder to its name; an older one goes first, if it may."""
    if not os.path.lexists(target):
        folder.rename(target)
        return
    if not force:
        raise WriteError(f"{target} was created meanwhile; nothing was kept")
    old = folder.with_suffix(f".old{PART}")
    target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_stale(target: Path) -> None:
    """Delete what runs for `target` left that were killed: nobody holds its lock."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.*{PART}"):
        lock = lock_folder(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
