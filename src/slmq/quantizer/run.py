"""`slmq.quantize`: a float checkpoint as a folder of four or eight bits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmq import _native, hub
from slmq.checkpoint import NATIVE, open_checkpoint
from slmq.checkpoint.native import VERSION, NativeWriter, PackedTensor
from slmq.checkpoint.safetensors import CONFIG, SINGLE
from slmq.errors import CheckpointError, Error
from slmq.folders import check_room, check_target, new_folder, source_files
from slmq.formats import FORMATS, format_named
from slmq.quantizer.grids import GRIDS, pack_rounded
from slmq.quantizer.methods import round_searched
from slmq.quantizer.work import Work, open_work
from slmq.tokenizer.save import save_tokenizer
from slmq.wanted import Source, Wish

__all__ = ["METHODS", "QuantizedFolder", "TensorReport", "quantize"]

METHODS = ("auto", "rtn")
Progress = Callable[[str, int, int], None]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TensorReport:
    """How one matrix was rounded.

    Attributes
    ----------
    name, format, method : str
    n, k : int
    weight_error : float
        Squared error of the weights over their squares.
    """

    name: str
    format: str
    method: str
    n: int
    k: int
    weight_error: float


@dataclass(frozen=True)
class QuantizedFolder:
    """What `quantize` wrote; usable wherever a path is.

    Attributes
    ----------
    path : Path
    bits_per_weight : float
        Of all matrices, scales included, padding not.
    tensors : tuple of TensorReport
    """

    path: Path
    bits_per_weight: float
    tensors: tuple[TensorReport, ...]

    def __fspath__(self) -> str:
        """Return the path."""
        return str(self.path)


@dataclass(frozen=True)
class _Settings:
    format: str
    method: str


def quantize(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    format: str = "int4",
    method: str = "auto",
    force: bool = False,
    n_threads: int | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
) -> QuantizedFolder:
    """Quantize a model, tensor by tensor, into a folder that slmq maps and runs.

    The same source and settings give the same bytes on every CPU and with any number of threads. A
    run that was interrupted goes on where it was when it is started again; the folder appears whole
    or not at all.

    Parameters
    ----------
    src : str or path
        Catalogue name, hub id, folder or .gguf file.
    dst : str or path
        The folder to make. It must not exist unless `force` is given.
    format : str
        "int4" (q4g32a), "int8" (q8g32s) or a weight format: q4g32s, q4g32a, q8g32s.
    method : {"auto", "rtn"}
        How weights are rounded. "rtn": to nearest, with scales searched for the least squared
        error. "auto": what measures best for each matrix.
    force : bool
        Whether a folder that slmq wrote may be replaced.
    n_threads : int, optional
        By default the physical cores that this process may use.
    revision, local_files_only
        As in `slmq.load`.
    progress : callable, optional
        Called with what is done, and how many steps of how many are.

    Raises
    ------
    Error
        `dst` exists or cannot be written.
    ValueError
        For an unknown format or method.
    ModelNotFoundError, CheckpointError, UnsupportedModelError, DownloadError, TokenizerError
        If `src` cannot be loaded.
    """
    settings = _settings(format, method)
    target = Path(os.path.abspath(dst))  # noqa: PTH100 (keeps links, drops "..")
    check_target(target, force)
    threads = _native.resolve_threads(n_threads)["threads"]
    found = hub.resolve(os.fspath(src), revision=revision, local_files_only=local_files_only)
    with open_checkpoint(found.path) as checkpoint:
        source = Source(checkpoint, None if checkpoint.kind == NATIVE else "f32", threads)
        files = source_files(checkpoint)
        key = asdict(settings) | {"source": files, "version": version("slmq")}
        with open_work(target, key) as work:
            wishes = [wish for wish in source.wishes if wish.known is None]
            tensors = [_format_of(wish, settings) for wish in wishes]
            nbytes = sum(tensor.nbytes for tensor in tensors)
            check_room(target, 2 * nbytes)
            reports = _round_all(source, wishes, tensors, settings, work, threads, progress)
            bits = _bits_per_weight(tensors)
            with new_folder(target, nbytes, force) as folder:
                _write_weights(folder / SINGLE, source, wishes, tensors, work)
                save_tokenizer(checkpoint, folder)
                config = source.config | {NATIVE: _provenance(settings, files, bits)}
                # Last: a folder without it does not load.
                (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "ascii")
    return QuantizedFolder(target, bits, tuple(reports))


def _settings(format: str, method: str) -> _Settings:
    stored = format_named(format).name
    if stored not in GRIDS:
        raise ValueError(
            f"format: expected int4, int8 or one of {', '.join(GRIDS)}; got {format!r}"
        )
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}; got {method!r}")
    return _Settings(stored, method)


def _format_of(wish: Wish, settings: _Settings) -> PackedTensor:
    if not wish.rounds:
        return wish.tensor
    return PackedTensor(wish.tensor.name, settings.format, wish.tensor.shape)


def _round_all(
    source: Source,
    wishes: list[Wish],
    tensors: list[PackedTensor],
    settings: _Settings,
    work: Work,
    threads: int,
    progress: Progress | None,
) -> list[TensorReport]:
    """Every matrix into the work folder, unless it is there."""
    reports = []
    for i, (wish, tensor) in enumerate(zip(wishes, tensors, strict=True)):
        if wish.rounds:
            found = work.value(str(i))
            if found is None:
                report = _round(source, wish, tensor, work, str(i), threads)
                work.save_value(str(i), asdict(report))
            else:
                report = TensorReport(**found)
            reports.append(report)
        if progress is not None:
            progress("quantizing", i + 1, len(tensors))
    return reports


def _round(
    source: Source, wish: Wish, tensor: PackedTensor, work: Work, name: str, threads: int
) -> TensorReport:
    w = np.concatenate(list(source.floats(wish)))
    try:
        rounded = round_searched(w, tensor.format, threads=threads)
    except ValueError as error:
        raise CheckpointError(str(error), file=source.checkpoint.path, tensor=wish.stored) from None
    work.save_data(name, pack_rounded(rounded).packed)
    relative = _relative_error(w, rounded.values())
    return TensorReport(tensor.name, tensor.format, "rtn", wish.n, wish.k, relative)


def _relative_error(w: F32, rounded: F32) -> float:
    squares = float(np.square(w, dtype=np.float64).sum())
    return float(np.square(w - rounded, dtype=np.float64).sum()) / squares if squares else 0.0


def _write_weights(
    path: Path, source: Source, wishes: list[Wish], tensors: list[PackedTensor], work: Work
) -> None:
    with NativeWriter(path, tensors) as file:
        for i, (wish, tensor) in enumerate(zip(wishes, tensors, strict=True)):
            if not wish.rounds:
                file.write(source.read(wish).data)
                continue
            data = work.data(str(i))
            if data is None or len(data) != tensor.nbytes:
                raise Error(f"{work.folder}: the bytes of {tensor.name} are gone; start again")
            file.write(data.data)


def _bits_per_weight(tensors: list[PackedTensor]) -> float:
    bits = weights = 0.0
    for tensor in tensors:
        if len(tensor.shape) == 2:
            size = tensor.shape[0] * tensor.shape[1]
            bits += FORMATS[tensor.format].bits_per_weight * size
            weights += size
    return bits / max(1.0, weights)


def _provenance(settings: _Settings, files: list[dict[str, Any]], bits: float) -> dict[str, Any]:
    """The section of config.json that says where the weights come from."""
    return {
        "format_version": int(VERSION),
        "slmq_version": version("slmq"),
        "source": files,
        "quant": settings.format,
        "method": settings.method,
        "bits_per_weight": round(bits, 4),
    }
