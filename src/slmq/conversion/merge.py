"""`slmq.merge`: a model with an adapter in its weights, as an ordinary folder of floats."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

import slmq._native as _native
import slmq.hub as hub
from slmq.conversion.dequantize import DTYPES, Progress, Rows, write_floats
from slmq.conversion.folder import check_target
from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.formats import padded
from slmq.models.parts.wrapped import names_elsewhere
from slmq.weights.lora import Lora, LowRank, read_lora

__all__ = ["merge"]

F32 = npt.NDArray[np.float32]


def merge(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    dtype: str = "f32",
    force: bool = False,
    n_threads: int | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a model whose weights hold an adapter: ``W + scale * B @ A``, in floats.

    The folder loads with `transformers`, and everywhere else; `slmq.quantize` rounds it. A base of
    integers is widened first, so nothing of the adapter is lost to their steps. The same bytes come
    on every CPU.

    Parameters
    ----------
    base : str or path
        Catalogue name, hub id, folder or .gguf file.
    adapter : path
        A folder of PEFT or mlx-lm.
    dst : str or path
        The folder to make. It must not exist unless `force` is given.
    dtype : {"f32", "f16"}
        What weights become.
    force : bool
        Whether a folder that slmq wrote may be replaced.
    n_threads, revision, local_files_only
        As in `slmq.load`.
    progress : callable, optional
        Called with the bytes written and their total.

    Raises
    ------
    WriteError
        `dst` exists or cannot be written.
    CheckpointError
        The adapter does not fit the base, a weight does not fit float16, or a file is damaged.
    UnsupportedModelError
        The adapter asks for what is not done, or the base is of a kind that slmq lacks.
    ValueError
        For another `dtype`.
    ModelNotFoundError, DownloadError, TokenizerError
        If the base cannot be loaded.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}; got {dtype!r}")
    target = Path(os.path.abspath(dst))  # noqa: PTH100 (keeps links, drops "..")
    check_target(target, force)
    lora = read_lora(Path(adapter))
    if lora.layout.gguf_terms:
        raise UnsupportedModelError(
            f"{lora.path}: merging takes adapters of PEFT and mlx-lm; a GGUF adapter can be loaded "
            f"beside the model"
        )
    threads = int(_native.resolve_threads(n_threads)["threads"])
    found = hub.resolve(os.fspath(base), revision=revision, local_files_only=local_files_only)

    def added(sizes: Mapping[str, tuple[int, int]]) -> dict[str, Rows]:
        return _added(lora, sizes, threads)

    write_floats(
        found.path, target, dtype, force=force, threads=threads, progress=progress, added=added
    )
    return target


def _added(lora: Lora, sizes: Mapping[str, tuple[int, int]], threads: int) -> dict[str, Rows]:
    """What each stored matrix gets; every pair must have its matrix."""
    operators = _native.Operators(threads)
    found = {}
    for module, pair in lora.pairs.items():
        names = [f"{name}.weight" for name in names_elsewhere(module)]
        name = next((name for name in names if name in sizes), None)
        if name is None:
            raise CheckpointError(
                f"{module}: no weight of this model has that name (a head that is the embedding "
                f"takes no adapter)",
                file=lora.path,
            )
        n, k = sizes[name]
        if pair.a.shape[1] != k or pair.b.shape[0] != n:
            raise CheckpointError(
                f"{module}: expected A [rank, {k}] and B [{n}, rank], got {list(pair.a.shape)} and "
                f"{list(pair.b.shape)}: is it for another model?",
                file=lora.path,
            )
        found[name] = _rows_of(pair, operators)
    return found


def _rows_of(pair: LowRank, operators: _native.Operators) -> Rows:
    """Rows of B @ A, sums over the rank in order."""
    rank, k = pair.a.shape
    a = _native.zero_rows(rank, k)
    a[:, :k] = pair.a

    def rows(first: int, last: int) -> F32:
        b = _native.zero_rows(last - first, rank)
        b[:, :rank] = pair.b[first:last]
        product = _native.zero_rows(last - first, k)
        operators.multiply(b, a, product, padded(k, 32), rank)
        return product[:, :k]

    return rows
