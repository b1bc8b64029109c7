"""The results that are finished so far, on disk: OUT.part, which goes once OUT is whole.

Results are of one size and in order, so how far an earlier run came is the length of the file. A
first line of JSON says what they were computed of.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from slmq.errors import BusyError, WriteError
from slmq.machine.disk import lock_file

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Records"]

READ = 4096  # results that are read at once


class Records:
    """Finished results of a job; use it as a ``with`` block.

    Parameters
    ----------
    target : Path
        The job's output.
    job : mapping
        What results depend on, as JSON.
    kind : dtype
        Of one result.

    Raises
    ------
    BusyError
        If another process writes them.
    WriteError
        If they cannot be written, or are those of another job.
    """

    def __init__(self, target: Path, job: Mapping[str, Any], kind: npt.DTypeLike) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self.kind: np.dtype[Any] = np.dtype(kind)
        self._head = json.dumps(dict(job), sort_keys=True).encode("ascii") + b"\n"
        self._removed = False
        descriptor = lock_file(self.path)
        if descriptor is None:
            raise BusyError(f"{self.path}: another run is writing it")
        self._file = descriptor
        try:
            self._count = self._continued()
        except BaseException:
            os.close(descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._count == 0 and not self._removed:
            self.remove()  # nothing is lost by it
        os.close(self._file)

    def __len__(self) -> int:
        return self._count

    def append(self, results: npt.NDArray[Any]) -> None:
        """Write results behind the others and wait until the disk has them."""
        data = memoryview(np.ascontiguousarray(results, self.kind.base).tobytes())
        while data:  # a disk that is almost full takes a piece and refuses the rest
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)
        self._count += len(results)

    def __iter__(self) -> Iterator[Any]:
        """All of them, in order."""
        with self._reader() as file:
            file.seek(len(self._head))
            for start in range(0, self._count, READ):
                count = min(READ, self._count - start)
                data = np.frombuffer(file.read(count * self.kind.itemsize), self.kind.base)
                yield from data.reshape(count, *self.kind.shape)

    def remove(self) -> None:
        """Forget them: what was made of them is on the disk."""
        self.path.unlink()
        self._removed = True

    def _continued(self) -> int:
        """How many results of this job there are; what is behind the last whole one is cut off."""
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise WriteError(f"{self.path}: expected an ordinary file")
        with self._reader() as file:
            head = file.readline(1 << 20)
        if head.endswith(b"\n") and head != self._head:
            raise WriteError(
                f"{self.path}: holds results of another job (other texts, another model or other "
                f"options); remove it, or write to another file"
            )
        if head != self._head:  # new, or a run that ended before its first line did
            os.ftruncate(self._file, 0)
            os.write(self._file, self._head)
        behind = os.fstat(self._file).st_size - len(self._head)
        count = behind // self.kind.itemsize
        end = len(self._head) + count * self.kind.itemsize
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)
        return count

    def _reader(self) -> BinaryIO:
        """The file from its beginning; by the descriptor that has the lock."""
        file = open(self._file, "rb", closefd=False)  # noqa: SIM115
        file.seek(0)
        return file
