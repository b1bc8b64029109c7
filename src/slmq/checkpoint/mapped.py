"""Read-only mappings of checkpoint files, and the part of a checkpoint that both formats share."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from slmq.checkpoint.base import Layout, TensorInfo
from slmq.checkpoint.stacks import cut_stacks
from slmq.errors import CheckpointError, ClosedError
from slmq.machine.disk import open_regular

__all__ = ["LARGEST", "MappedCheckpoint", "MappedFile", "Span"]

LARGEST = 1 << 50  # bytes of a file of weights
OWN_PAGES_BYTES = 1 << 20
PIECE_BYTES = 64 << 20  # that are read at a time


class MappedFile:
    """One regular file, mapped read-only.

    A file that another process cuts short while it is mapped kills readers with SIGBUS on POSIX;
    that cannot be checked for. What is checked is that offsets lie inside the size at opening, and
    weights that are not run from the mapping are read with `read`, which notices.

    Parameters
    ----------
    path : Path
        A regular, non-empty file. Raises `CheckpointError` for anything else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._buffer: mmap.mmap | None = None
        try:
            with open_regular(path, LARGEST) as f:
                status = os.fstat(f.fileno())
                self.size = status.st_size
                self._identity = (status.st_dev, status.st_ino, status.st_size)
                if self.size == 0:
                    raise CheckpointError("the file is empty; download it again", file=path)
                self._buffer = mmap.mmap(f.fileno(), self.size, access=mmap.ACCESS_READ)
                self._file = os.fdopen(os.dup(f.fileno()), "rb", buffering=0)
                self._lock = threading.Lock()
        except (OSError, ValueError) as e:
            reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
            raise CheckpointError(f"cannot open the file: {reason}", file=path) from e

    @property
    def buffer(self) -> mmap.mmap:
        """The mapping. Raises `ClosedError` once closed."""
        if self._buffer is None:
            raise ClosedError(f"{self.path} is closed")
        return self._buffer

    def reopen(self) -> int:
        """Return a descriptor of the same file, for reading; the caller closes it.

        Raises
        ------
        CheckpointError
            The file is gone, or another one has taken its name.
        """
        try:
            with open_regular(self.path, LARGEST) as f:
                descriptor = os.dup(f.fileno())
        except OSError as e:
            raise CheckpointError(f"cannot open the file: {e.strerror}", file=self.path) from e
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino, status.st_size) != self._identity:
            os.close(descriptor)
            raise CheckpointError("the file was replaced while slmq was reading it", file=self.path)
        return descriptor

    def view(self, begin: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """Read-only ``uint8[nbytes]`` from byte `begin`; the array keeps the mapping alive."""
        if not 0 <= begin <= begin + nbytes <= self.size:
            raise ValueError(f"bytes {begin}..{begin + nbytes} are outside of {self.path}")
        return np.frombuffer(self.buffer, np.uint8, nbytes, begin)

    def read(self, begin: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """Read-only ``uint8[nbytes]`` from byte `begin`, read into memory of its own.

        Raises
        ------
        CheckpointError
            The file was cut short since it was opened, or the disk fails.
        """
        if not 0 <= begin <= begin + nbytes <= self.size:
            raise ValueError(f"bytes {begin}..{begin + nbytes} lie outside of {self.path}")
        if self._buffer is None:
            raise ClosedError(f"{self.path} is closed")
        data = _memory(nbytes)
        done = 0
        try:
            while done < nbytes:
                got = self._read_some(begin + done, data.data[done : done + PIECE_BYTES])
                if got == 0:
                    raise CheckpointError(
                        f"expected {nbytes} bytes at offset {begin}, found {done}: the file was "
                        f"cut short while it was read",
                        file=self.path,
                    )
                done += got
        except OSError as e:
            raise CheckpointError(f"cannot read the file: {e.strerror}", file=self.path) from e
        data.flags.writeable = False
        return data

    def _read_some(self, begin: int, into: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [into], begin)
        with self._lock:  # one position for all threads
            self._file.seek(begin)
            return self._file.readinto(into)

    def ask_for_huge_pages(self) -> None:
        """Let the OS read and map the file in 2 MiB pieces, where it can do that."""
        huge = getattr(mmap, "MADV_HUGEPAGE", None)
        if huge is not None:
            with contextlib.suppress(OSError):  # a kernel without them
                self.buffer.madvise(huge)

    def release(self, begin: int, nbytes: int) -> None:
        """Drop the resident pages that lie wholly inside the range, where the OS can do that."""
        # A page that is shared with a neighbour stays: it may be in use.
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (begin + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        dont_need = getattr(mmap, "MADV_DONTNEED", None)
        if dont_need is not None and last > first:
            self.buffer.madvise(dont_need, first, last - first)

    def close(self) -> None:
        """Unmap now, or when the last view dies. Closing twice is harmless."""
        mapping, self._buffer = self._buffer, None
        if mapping is None:
            return
        self._file.close()
        # BufferError: views exist. Each holds a reference to the mapping; the last one unmaps it.
        with contextlib.suppress(BufferError):
            mapping.close()


def _memory(nbytes: int) -> npt.NDArray[np.uint8]:
    """``uint8[nbytes]``. Large ones are pages of their own, which go back when they are freed."""
    if nbytes < OWN_PAGES_BYTES:
        return np.empty(nbytes, np.uint8)
    pages = mmap.mmap(-1, nbytes)
    huge = getattr(mmap, "MADV_HUGEPAGE", None)
    if huge is not None:
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(huge)
    return np.frombuffer(pages, np.uint8)


Span = tuple[MappedFile, int]  # where a tensor's bytes begin: the file, the offset in it


class MappedCheckpoint:
    """The `Checkpoint` interface over mapped files; the readers are its subclasses.

    What a subclass does not say of itself is as in Hugging Face's folders.
    """

    kind: ClassVar[str]
    layout: ClassVar[Layout] = Layout()
    packed: ClassVar[bool] = False
    holds_tokenizer: ClassVar[bool] = False
    architecture_key: ClassVar[str] = "model_type"
    licence_key: ClassVar[str] = "license"
    # Names of tensors that hold a matrix of every expert.
    stacks: ClassVar[re.Pattern[str] | None] = None

    def __init__(
        self,
        path: Path,
        *,
        metadata: dict[str, Any],
        tensors: dict[str, TensorInfo],
        spans: dict[str, Span],
        files: Sequence[MappedFile],
    ) -> None:
        if self.stacks is not None:
            cut_stacks(tensors, spans, self.stacks)
        self.path = path
        self.metadata: Mapping[str, Any] = MappingProxyType(metadata)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        self._spans = spans
        self._files = tuple(files)
        self._held: dict[str, npt.NDArray[np.uint8]] = {}
        self._reading = threading.Lock()

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """Return the stored bytes: read-only ``uint8[nbytes]`` over the mapped file, no copy.

        Raises
        ------
        CheckpointError
            No tensor has that name.
        ClosedError
            The checkpoint is closed.
        """
        file, begin = self.span(name)
        return file.view(begin, self.tensors[name].nbytes)

    def read(self, name: str, first: int = 0, last: int | None = None) -> npt.NDArray[np.uint8]:
        """Return the stored bytes, or those of rows `first` to `last`, in memory of their own.

        Raises
        ------
        CheckpointError
            No tensor has that name, or the file was cut short since it was opened.
        ValueError
            The checkpoint is closed.
        """
        file, begin = self.span(name)
        info = self.tensors[name]
        if last is None:
            return file.read(begin, info.nbytes)
        row = info.nbytes // info.shape[0]
        return file.read(begin + first * row, (last - first) * row)

    def held(self, name: str) -> npt.NDArray[np.uint8]:
        """What `read` returns, kept until `release`: for weights that are read in pieces."""
        with self._reading:
            data = self._held.get(name)
            if data is None:
                data = self._held[name] = self.read(name)
            return data

    def release(self, name: str) -> None:
        """Give the memory of one tensor back: its resident pages, and what `held` keeps."""
        with self._reading:
            self._held.pop(name, None)
        file, begin = self.span(name)
        file.release(begin, self.tensors[name].nbytes)

    def close(self) -> None:
        """Unmap the files. Views that still exist stay valid and keep their mapping alive."""
        for file in self._files:
            file.close()

    @property
    def files(self) -> tuple[MappedFile, ...]:
        """The mapped files."""
        return self._files

    def span(self, name: str) -> Span:
        """Return the file that holds a tensor, and where in it the tensor's bytes begin."""
        if name not in self._spans:
            raise CheckpointError(
                f"not among the {len(self._spans)} tensors of the checkpoint",
                file=self.path,
                tensor=name,
            )
        return self._spans[name]

    def __enter__(self) -> MappedCheckpoint:
        """Return the checkpoint itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Name the kind, the path and the number of tensors."""
        return f"<{self.kind} checkpoint {str(self.path)!r}, {len(self.tensors)} tensors>"
