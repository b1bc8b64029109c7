"""The model that a full training leaves: a folder as its base is, with other values.

The same tensors under the same names, of the same shapes and types, beside the base's
configuration and tokenizer.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmq.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from slmq.checkpoint.safetensors import CONFIG, SINGLE
from slmq.engine.training.files import write_parts
from slmq.engine.training.full import FullWeights, Place
from slmq.errors import CheckpointError, WriteError
from slmq.tokenizer.save import save_tokenizer

__all__ = ["rounded", "stored_values", "write_model"]

F32 = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
ROWS = 4096  # of a matrix that are rounded at a time: a copy would be the most that a run holds


def write_model(folder: Path, base: Path, full: FullWeights, values: F32) -> None:
    """Write the model of these parameters.

    What makes the folder a model comes last, under a temporary name first: it is there whole, or
    as it was.

    Raises
    ------
    WriteError
        The disk is full, or the folder is not ours.
    CheckpointError
        A weight does not fit the type that the base has it in.
    """
    with open_checkpoint(base) as checkpoint:
        if not (folder / SINGLE).exists():
            _write_others(folder, checkpoint)
        write_parts(folder / SINGLE, _file(folder, checkpoint, full, values))


def _write_others(folder: Path, checkpoint: Checkpoint) -> None:
    """The configuration and the tokenizer's files, each under a temporary name first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".part") as made:
            there = Path(made)
            shutil.copyfile(checkpoint.path / CONFIG, there / CONFIG)
            save_tokenizer(checkpoint, there)
            for path in sorted(there.iterdir()):
                target = folder / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                path.replace(target)
    except OSError as error:
        raise WriteError(f"cannot write {folder}: {error.strerror or error}") from error


def _file(
    folder: Path, checkpoint: Checkpoint, full: FullWeights, values: F32
) -> Iterator[bytes | memoryview]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, info in checkpoint.tensors.items():
        end = at + info.nbytes
        header[name] = {
            "dtype": info.dtype.upper(),
            "shape": list(info.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    parts = _parts(full)
    for name, info in checkpoint.tensors.items():
        found = parts.get(full.copies.get(name, name))
        if found is None:
            yield checkpoint.read(name).data
        else:
            for piece in _pieces(found, values):
                yield rounded(folder, info, piece).data
        checkpoint.release(name)


def stored_values(full: FullWeights, values: F32) -> dict[str, F32]:
    """Parameters, or their gradients, as the tensors that the base's files hold."""
    return {name: _whole(places, values) for name, places in _parts(full).items()}


def _parts(full: FullWeights) -> dict[str, list[Place]]:
    """What every stored tensor is made of."""
    parts: dict[str, list[Place]] = {}
    for place in full.places.values():
        parts.setdefault(place.stored, []).append(place)
    return parts


def _pieces(places: list[Place], values: F32) -> Iterator[F32]:
    """A stored tensor, some rows at a time where it is a matrix by itself."""
    wish = places[0].wish
    if not wish.is_matrix or wish.rows is not None or wish.order is not None:
        yield _whole(places, values)
        return
    matrix = places[0].matrix(values)
    for first in range(0, wish.n, ROWS):
        yield matrix.dequantize(first, min(first + ROWS, wish.n))


def _whole(places: list[Place], values: F32) -> Array:
    """A stored tensor of its parts, rows in the order of the files."""
    places = sorted(
        places, key=lambda place: 0 if place.wish.rows is None else place.wish.rows.first
    )
    parts = []
    for place in places:
        wish = place.wish
        part = place.matrix(values).dequantize(0, wish.n) if wish.is_matrix else place.part(values)
        part = part[: wish.tensor.shape[0]]
        if wish.order is not None:
            turned = np.empty_like(part)
            turned[wish.order] = part
            part = turned
        parts.append(part)
    rows = places[0].wish.rows
    return parts[0] if rows is None else rows.whole(parts)


def rounded(folder: Path, info: TensorInfo, values: Array) -> npt.NDArray[np.uint8]:
    """Values in the type that a tensor has, rounded to nearest even, as bytes."""
    values = np.ascontiguousarray(values, "<f4").reshape(-1)
    if info.dtype == "bf16":
        bits = values.view("<u4")
        kept = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
        fits, stored = (kept & 0x7F80) != 0x7F80, kept.astype("<u2")
    else:
        with np.errstate(over="ignore"):
            stored = values.astype("<f2" if info.dtype == "f16" else "<f4")
        fits = np.isfinite(stored)
    if not fits.all():
        raise CheckpointError(
            f"expected weights that fit {info.dtype}, as the base has them; what {folder} holds is "
            f"the last checkpoint. Lower the learning rate, or start from a base in f32",
            tensor=info.name,
        )
    raw: npt.NDArray[np.uint8] = stored.view(np.uint8)
    return raw
