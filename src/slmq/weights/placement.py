"""Where packed weights live: mapped from their file, or in memory of our own.

- ``"mmap"``: straight from a file that `slmq convert` wrote. Ready at once, shared by all processes
  that map it, and given back under pressure. Linux keeps such files in 2 MiB pages where the file
  system can (ext4 from 6.16 on, XFS), and then they are read as fast as ``"huge"``; from pages of
  4 KiB decoding is 8 to 15% slower. If someone cuts the file short meanwhile, reading its lost
  pages ends the process (SIGBUS), as with every mapped file; replacing it is harmless.
- ``"huge"``: copied, or packed, into 2 MiB pages of our own.
- ``"small"``: the same in ordinary pages.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import slmq._native as _native
from slmq.checkpoint import Checkpoint, PackedCheckpoint
from slmq.errors import CheckpointError

__all__ = ["MEMORIES", "MemoryChoice", "PackedFile", "check_memory", "choose_memory"]

MEMORIES = ("mmap", "huge", "small")


@dataclass(frozen=True)
class MemoryChoice:
    """Where weights go.

    Attributes
    ----------
    memory : {"mmap", "huge", "small"}
    why : str
    """

    memory: str
    why: str


def check_memory(requested: str | None) -> None:
    """Raises ValueError for anything but None and one of `MEMORIES`."""
    if requested not in (None, *MEMORIES):
        raise ValueError(
            f"memory: expected one of {', '.join(map(repr, MEMORIES))}, got {requested!r}"
        )


def choose_memory(requested: str | None, checkpoint: Checkpoint) -> MemoryChoice:
    """What was asked for, or what suits a checkpoint: mapping whatever can be mapped.

    Raises
    ------
    ValueError
        For another word, or for "mmap" of a file that does not hold packed weights.
    """
    check_memory(requested)
    if requested is not None:
        if requested == "mmap" and not checkpoint.packed:
            raise ValueError(
                f"memory='mmap' needs packed weights, but {checkpoint.path} is packed while "
                f"loading; `slmq convert {checkpoint.path} FOLDER` writes a folder to map"
            )
        return MemoryChoice(requested, "requested")
    if checkpoint.packed:
        return MemoryChoice("mmap", "packed weights are mapped as is")
    return MemoryChoice("huge", "packed into 2 MiB pages while loading")


class PackedFile:
    """The packed matrices of a packed folder.

    Parameters
    ----------
    checkpoint : PackedCheckpoint
    memory : {"mmap", "huge", "small"}
    threads : int
        Threads that read.

    Raises
    ------
    CheckpointError
        The file was cut short or replaced since its headers were checked.
    """

    def __init__(self, checkpoint: PackedCheckpoint, memory: str, threads: int) -> None:
        self._checkpoint = checkpoint
        self._first, end = checkpoint.packed_range()
        self._arena = None
        if memory == "mmap":
            checkpoint.file.ask_for_huge_pages()
            return
        self._arena = _native.Arena(end - self._first, memory == "huge")
        descriptor = checkpoint.file.reopen()
        try:
            self._arena.read(descriptor, self._first, threads)
        except ValueError as error:
            raise CheckpointError(str(error), file=checkpoint.file.path) from None
        finally:
            os.close(descriptor)

    def matrix(self, name: str) -> _native.Matrix:
        """A stored matrix; it keeps the memory or the mapping that it lies in."""
        info = self._checkpoint.tensors[name]
        n, k = info.shape
        if self._arena is None:
            return _native.Matrix.from_packed(info.dtype, n, k, self._checkpoint.raw(name))
        offset = self._checkpoint.begin(name) - self._first
        return self._arena.matrix(info.dtype, n, k, offset)
