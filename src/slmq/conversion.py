"""`slmq.convert`: any checkpoint that slmq loads, as a folder of packed weights."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from slmq import _native, hub
from slmq.checkpoint import NATIVE, Checkpoint, open_checkpoint
from slmq.checkpoint.native import COLUMNS, VERSION, NativeWriter, PackedTensor
from slmq.checkpoint.safetensors import CONFIG, SINGLE
from slmq.engine import open_weights
from slmq.errors import CheckpointError, Error
from slmq.tokenizer.save import save_tokenizer
from slmq.weights import Rows

if TYPE_CHECKING:
    from slmq.checkpoint.mapped import MappedCheckpoint
    from slmq.weights import WeightReader

try:
    import fcntl
except ImportError:  # Windows: nothing tells a killed conversion from one at work
    fcntl = None  # type: ignore[assignment]

__all__ = ["convert"]

Progress = Callable[[int, int], None]
PIECE = 8 << 20  # bytes that are hashed at a time
PART = ".part"
QUANT_KEYS = ("quantization_config", "compression_config")
SPARE_BYTES = 64 << 20  # for tokenizer and configuration, when the free space is looked at


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    quant: str | None = None,
    force: bool = False,
    n_threads: int | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a model as a folder of packed weights, which loads in a fraction of the time.

    The packed bytes are those that loading `src` makes, so the model answers the same. The folder
    appears whole or not at all.

    Parameters
    ----------
    src : str or path
        Catalogue name, hub id, folder or .gguf file.
    dst : str or path
        The folder to make. It must not exist unless `force` is given.
    quant : {"int4", "int8", "f16", "f32"}, optional
        What weights become; None keeps them as they are stored.
    force : bool
        Whether a folder that an earlier conversion wrote may be replaced.
    n_threads : int, optional
        Threads that pack; None takes the physical cores that this process may use.
    revision, local_files_only
        As in `slmq.load`.
    progress : callable, optional
        Called with the bytes written and their total.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    Error
        If `dst` exists or cannot be written; the disk is then as it was before.
    ModelNotFoundError, CheckpointError, UnsupportedModelError, DownloadError, TokenizerError
        If `src` cannot be loaded.
    """
    target = Path(os.path.abspath(dst))  # noqa: PTH100 (keeps links, drops "..")
    _check_target(target, force)
    threads = _native.resolve_threads(n_threads)["threads"]
    found = hub.resolve(os.fspath(src), revision=revision, local_files_only=local_files_only)
    with open_checkpoint(found.path) as checkpoint:
        source = _Source(checkpoint, quant, threads)
        config = source.config | {NATIVE: _provenance(checkpoint, quant)}
        with _new_folder(
            target, sum(wish.tensor.nbytes for wish in source.wishes), force
        ) as folder:
            _write_weights(folder / SINGLE, source, progress)
            save_tokenizer(checkpoint, folder)
            # Last: a folder without it does not load.
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "ascii")
    return target


@dataclass(frozen=True)
class _Wish:
    """What a family asks for: a vector, or a matrix; its rows may come in another order, or be
    some of a matrix that the source stores under the name `stored`. Or `values`: known already."""

    tensor: PackedTensor
    order: npt.NDArray[np.int32] | None = None
    rows: Rows | None = None
    stored: str = ""
    values: npt.NDArray[np.int32] | None = None


class _Source:
    """A checkpoint as its family reads it: noted first, so that the header can be written, then
    tensor by tensor.

    Attributes
    ----------
    config : dict
        In Hugging Face's terms.
    wishes : list of _Wish
    """

    def __init__(self, checkpoint: Checkpoint, quant: str | None, threads: int) -> None:
        self.checkpoint = checkpoint
        memory = "mmap" if checkpoint.kind == NATIVE else "huge"
        opened = open_weights(checkpoint, threads=threads, quant=quant, memory=memory, keep=False)
        self._reader = opened.reader
        # How the source was quantized says nothing of the packed weights.
        self.config = {k: v for k, v in opened.raw_config.items() if k not in QUANT_KEYS}
        if checkpoint.kind == "gguf":
            self.config |= {"model_type": checkpoint.metadata["general.architecture"]}
            if isinstance(licence := checkpoint.metadata.get("general.license"), str):
                self.config["license"] = licence
        self._wishes: dict[str, _Wish] = {}
        # It has the methods that a family's load() uses, and only notes what they ask for.
        opened.family.load(cast("WeightReader", self), opened.config)

    @property
    def wishes(self) -> list[_Wish]:
        return list(self._wishes.values())

    def has(self, name: str) -> bool:
        return self._reader.has(name)

    def vector(self, name: str, size: int) -> npt.NDArray[np.float32]:
        self._note(_Wish(PackedTensor(name, "f32", (size,))))
        return np.ones(size, np.float32)

    def linear(
        self,
        name: str,
        n: int,
        k: int,
        *,
        bias: str | None = None,
        order: npt.NDArray[np.int32] | None = None,
        rows: Rows | None = None,
    ) -> None:
        fmt = self._reader.format_of(name, n, k, rows)
        written = name if rows is None else rows.name(name, n)
        self._note(_Wish(PackedTensor(written, fmt, (n, k)), order, rows, name))
        columns = self._reader.columns_of(name, n, k, rows)
        if columns is not None:
            beside = PackedTensor(written + COLUMNS, "i32", (k,))
            self._note(_Wish(beside, values=columns))
        if bias is not None:
            self._note(_Wish(PackedTensor(bias, "f32", (n,)), order))

    def _note(self, wish: _Wish) -> None:
        self._wishes[wish.tensor.name] = wish

    def read(self, wish: _Wish) -> npt.NDArray[np.uint8]:
        """The bytes that are stored for a tensor: uint8[nbytes]."""
        name, shape, order = wish.tensor.name, wish.tensor.shape, wish.order
        if wish.values is not None:
            return wish.values.astype("<i4").view(np.uint8)
        if len(shape) == 2:
            read = self._reader.linear(wish.stored, *shape, order=order, rows=wish.rows)
            return read.matrix.packed
        values = self._reader.vector(name, *shape)
        return (values if order is None else values[order]).astype("<f4").view(np.uint8)


def _write_weights(path: Path, source: _Source, progress: Progress | None) -> None:
    tensors = [wish.tensor for wish in source.wishes]
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    with NativeWriter(path, tensors) as file:
        for wish in source.wishes:
            data = source.read(wish)
            file.write(data.data)
            done += len(data)
            if progress is not None:
                progress(done, total)


def _provenance(checkpoint: Checkpoint, quant: str | None) -> dict[str, Any]:
    """The section of config.json that says where the weights come from."""
    files = []
    for file in cast("MappedCheckpoint", checkpoint).files:
        digest = hashlib.sha256()
        with file.path.open("rb") as f:
            while piece := f.read(PIECE):
                digest.update(piece)
        files.append({"name": file.path.name, "bytes": file.size, "sha256": digest.hexdigest()})
    return {
        "format_version": int(VERSION),
        "slmq_version": version("slmq"),
        "source": files,
        "quant": quant,
    }


def _check_target(target: Path, force: bool) -> None:
    if not target.parent.is_dir():
        raise Error(f"cannot write {target}: there is no folder {target.parent}")
    if not os.path.lexists(target):
        return
    if not force:
        raise Error(f"{target} exists; give another folder, or force (--force) to replace it")
    try:
        with open_checkpoint(target) as old:
            ours = old.kind == NATIVE and target.is_dir() and not target.is_symlink()
    except CheckpointError:
        ours = False
    if not ours:
        raise Error(
            f"{target} exists and is no folder that slmq wrote, so force does not replace it; "
            f"delete it yourself or give another folder"
        )


@contextmanager
def _new_folder(target: Path, nbytes: int, force: bool) -> Iterator[Path]:
    """A folder beside `target` which takes its place at the end of the block, or vanishes."""
    _remove_stale(target)
    free = shutil.disk_usage(target.parent).free
    if nbytes + SPARE_BYTES > free:
        raise Error(
            f"cannot write {target}: the weights need {nbytes:,} bytes, and {free:,} are free there"
        )
    folder = target.parent / f".{target.name}.{secrets.token_hex(4)}{PART}"
    lock = None
    try:
        folder.mkdir()
        lock = _lock(folder)
        yield folder
        for path in (*folder.rglob("*"), folder):
            _sync(path)
        _publish(folder, target, force)
        _sync(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Error(f"cannot write {target}: {reason}; nothing was kept") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _publish(folder: Path, target: Path, force: bool) -> None:
    """Rename a finished folder to its name; an older one goes first, if it may."""
    if not os.path.lexists(target):
        folder.rename(target)
        return
    if not force:
        raise Error(f"{target} exists by now; nothing was kept")
    old = folder.with_suffix(f".old{PART}")
    target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Let the disk have a file or folder before its name says that it is whole."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """A lock on a folder until it is closed or the process ends; None if another has it."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_stale(target: Path) -> None:
    """Delete what conversions to `target` left that were killed: nobody holds its lock."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.*{PART}"):
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
