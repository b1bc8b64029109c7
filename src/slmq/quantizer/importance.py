"""Importance matrices, as llama.cpp's `llama-imatrix` writes them: mean squares of inputs.

A GGUF file of the type "imatrix" has, for a tensor NAME of the model, NAME.in_sum2, the sum of the
squares of every input, and NAME.counts, over how many tokens (llama.cpp's tools/imatrix). They say
which columns count; how inputs go together, which `calibrate` finds out, they do not say.

Of a stack of experts it has a row and a count for each. An expert that no token went to takes the
mean over all tokens of the stack's others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmq.checkpoint.gguf import GgufCheckpoint, open_gguf
from slmq.errors import CheckpointError, DataError
from slmq.machine.disk import sha256_of
from slmq.models.family import Family
from slmq.models.registry import family_of
from slmq.quantizer.source import FloatSource
from slmq.weights.survey import Wish

__all__ = ["Importance", "read_importance"]

SUMS, COUNTS = ".in_sum2", ".counts"
EXPERT = re.compile(r"(.+)\[(\d+)\]")
DAMPING = 0.01  # of the mean, added to all: what the text did not show may come, too

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Importance:
    """What the columns of a model's matrices weigh.

    Attributes
    ----------
    columns : dict of str to float32[k]
        By the names of the matrices in the model; those that the file lacks are missing.
    sha256 : str
        Of the file.
    """

    columns: dict[str, F32]
    sha256: str

    def of(self, wish: Wish) -> F32 | None:
        """The weights of a matrix's columns; None: all alike."""
        return self.columns.get(wish.name)


def read_importance(path: Path, source: FloatSource) -> Importance:
    """Read the importances of a model's matrices.

    Raises
    ------
    DataError
        The file is no importance matrix, or of another model, or holds what no mean square is.
    """
    try:
        file = open_gguf(path)
    except CheckpointError as error:
        raise DataError(
            f"{path}: expected an importance matrix as a GGUF file ({error.message}); "
            f"llama-imatrix --output-format gguf writes one"
        ) from None
    with file:
        if file.metadata.get("general.type") != "imatrix":
            raise DataError(f"{path}: expected a GGUF file of type 'imatrix', found a model")
        family, _ = family_of(source.checkpoint)
        found: dict[str, F32] = {}
        for wish in source.wishes:
            for stored in (wish.stored, wish.name) if wish.rounds else ():
                name, expert = _gguf_name(family, stored)
                if f"{name}{SUMS}" in file.tensors:
                    found[wish.name] = _mean_squares(file, name, wish.k, expert)
                    break
    if not found:
        raise DataError(f"{path}: it speaks of no matrix of {source.checkpoint.path}")
    return Importance(found, sha256_of(path))


def _gguf_name(family: Family[Any], stored: str) -> tuple[str, int | None]:
    """The name of a matrix in GGUF files, or of its stack, and its number there."""
    try:
        name = family.GGUF.name(stored)
    except KeyError:  # a name that GGUF files do not have
        name = stored
    expert = EXPERT.fullmatch(name)
    return (name, None) if expert is None else (expert[1], int(expert[2]))


def _mean_squares(file: GgufCheckpoint, name: str, k: int, expert: int | None) -> F32:
    sums, counts = (_floats(file, f"{name}{part}") for part in (SUMS, COUNTS))
    number = len(counts)
    if len(sums) != k * number or (number != 1 if expert is None else number <= expert):
        wanted = f"{k} sums of squares and one count"
        raise DataError(
            f"{file.path}: {name}: expected {wanted}{'' if expert is None else ' an expert'}, "
            f"found {len(sums)} and {number}: is it of another model?"
        )
    if not (
        np.isfinite(sums).all()
        and (sums >= 0).all()
        and (counts >= 0).all()
        and np.isfinite(counts).all()
        and counts.any()
    ):
        raise DataError(f"{file.path}: {name}: expected sums of squares of at least one token")
    # In order: a library's sum would follow the CPU.
    each, seen = np.float64(sums).reshape(number, k), np.float64(counts)
    if expert is not None and seen[expert] > 0:
        each, seen = each[expert : expert + 1], seen[expert : expert + 1]
    mean = np.add.accumulate(each)[-1] / np.add.accumulate(seen)[-1]
    total = float(np.add.accumulate(mean)[-1])
    damped: F32 = (mean + (DAMPING * total / k if total > 0 else 1.0)).astype(np.float32)
    return damped


def _floats(file: GgufCheckpoint, name: str) -> F32:
    info = file.tensors.get(name)
    if info is None or info.dtype != "f32":
        raise DataError(
            f"{file.path}: expected {name} as float32, found {info.dtype if info else 'none'}"
        )
    values: F32 = file.read(name).view("<f4")
    return values
