"""`slmq.merge`: a model with an adapter in its weights, as an ordinary folder of floats."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

import slmq._native as _native
import slmq.hub as hub
from slmq.conversion.dequantize import DTYPES, Change, Progress, write_floats
from slmq.conversion.folder import check_target
from slmq.conversion.merge_packed import Merged, merge_packed
from slmq.errors import CheckpointError, UnsupportedModelError
from slmq.models.parts.wrapped import names_elsewhere
from slmq.weights.dora import ProductSum, row_factors
from slmq.weights.lora import Lora, LowRank, read_lora

__all__ = ["Merged", "merge"]

F32 = npt.NDArray[np.float32]


def merge(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    dtype: str = "f32",
    packed: bool = False,
    force: bool = False,
    n_threads: int | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
    on_merged: Callable[[Merged], None] | None = None,
) -> Path:
    """Write a model whose weights hold an adapter: ``W + scale * B @ A``, in floats.

    Rows get the lengths that DoRA gives them; biases and a head that the adapter brings are put in.

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
    packed : bool
        Round the sum again, to the formats that the base's weights have, into a folder of packed
        weights. Most of what the adapter adds may be lost: `on_merged` tells the share.
    force : bool
        Whether a folder that slmq wrote may be replaced.
    n_threads, revision, local_files_only
        As in `slmq.load`.
    progress : callable, optional
        Called with the bytes written and their total.
    on_merged : callable, optional
        With `packed`, called with a `Merged`: how much of the adapter rounding took.

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
    threads = int(_native.resolve_threads(n_threads)["threads"])
    if packed:
        found = hub.resolve(os.fspath(base), revision=revision, local_files_only=local_files_only)
        merged = merge_packed(
            found.path, lora, target, force=force, threads=threads, progress=progress
        )
        if on_merged is not None:
            on_merged(merged)
        return target
    if lora.layout.gguf_terms:
        raise UnsupportedModelError(
            f"{lora.path}: merging into floats takes adapters of PEFT and mlx-lm; a GGUF adapter "
            f"can be loaded beside the model"
        )
    found = hub.resolve(os.fspath(base), revision=revision, local_files_only=local_files_only)

    def changes(sizes: Mapping[str, tuple[int, int]]) -> dict[str, Change]:
        return _changes(lora, sizes, threads)

    write_floats(
        found.path, target, dtype, force=force, threads=threads, progress=progress, changes=changes
    )
    return target


def _changes(lora: Lora, sizes: Mapping[str, tuple[int, int]], threads: int) -> dict[str, Change]:
    """What becomes of each stored tensor; all that the adapter has must have its tensor."""
    operators = _native.Operators(threads)
    found: dict[str, Change] = {}
    for module, pair in lora.pairs.items():
        name = _stored(lora, f"{module}.weight", sizes)
        n, k = sizes[name]
        if pair.a.shape[1] != k or pair.b.shape[0] != n:
            raise CheckpointError(
                f"{module}: expected A [rank, {k}] and B [{n}, rank], got {list(pair.a.shape)} and "
                f"{list(pair.b.shape)}: is it for another model?",
                file=lora.path,
            )
        found[name] = _sum(pair, operators)
    for own, values in lora.replaced.items():
        name = _stored(lora, own, sizes)
        n, k = sizes[name]
        if values.shape != ((n, k) if k else (n,)):
            shape = [n, k] if k else [n]
            raise CheckpointError(
                f"{own}: expected the shape {shape}, got {list(values.shape)}: is it for another "
                f"model?",
                file=lora.path,
            )
        found[name] = partial(_replaced, values)
    for module, pair in lora.pairs.items():
        if pair.bias is not None:
            name = _stored(lora, f"{module}.bias", sizes)
            found[name] = partial(_plus, pair.bias, found.get(name))
    return found


def _stored(lora: Lora, tensor: str, sizes: Mapping[str, tuple[int, int]]) -> str:
    """What the base calls a tensor."""
    module, _, kind = tensor.rpartition(".")
    names = [f"{name}.{kind}" for name in names_elsewhere(module)]
    name = next((name for name in names if name in sizes), None)
    if name is None:
        raise CheckpointError(
            f"{tensor}: the model has no weight of that name (a head that is the embedding takes "
            f"no adapter)",
            file=lora.path,
        )
    return name


def _replaced(values: F32, first: int, rows: F32) -> F32:
    return values[first : first + len(rows)]


def _plus(more: F32, before: Change | None, first: int, rows: F32) -> F32:
    held = rows if before is None else before(first, rows)
    return held + more[first : first + len(rows)]


def _sum(pair: LowRank, operators: _native.Operators) -> Change:
    """Rows of W + B @ A; of the lengths that DoRA gives them."""
    total = ProductSum(pair.a, pair.b, operators)

    def change(first: int, rows: F32) -> F32:
        found = total.rows(first, rows)
        if pair.lengths is None:
            return found
        factors = row_factors(found, pair.lengths[first : first + len(rows)])
        return (found * factors[:, None]).astype(np.float32)

    return change
