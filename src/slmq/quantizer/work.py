"""What a quantization has done so far, in a folder beside its target, so that it can be resumed.

Every finished tensor is a file, which gets its name when it is on the disk. A key says for what
they were made: another source, calibration or setting begins anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from slmq.errors import BusyError, WriteError
from slmq.machine.disk import create, lock_folder, publish

__all__ = ["Work", "open_work"]


class Work:
    """A folder of finished pieces: bytes or a JSON value, each under a name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def data(self, name: str) -> npt.NDArray[np.uint8] | None:
        """The bytes that were saved, mapped: uint8[size]; None if there are none yet."""
        path = self._path(name, "bin")
        if not path.is_file():
            return None
        return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)

    def value(self, name: str) -> Any:
        """The value that was saved; None if there is none yet."""
        path = self._path(name, "json")
        return json.loads(path.read_text("utf-8")) if path.is_file() else None

    def save_data(self, name: str, data: npt.NDArray[np.uint8]) -> None:
        """Save bytes; they are on the disk when this returns."""
        self._save(self._path(name, "bin"), data.data)

    def save_value(self, name: str, value: Any) -> None:
        """Save a value that JSON can say."""
        self._save(self._path(name, "json"), json.dumps(value).encode("utf-8"))

    def forget(self, name: str) -> None:
        """Delete the bytes of this name, if there are any."""
        self._path(name, "bin").unlink(missing_ok=True)

    def close(self) -> None:
        """Delete all of it. The key goes first: without it what is left counts for nothing."""
        self._path("key", "json").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str, kind: str) -> Path:
        return self.folder / f"{quote(name, safe='')}.{kind}"

    def _save(self, path: Path, data: bytes | memoryview) -> None:
        new = path.with_suffix(".new")
        with create(new, self.folder) as file:
            file.write(data)
            publish(file, new, path, self.folder)


@contextmanager
def open_work(target: Path, key: Mapping[str, Any]) -> Iterator[Work]:
    """The work for a target; it is gone when the block ends well, and stays when it fails.

    Raises
    ------
    BusyError
        Another process works for the same target.
    WriteError
        The disk is full, or the folder cannot be written for another reason.
    """
    folder = target.parent / f".{target.name}.quantizing"
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode("utf-8")).hexdigest()
    descriptor = None
    try:
        folder.mkdir(exist_ok=True)
        descriptor = lock_folder(folder)
        if descriptor is None:
            raise BusyError(f"cannot write {target}: another process is writing it")
        work = Work(folder)
        if work.value("key") != digest:
            for path in folder.iterdir():
                path.unlink()
            work.save_value("key", digest)
        yield work
        work.close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(
            f"cannot write {target}: {reason}; finished parts are kept in {folder}; to resume, "
            f"repeat the command"
        ) from error
    finally:
        if descriptor is not None:
            os.close(descriptor)
