"""`slmq.quantize`: a float checkpoint as a folder of few bits."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import slmq._native as _native
import slmq.hub as hub
from slmq.checkpoint import PACKED, Checkpoint, open_model
from slmq.checkpoint.packed_folder import VERSIONS, PackedTensor, PackedWriter
from slmq.checkpoint.safetensors import CONFIG, SINGLE
from slmq.conversion.folder import check_room, check_target, new_folder, source_files
from slmq.conversion.sentences import copy_sentences, write_sentences
from slmq.conversion.source import Source
from slmq.engine.doubts import FLOAT_BITS, stored_bits
from slmq.errors import WriteError
from slmq.formats import FORMATS, format_named
from slmq.models.registry import family_of, refuse_encoder
from slmq.quantizer.calibration import Calibration, read_calibration
from slmq.quantizer.grids import GRIDS, MIXED, fits
from slmq.quantizer.importance import Importance, read_importance
from slmq.quantizer.kept import KeptDamage
from slmq.quantizer.methods import METHODS
from slmq.quantizer.mix import Choice, Mix, choose_formats
from slmq.quantizer.page import write_report
from slmq.quantizer.pipeline import Pipeline, Progress
from slmq.quantizer.reports import QuantizedFolder
from slmq.quantizer.source import FloatSource
from slmq.quantizer.work import open_work
from slmq.settings import PackedFormat
from slmq.tokenizer.save import save_tokenizer
from slmq.weights.survey import Wish

__all__ = ["quantize"]

log = logging.getLogger("slmq")

DEFAULT = "int4"
# For rows that a format with longer runs does not fit: as many bits, in groups of 32 columns.
SHORTER = {
    **{"q5k": "q5g32s", "q6k": "q6g32s", "q4g128s": "q4g32s", "q4g64s": "q4g32s"},
    **{"n4k": "n4g32s", "n4g32": "n4g32s"},
}
SHORTEST = "q4g32a"
CLOSE = 0.05  # bits: a mix that has fewer by more is said


@dataclass(frozen=True)
class _Settings:
    """What was asked for: a format for all, or bits; a method."""

    format: str | None
    bits: float | None
    method: str


def quantize(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    format: PackedFormat | None = None,
    bits: float | None = None,
    method: str = "auto",
    calibrate: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    force: bool = False,
    n_threads: int | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
) -> QuantizedFolder:
    """Quantize a model, layer by layer, into a folder that slmq maps and runs.

    The same source, text and settings give the same bytes on every CPU and with any number of
    threads. To resume an interrupted run, repeat it. The folder appears only when complete.

    Parameters
    ----------
    src : str or path
        Catalogue name, hub id, folder or .gguf file.
    dst : str or path
        The folder to write. It must not exist unless `force` is given.
    format : str, optional
        "int4" (q4g32a, the default), "int8" (q8g32s), or one of q2k, q4g128s, q4g64s, q4g128z,
        n4g32, n4k, q4g32s, n4g32s, q4g64z, q4k, q4g32a, q5g32s, q5k, q5g32a, q6g32s, q6k, q8g32s.
    bits : float, optional
        Instead of `format`: average bits per weight. Each matrix, including embedding and head,
        gets the format that its measured sensitivity calls for.
    method : {"auto", "rtn", "weighted", "feedback", "rescaled"}
        How weights are rounded. "rtn": to nearest, with scales searched for the least squared error
        of the weights. The others need `calibrate`. "weighted": the same, with columns weighted by
        the mean square of their inputs. "feedback": column by column, later columns making up for
        the errors of earlier ones (GPTQ), and refined. "rescaled": the same after channels with
        large inputs were made larger in the weights and smaller in the norm before them (AWQ),
        where that is possible. "auto": for each matrix what measures best on a part of
        the text that is held back; without `calibrate`, "rtn".
    calibrate : str or path, optional
        A text file (UTF-8) typical of what the model will read; ten thousand tokens are used.
    imatrix : str or path, optional
        Instead of a text: an importance matrix that llama.cpp's `llama-imatrix` wrote as a GGUF
        file. The method is then "weighted"; matrices that it lacks, such as the embedding, are
        rounded by "rtn".
    report : str or path, optional
        An HTML page to write: error per layer and per format, size against quality.
    force : bool
        Whether to replace a folder that slmq wrote.
    n_threads : int, optional
        By default the physical cores that this process may use.
    revision, local_files_only
        As in `slmq.load`.
    progress : callable, optional
        Called with the current task, the number of finished steps and of all steps.

    Raises
    ------
    WriteError
        `dst` exists, or it or `report` cannot be written.
    BusyError
        Another process is quantizing to `dst`.
    DataError
        `calibrate` or `imatrix` cannot be used.
    ValueError
        For unknown settings, or bits that no mix of formats has.
    ModelNotFoundError, CheckpointError, UnsupportedModelError, DownloadError, TokenizerError
        If `src` cannot be loaded.
    """
    settings = _settings(format, bits, method, calibrate is not None, imatrix is not None)
    target = Path(os.path.abspath(dst))  # noqa: PTH100 (keeps links, drops "..")
    check_target(target, force)
    threads = _native.resolve_threads(n_threads)["threads"]
    found = hub.resolve(os.fspath(src), revision=revision, local_files_only=local_files_only)
    with open_model(found.path) as checkpoint:
        if calibrate is not None:
            refuse_encoder(family_of(checkpoint)[0], found.path, "quantizing by a text")
        source = FloatSource(checkpoint, None if checkpoint.packed else "f32", threads)
        _doubt_source(checkpoint, source)
        _require_bits(settings, source)
        text = None
        if calibrate is not None:
            context = source.opened.config.max_positions
            text = read_calibration(Path(calibrate), checkpoint, context)
        importance = None if imatrix is None else read_importance(Path(imatrix), source)
        made_of = _provenance(settings, source_files(checkpoint), text, importance)
        with open_work(target, made_of) as work:
            pipeline = Pipeline(source, text, work, threads, progress, importance)
            mix, damage = _formats(settings, source, pipeline, _kept(made_of, source))
            wishes = [wish for wish in source.wishes if wish.known is None]
            tensors = [_stored(wish, mix) for wish in wishes]
            nbytes = sum(tensor.nbytes for tensor in tensors)
            check_room(target, 2 * nbytes)
            reports = pipeline.round(mix.formats, settings.method)
            made_of["bits_per_weight"] = round(_bits_per_weight(tensors), 4)
            with new_folder(target, nbytes, force) as folder:
                _write_weights(folder / SINGLE, wishes, tensors, pipeline)
                save_tokenizer(checkpoint, folder)
                copy_sentences(found.path, folder)
                write_sentences(checkpoint, folder)
                config = source.config | {PACKED: made_of}
                # Last: a folder without it does not load.
                (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "ascii")
    made = QuantizedFolder(
        target,
        _bits_per_weight(tensors),
        tuple(replace(r, damage=damage.get(name, {})) for name, r in reports.items()),
        mix.front,
    )
    if report is not None:
        write_report(made, Path(report))
    return made


def _doubt_source(checkpoint: Checkpoint, source: FloatSource) -> None:
    """Warn of weights that were rounded before: what that lost stays lost, and adds up."""
    weights = sum(wish.n * (wish.k if wish.is_matrix else 1) for wish in source.wishes)
    bits = stored_bits(checkpoint, weights)
    if bits < FLOAT_BITS:
        log.warning(
            "%s: the weights were rounded to %.1f bits already; rounding them again adds to that "
            "error. A float checkpoint of the model gives a better one",
            checkpoint.path,
            bits,
        )


def _require_bits(settings: _Settings, source: Source) -> None:
    """Refuse bits that no mix has, before anything is measured or left on the disk."""
    if settings.bits is None:
        return
    wishes = [wish for wish in source.wishes if wish.rounds]
    total = sum(wish.n * wish.k for wish in wishes)
    least = most = 0.0
    for wish in wishes:
        bits = [FORMATS[fmt].bits_in_rows(wish.k) for fmt in MIXED if fits(fmt, wish.k)]
        least += wish.n * wish.k * min(bits) / total
        most += wish.n * wish.k * max(bits) / total
    if not least <= settings.bits <= most:
        raise ValueError(
            f"bits: expected {least:.4g} to {most:.4g} for this model, got {settings.bits:g}"
        )


def _settings(
    format: str | None, bits: float | None, method: str, calibrated: bool, weighted: bool
) -> _Settings:
    if format is not None and bits is not None:
        raise ValueError(
            "expected format or bits, got both; a number of bits means a mix of formats"
        )
    if bits is not None and not 1 <= bits <= 32:
        raise ValueError(f"bits: expected bits per weight, such as 4.5; got {bits!r}")
    stored = None
    if bits is None:
        stored = format_named(format or DEFAULT).name
        if stored not in GRIDS:
            known = ", ".join(GRIDS)
            raise ValueError(f"format: expected int4, int8 or one of {known}; got {format!r}")
    methods = ("auto", *METHODS, "rescaled")
    if method not in methods:
        known = ", ".join(methods)
        raise ValueError(f"method: expected one of {known}; got {method!r}")
    if calibrated and weighted:
        raise ValueError("expected calibrate or imatrix, got both; a text says more")
    if weighted and method not in ("auto", "weighted"):
        raise ValueError(f"method: an importance matrix is for auto or weighted; got {method!r}")
    if method not in ("auto", "rtn") and not calibrated and not weighted:
        raise ValueError(f"method {method} needs a calibration text (--calibrate FILE)")
    return _Settings(stored, None if bits is None else float(bits), method)


def _kept(made_of: Mapping[str, Any], source: Source) -> KeptDamage:
    """Where the damages of this source and text are kept; bits and method do not change them."""
    says = ("source", "calibration", "imatrix_sha256", "slmq_version")
    key = {name: made_of.get(name) for name in says} | {"formats": list(MIXED)}
    return KeptDamage(hub.cache_dir(), key, [wish.name for wish in source.wishes if wish.rounds])


def _formats(
    settings: _Settings, source: Source, pipeline: Pipeline, kept: KeptDamage
) -> tuple[Mix, dict[str, dict[str, float]]]:
    """The format of every matrix, and the damage that each would do."""
    if settings.format is not None:
        return Mix(_one_format(settings.format, source)), {}
    assert settings.bits is not None
    damage = kept.read()
    if damage is None:
        damage = pipeline.measure(MIXED)
        kept.write(damage)
    wishes = [wish for wish in source.wishes if wish.rounds]
    choices = [Choice(w.name, w.n * w.k, damage[w.name], w.k) for w in wishes]
    mix = choose_formats(choices, settings.bits)
    if mix.bits < settings.bits - CLOSE:
        log.warning(
            "%.3f bits per weight, not %g: more would save nothing, or not fit any matrix",
            mix.bits,
            settings.bits,
        )
    return mix, damage


def _one_format(wanted: str, source: Source) -> dict[str, str]:
    """The format of every matrix: the one that was asked for, or what its rows can have of it."""
    rounded = [wish for wish in source.wishes if wish.rounds]
    short = [wish for wish in rounded if not fits(wanted, wish.k)]
    instead = SHORTER.get(wanted, SHORTEST)
    if short:
        log.warning(
            "%d of %d matrices get %s: their rows are no multiple of the %d columns of %s",
            len(short),
            len(rounded),
            instead,
            FORMATS[wanted].columns,
            wanted,
        )
    return {wish.name: wanted if fits(wanted, wish.k) else instead for wish in rounded}


def _stored(wish: Wish, mix: Mix) -> PackedTensor:
    if not wish.rounds:
        return wish.tensor
    return PackedTensor(wish.name, mix.formats[wish.name], wish.tensor.shape)


def _write_weights(
    path: Path, wishes: list[Wish], tensors: list[PackedTensor], pipeline: Pipeline
) -> None:
    work = pipeline.work
    with PackedWriter(path, tensors) as file:
        for wish, tensor in zip(wishes, tensors, strict=True):
            if not wish.rounds:
                folded = pipeline.folded(tensor.name)
                read = pipeline.source.read(wish) if folded is None else folded.view(np.uint8)
                file.write(read.data)
                continue
            data = work.data(tensor.name)
            if data is None or len(data) != tensor.nbytes:
                raise WriteError(
                    f"{work.folder}: the bytes of {tensor.name} are missing; start again"
                )
            file.write(data.data)


def _bits_per_weight(tensors: list[PackedTensor]) -> float:
    bits = weights = 0.0
    for tensor in tensors:
        if len(tensor.shape) == 2 and FORMATS[tensor.format].quantized:
            size = tensor.shape[0] * tensor.shape[1]
            bits += FORMATS[tensor.format].bits_in_rows(tensor.shape[1]) * size
            weights += size
    return bits / max(1.0, weights)


def _provenance(
    settings: _Settings,
    files: list[dict[str, Any]],
    text: Calibration | None,
    importance: Importance | None,
) -> dict[str, Any]:
    """The section of config.json that says where the weights come from."""
    calibration = None
    if text is not None:
        tokens = text.tokens.astype("<i4").tobytes()
        calibration = {
            "sha256": text.sha256,
            "windows": list(text.tokens.shape),
            "tokens_sha256": hashlib.sha256(tokens).hexdigest(),
        }
    return {
        "format_version": int(VERSIONS[0]),  # no format that it rounds to needs a later one
        "slmq_version": version("slmq"),
        "source": files,
        **asdict(settings),
        "calibration": calibration,
    } | ({} if importance is None else {"imatrix_sha256": importance.sha256})
