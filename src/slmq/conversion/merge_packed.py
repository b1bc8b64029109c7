"""An adapter in packed weights: what is added, rounded once more, and how much of it that loses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.checkpoint import PACKED, open_model
from slmq.checkpoint.packed_folder import PackedWriter, packed_version
from slmq.checkpoint.safetensors import CONFIG, SINGLE
from slmq.conversion.folder import new_folder, source_files
from slmq.conversion.sentences import copy_sentences, write_sentences
from slmq.conversion.source import Source
from slmq.errors import UnsupportedModelError
from slmq.formats import ROUNDED
from slmq.models.adapted import Part, fitted
from slmq.models.family import Family
from slmq.tokenizer.save import save_tokenizer
from slmq.weights.dora import ProductSum, row_factors
from slmq.weights.lora import Lora
from slmq.weights.survey import Wish

__all__ = ["Merged", "merge_packed"]

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Merged:
    """What was written, and what rounding took of the adapter.

    Attributes
    ----------
    path : Path
        The folder.
    lost : float
        The norm of what rounding changed over that of what the adapter adds, all matrices
        together: 0 keeps the adapter whole, 1 means that as much was lost as there was.
    worst : tuple of str and float
        The matrix that lost the largest share.
    """

    path: Path
    lost: float
    worst: tuple[str, float]


def merge_packed(
    path: Path,
    lora: Lora,
    target: Path,
    *,
    force: bool,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> Merged:
    """Write a folder of packed weights with an adapter in them, every matrix in its own format.

    Raises
    ------
    CheckpointError, UnsupportedModelError, WriteError
    """
    with open_model(path) as checkpoint:
        source = Source(checkpoint, None, threads)
        names = {wish.name for wish in source.wishes if wish.is_matrix}
        owner = _Owner(source.opened.family, source.opened.config, source.weights)
        parts = {part.name: part for part in fitted(owner, lora, names)}
        if biases := [name for name, part in parts.items() if part.bias is not None]:
            raise UnsupportedModelError(
                f"{lora.path}: the adapter has a bias for {biases[0]}: merge it into floats, and "
                f"quantize the folder"
            )
        _require_rounding(source, parts, lora)
        total = sum(wish.tensor.nbytes for wish in source.wishes)
        provenance = {
            "format_version": int(packed_version(wish.tensor.format for wish in source.wishes)),
            "slmq_version": version("slmq"),
            "source": source_files(checkpoint),
        }
        losses: dict[str, tuple[float, float]] = {}
        with new_folder(target, total, force) as folder:
            done = 0
            with PackedWriter(folder / SINGLE, [wish.tensor for wish in source.wishes]) as file:
                for wish in source.wishes:
                    part = parts.get(wish.name) if wish.is_matrix else None
                    if part is None:
                        data = source.read(wish)
                    else:
                        data, losses[wish.name] = _changed(source, wish, part, threads)
                    file.write(data.data)
                    done += len(data)
                    if progress is not None:
                        progress(done, total)
            save_tokenizer(checkpoint, folder)
            copy_sentences(path, folder)
            write_sentences(checkpoint, folder)
            # Last: a folder without it does not load.
            config = source.config | {PACKED: provenance}
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "ascii")
    shares = {name: _share(lost, added) for name, (lost, added) in losses.items()}
    worst = max(shares, key=lambda name: shares[name])
    lost, added = (sum(values) for values in zip(*losses.values(), strict=True))
    return Merged(target, _share(lost, added), (worst, shares[worst]))


def _require_rounding(source: Source, parts: Mapping[str, Part], lora: Lora) -> None:
    """Refuse formats that need the quantizer's search, before anything is written."""
    for wish in source.wishes:
        fmt = wish.tensor.format
        if wish.is_matrix and wish.name in parts and fmt not in ROUNDED:
            raise UnsupportedModelError(
                f"{lora.path}: {wish.name} of the model is {fmt}, and a sum is rounded to "
                f"{', '.join(ROUNDED)} only: merge it into floats, and quantize the folder"
            )


@dataclass(frozen=True)
class _Owner:
    family: Family[Any]
    config: Any
    weights: Any


def _share(lost: float, added: float) -> float:
    return math.sqrt(lost / added) if added else 0.0


def _changed(
    source: Source, wish: Wish, part: Part, threads: int
) -> tuple[U8, tuple[float, float]]:
    """A matrix with its part, and the squares of what was lost and of what was added."""
    linear = source.held(wish)
    before = linear.matrix.dequantize(0, wish.n)
    a = part.a if linear.columns is None else np.ascontiguousarray(part.a[:, linear.columns])
    wanted = ProductSum(a, part.b, _native.Operators(threads)).rows(0, before)
    if part.lengths is not None:
        factors = row_factors(wanted, part.lengths)
        wanted = (wanted * factors[:, None]).astype(np.float32)
    rows = np.ascontiguousarray(wanted).view(np.uint8).reshape(-1)
    packed = _native.Matrix.pack(
        "f32", rows, wish.n, wanted.shape[1], linear.matrix.format, None, None, threads
    )
    got = packed.dequantize(0, wish.n)
    lost, added = (_native.sum_of_squares((a - wanted).reshape(-1)) for a in (got, before))
    return packed.packed, (lost, added)
