"""`slmq.convert`: any checkpoint that slmq loads, as a folder of packed weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import slmq._native as _native
import slmq.hub as hub
from slmq.checkpoint import PACKED, Checkpoint, open_model
from slmq.checkpoint.packed_folder import PackedWriter, packed_version
from slmq.checkpoint.safetensors import CONFIG, SINGLE
from slmq.conversion.folder import check_target, new_folder, source_files
from slmq.conversion.sentences import copy_sentences, write_sentences
from slmq.conversion.source import Source
from slmq.tokenizer.save import save_tokenizer

__all__ = ["convert"]

Progress = Callable[[int, int], None]


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    force: bool = False,
    n_threads: int | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
    quant: None = None,
) -> Path:
    """Write a model as a folder of packed weights, which loads in a fraction of the time.

    Weights are packed, not rounded: the packed bytes are those that loading `src` makes, so the
    model answers the same. `slmq.quantize` rounds them to fewer bits. The folder appears whole or
    not at all.

    Parameters
    ----------
    src : str or path
        Catalogue name, hub id, folder or .gguf file.
    dst : str or path
        The folder to make. It must not exist unless `force` is given.
    force : bool
        Whether a folder that an earlier conversion wrote may be replaced.
    n_threads : int, optional
        Threads that pack; None takes the physical cores that this process may use.
    revision, local_files_only
        As in `slmq.load`.
    progress : callable, optional
        Called with the bytes written and their total.
    quant : None
        Gone; `slmq.quantize` rounds.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    WriteError
        If `dst` exists or cannot be written; the disk is then as it was before.
    ModelNotFoundError, CheckpointError, UnsupportedModelError, DownloadError, TokenizerError
        If `src` cannot be loaded.
    """
    if quant is not None:
        raise TypeError(
            f"quant: convert only packs; slmq.quantize(src, dst, format={quant!r}) rounds"
        )
    target = Path(os.path.abspath(dst))  # noqa: PTH100 (keeps links, drops "..")
    check_target(target, force)
    threads = _native.resolve_threads(n_threads)["threads"]
    found = hub.resolve(os.fspath(src), revision=revision, local_files_only=local_files_only)
    with open_model(found.path) as checkpoint:
        source = Source(checkpoint, None, threads)
        config = source.config | {PACKED: _provenance(checkpoint, source)}
        nbytes = sum(wish.tensor.nbytes for wish in source.wishes)
        with new_folder(target, nbytes, force) as folder:
            _write_weights(folder / SINGLE, source, progress)
            save_tokenizer(checkpoint, folder)
            copy_sentences(found.path, folder)
            write_sentences(checkpoint, folder)
            # Last: a folder without it does not load.
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "ascii")
    return target


def _write_weights(path: Path, source: Source, progress: Progress | None) -> None:
    tensors = [wish.tensor for wish in source.wishes]
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    with PackedWriter(path, tensors) as file:
        for wish in source.wishes:
            data = source.read(wish)
            file.write(data.data)
            done += len(data)
            if progress is not None:
                progress(done, total)


def _provenance(checkpoint: Checkpoint, source: Source) -> dict[str, Any]:
    """The section of config.json that says where the weights come from."""
    return {
        "format_version": int(packed_version(wish.tensor.format for wish in source.wishes)),
        "slmq_version": version("slmq"),
        "source": source_files(checkpoint),
    }
