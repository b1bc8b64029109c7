"""Readers of model files behind one interface, all checked.

They read GGUF files, safetensors folders, and our own folders of packed weights.
`open_checkpoint` is the door; what it returns is described by `Checkpoint`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmq.checkpoint.base import Checkpoint, Layout, TensorInfo
from slmq.checkpoint.gguf import MAGIC, MODEL, open_gguf, part_of, role_of
from slmq.checkpoint.mapped import LARGEST
from slmq.checkpoint.modules import MODELS, TABLE, TABLE_CONFIG, read_modules
from slmq.checkpoint.packed_folder import PACKED, PackedCheckpoint, is_packed, packed_checkpoint
from slmq.checkpoint.safetensors import CONFIG, INDEX, SINGLE, open_safetensors
from slmq.checkpoint.strangers import describe_folder, describe_start, known_stranger, visible
from slmq.errors import CheckpointError
from slmq.machine.disk import open_regular

__all__ = [
    "PACKED",
    "Checkpoint",
    "Layout",
    "PackedCheckpoint",
    "TensorInfo",
    "open_checkpoint",
    "open_model",
]


def open_model(path: Path) -> Checkpoint:
    """Open the model of a file or folder, which a list of modules may keep in a folder of its own.

    Errors as `open_checkpoint`, and CheckpointError if the list cannot be read.
    """
    for module in read_modules(path):
        if module.kind in MODELS:
            stated = TABLE_CONFIG if module.kind == TABLE else None
            return open_checkpoint(path / module.place, stated)
    return open_checkpoint(path)


def open_checkpoint(
    path: str | os.PathLike[str], stated: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Open a model file or folder and check all of its headers.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file (whatever its name); a folder with ``config.json`` and ``model.safetensors``
        (also one that `slmq convert` wrote) or ``model.safetensors.index.json``; or a folder with
        one model in ``.gguf``. Of a split GGUF model any part stands for all.
    stated : Mapping, optional
        What ``config.json`` says where there is none, for folders whose kind is known otherwise.

    Returns
    -------
    Checkpoint
        To be closed after use; also a context manager.

    Raises
    ------
    CheckpointError
        There is nothing there that slmq reads, or what is there is truncated or corrupt.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            names = visible(sorted(entry.name for entry in path.iterdir()))
        elif stat.S_ISREG(mode):
            with open_regular(path, LARGEST) as f:
                start = f.read(64)
    except (OSError, ValueError) as e:  # ValueError: a NUL character in the path
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise CheckpointError(f"cannot open: {reason}", file=path) from e
    if stat.S_ISDIR(mode):
        return _open_folder(path, names, stated)
    if stat.S_ISREG(mode):
        return _open_file(path, start)
    raise CheckpointError("expected a file or a folder, got a device, pipe or socket", file=path)


def _open_file(path: Path, start: bytes) -> Checkpoint:
    if start.startswith(MAGIC) or path.suffix.lower() == ".gguf":
        return open_gguf(path)
    if path.suffix.lower() == ".safetensors" and known_stranger(start) is None:
        raise CheckpointError(
            f"expected the folder that holds this file and its {CONFIG}, not the file", file=path
        )
    raise CheckpointError(
        f"expected a GGUF file or a folder, got {describe_start(start)}", file=path
    )


def _open_folder(folder: Path, names: list[str], stated: Mapping[str, Any] | None) -> Checkpoint:
    if SINGLE in names or INDEX in names:
        if CONFIG not in names and stated is None:
            raise CheckpointError(f"expected a {CONFIG} next to the weights", file=folder)
        stored = open_safetensors(folder, None if CONFIG in names else stated)
        return packed_checkpoint(stored) if is_packed(stored) else stored
    ggufs = _models(folder, [name for name in names if name.lower().endswith(".gguf")])
    if len(ggufs) == 1:
        return open_gguf(folder / ggufs[0])
    if ggufs:
        raise CheckpointError(
            f"{len(ggufs)} GGUF files; give the path of one: {_listing(ggufs)}", file=folder
        )
    if what := describe_folder(names):
        raise CheckpointError(f"expected a model, found {what}", file=folder)
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        raise CheckpointError(
            "holds PyTorch weights only; reading them can run code, so slmq refuses them; convert "
            "them to safetensors with transformers: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(new_folder, safe_serialization=True)",
            file=folder,
        )
    raise CheckpointError(
        f"expected {SINGLE}, {INDEX} or a .gguf file, found {_listing(names)}", file=folder
    )


def _models(folder: Path, ggufs: list[str]) -> list[str]:
    """One file of every model; not projectors for pictures, adapters and the like beside it."""
    seen: set[str] = set()
    firsts = []
    for name in ggufs:
        part = part_of(name)
        if part is None or part[0] not in seen:
            firsts.append(name)
        seen |= {part[0]} if part else set()
    if len(firsts) < 2:
        return firsts
    return [name for name in firsts if role_of(folder / name) == MODEL] or firsts


def _listing(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:8])) or "an empty folder"
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
