"""The answers that are finished so far, on disk: OUT.part, which becomes OUT.

Every line is on the disk before the next one is written, so a run may be killed at any moment: what
is lost is at most the line that was being written, which the next run cuts off.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from slmq.errors import BusyError, WriteError
from slmq.machine.disk import lock_file, sync

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Part", "ids_of"]


class Part:
    """The part of an output file that is done; use it as a ``with`` block.

    Raises
    ------
    BusyError
        If another process writes it.
    WriteError
        If it cannot be written.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self.path = target.with_name(f"{target.name}.part")
        with _explained(self.path):
            descriptor = lock_file(self.path)
        if descriptor is None:
            raise BusyError(f"{self.path}: another run is writing it")
        self._file = descriptor
        self._places: dict[str, int] = {}  # where the line of an id begins
        self._end = 0
        try:
            with _explained(self.path):
                self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def __contains__(self, line_id: str) -> bool:
        return line_id in self._places

    def append(self, line: dict[str, Any]) -> None:
        """Write a line and wait until the disk has it."""
        self.append_all([line])

    def append_all(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write lines and wait until the disk has them."""
        data = [json.dumps(line, allow_nan=False).encode("ascii") + b"\n" for line in lines]
        with _explained(self.path):
            try:
                _write(self._file, b"".join(data))
                os.fsync(self._file)
            except OSError:
                with suppress(OSError):  # the next run cuts it off, too
                    self._cut()
                raise
        for line, written in zip(lines, data, strict=True):
            self._places[line["id"]] = self._end
            self._end += len(written)

    def lines(self, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The lines of these ids, in this order."""
        for data in self._written(ids):
            yield json.loads(data)

    def publish(self, ids: Sequence[str]) -> None:
        """Give the lines of these ids, in this order, the final name."""
        self.publish_as(self._written(ids))

    def publish_as(self, content: Iterable[bytes]) -> None:
        """Write the output, and forget the part."""
        new = self._target.with_name(f"{self._target.name}.new")
        try:
            with _explained(new), new.open("wb") as file:
                for piece in content:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                new.unlink()
            raise
        with _explained(self._target):
            new.replace(self._target)
            sync(self._target.parent)
            self.path.unlink()

    def _written(self, ids: Sequence[str]) -> Iterator[bytes]:
        with self._reader() as lines:
            for line_id in ids:
                lines.seek(self._places[line_id])
                yield lines.readline()

    def _read(self) -> None:
        """Take in what earlier runs wrote, and cut off what is not whole."""
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise WriteError(f"{self.path}: expected an ordinary file")
        with self._reader() as file:
            for data in file:
                found = _id_of(data)
                if found is None:
                    break
                self._places[found] = self._end
                self._end += len(data)
        self._cut()

    def _reader(self) -> BinaryIO:
        """The file from its beginning; by the descriptor that has the lock."""
        file = open(self._file, "rb", closefd=False)  # noqa: SIM115
        file.seek(0)
        return file

    def _cut(self) -> None:
        os.ftruncate(self._file, self._end)
        os.lseek(self._file, self._end, os.SEEK_SET)


def ids_of(path: Path) -> Iterator[str | None]:
    """The id of every line of an output file; None for a line that slmq did not write."""
    with path.open("rb") as file:
        for data in file:
            yield _id_of(data)


def _id_of(data: bytes) -> str | None:
    """The id of a line; None if it is torn."""
    if not data.endswith(b"\n"):
        return None
    try:
        found = json.loads(data)
    except ValueError:
        return None
    line_id = found.get("id") if isinstance(found, dict) else None
    return line_id if isinstance(line_id, str) else None


def _write(file: int, data: bytes) -> None:
    """Write all of it: a disk that is almost full takes a piece and refuses the rest."""
    while data:
        data = data[os.write(file, data) :]


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be written: {error.strerror or error}; finished answers are kept, and "
            "the same command goes on from them"
        ) from error
