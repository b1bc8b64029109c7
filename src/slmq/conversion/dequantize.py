"""`slmq.dequantize`: any model that slmq loads, as an ordinary folder of floats."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

import slmq._native as _native
import slmq.hub as hub
from slmq.checkpoint import PACKED, open_checkpoint
from slmq.checkpoint.safetensors import CONFIG, SINGLE
from slmq.conversion.folder import check_target, new_folder
from slmq.conversion.published import SCALARS, Edit, Published, published
from slmq.conversion.source import Source
from slmq.errors import CheckpointError
from slmq.tokenizer.save import save_tokenizer
from slmq.weights.rows import Rows
from slmq.weights.survey import Wish

__all__ = ["DTYPES", "dequantize", "write_floats"]

PART = re.compile(r"(.+)\[(\d+):(\d+)\]")
EXPERT = re.compile(r"(.+)\[(\d+)\]")
Progress = Callable[[int, int], None]
F32 = npt.NDArray[np.float32]
Float = np.dtype[np.float16] | np.dtype[np.float32]
# What becomes of the rows of a stored tensor from a first one on; for some of those that there are,
# by name, with outputs and inputs (0: a vector).
Change = Callable[[int, F32], F32]
Changes = Callable[[Mapping[str, tuple[int, int]]], Mapping[str, Change]]
# By name the matrices of a stored tensor: one, but for stacks of experts. Each has its parts, first
# rows first: one, but for fused matrices.
Stored = dict[str, list[list[Wish]]]
# By user name: the name in safetensors, and NumPy's.
DTYPES: dict[str, tuple[str, Float]] = {
    "f16": ("F16", np.dtype("<f2")),
    "f32": ("F32", np.dtype("<f4")),
}


def dequantize(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    dtype: str = "f16",
    force: bool = False,
    n_threads: int | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a model as an ordinary Hugging Face folder with float weights.

    The folder loads with `transformers`, and everywhere else. It appears whole or not at all.

    Parameters
    ----------
    src : str or path
        Catalogue name, hub id, folder (of `slmq.quantize`, as a rule) or .gguf file.
    dst : str or path
        The folder to make. It must not exist unless `force` is given.
    dtype : {"f16", "f32"}
        What weights become. float16 rounds products of scales and integers (2^-11), float32 does
        not, but for q4g32a's last bits.
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
        A weight does not fit float16, or `src` cannot be loaded.
    ValueError
        For another `dtype`.
    ModelNotFoundError, UnsupportedModelError, DownloadError, TokenizerError
        If `src` cannot be loaded.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}; got {dtype!r}")
    target = Path(os.path.abspath(dst))  # noqa: PTH100 (keeps links, drops "..")
    check_target(target, force)
    threads = _native.resolve_threads(n_threads)["threads"]
    found = hub.resolve(os.fspath(src), revision=revision, local_files_only=local_files_only)
    write_floats(found.path, target, dtype, force=force, threads=threads, progress=progress)
    return target


def write_floats(
    path: Path,
    target: Path,
    dtype: str,
    *,
    force: bool,
    threads: int,
    progress: Progress | None = None,
    changes: Changes | None = None,
) -> None:
    """What `dequantize` does, with what `changes` makes of the stored tensors."""
    tag, kind = DTYPES[dtype]
    with open_checkpoint(path) as checkpoint:
        source = Source(checkpoint, None, threads)
        becomes = published(source)
        stored = _whole_tensors(source, becomes)
        changed = {} if changes is None else changes(_sizes(stored))
        outputs = list(_outputs(source, stored, becomes, changed))
        header, total = _header(outputs, tag, kind.itemsize)
        done = 0
        config = {k: v for k, v in becomes.config.items() if k != PACKED}
        # transformers reads "dtype" since its version 5, and "torch_dtype" before.
        config["dtype"] = config["torch_dtype"] = kind.name
        with new_folder(target, len(header) + total, force) as folder:
            with (folder / SINGLE).open("wb") as file:
                file.write(header)
                for output in outputs:
                    for floats in output.values():
                        values = _fitting(source, output.name, floats, kind)
                        file.write(values.data)
                        done += values.nbytes
                        if progress is not None:
                            progress(done, total)
            save_tokenizer(checkpoint, folder)
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "ascii")


def _sizes(stored: Stored) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of every stored tensor but stacks; vectors have no inputs."""
    return {
        name: (sum(wish.n for wish in stack[0]), stack[0][0].k if stack[0][0].is_matrix else 0)
        for name, stack in stored.items()
        if not _stacked(stack)
    }


def _stacked(stack: list[list[Wish]]) -> bool:
    return EXPERT.fullmatch(PART.sub(r"\1", stack[0][0].name)) is not None


def _whole_tensors(source: Source, becomes: Published) -> Stored:
    """What is written, in the order in which it was asked for."""
    found: dict[str, dict[int, list[tuple[int, Wish]]]] = {}
    for wish in source.wishes:
        name = becomes.renamed.get(wish.name, wish.name)
        if wish.known is not None or name in becomes.dropped:
            continue
        part = PART.fullmatch(name)
        name, first = (name, 0) if part is None else (part[1], int(part[2]))
        expert = EXPERT.fullmatch(name)
        name, number = (name, 0) if expert is None else (expert[1], int(expert[2]))
        found.setdefault(name, {}).setdefault(number, []).append((first, wish))
    return {
        name: [
            [wish for _, wish in sorted(parts, key=lambda part: part[0])]
            for _, parts in sorted(stack.items())
        ]
        for name, stack in found.items()
    }


@dataclass(frozen=True)
class Output:
    """A tensor to be written, and what gives its values, first ones first."""

    name: str
    shape: list[int]
    values: Callable[[], Iterator[F32]]


def _outputs(
    source: Source, stored: Stored, becomes: Published, changes: Mapping[str, Change]
) -> Iterator[Output]:
    for name, stack in stored.items():
        layout = becomes.layouts.get(name, stack[0][0].rows)
        values = _values_of(source, stack, layout, becomes.edits.get(name), changes.get(name))
        if (heads := becomes.split.get(name)) is not None:
            yield from _norms_of_heads(name, heads, stack[0][0].n // heads, values)
        else:
            yield Output(name, _shape(name, stack, layout), values)
    for name, added in becomes.added.items():
        shape = [] if name.endswith(SCALARS) else list(added.shape)
        yield Output(name, shape, partial(_one, added))


def _one(values: F32) -> Iterator[F32]:
    yield values


def _norms_of_heads(
    name: str, heads: int, size: int, values: Callable[[], Iterator[F32]]
) -> Iterator[Output]:
    stem, _, kind = name.rpartition(".")

    def head(first: int) -> Iterator[F32]:
        yield np.concatenate(list(values()))[first : first + size]

    for i in range(heads):
        yield Output(f"{stem}.norms.{i}.{kind}", [size], partial(head, i * size))


def _shape(name: str, stack: list[list[Wish]], layout: Rows | None) -> list[int]:
    """As transformers has it."""
    parts = stack[0]
    if name.endswith(SCALARS):
        return []
    shape = [sum(wish.n for wish in parts), *parts[0].tensor.shape[1:]]
    if columns := parts[0].columns:  # taps of channels, as torch stores convolutions
        shape = [shape[0] // columns, 1, columns]
    if layout is not None and layout.transposed:
        shape.reverse()
    return [len(stack), *shape] if _stacked(stack) else shape


def _header(outputs: list[Output], tag: str, itemsize: int) -> tuple[bytes, int]:
    """The file's header, and the bytes of all tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for output in outputs:
        end = position + itemsize * int(np.prod(output.shape, dtype=np.int64))
        header[output.name] = {
            "dtype": tag,
            "shape": output.shape,
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text = text.ljust(-(-(8 + len(text)) // 64) * 64 - 8)
    return struct.pack("<Q", len(text)) + text, position


def _values_of(
    source: Source,
    stack: list[list[Wish]],
    layout: Rows | None,
    edit: Edit | None,
    change: Change | None,
) -> Callable[[], Iterator[F32]]:
    def values() -> Iterator[F32]:
        for parts in stack:
            pieces = _matrix_values(source, parts, layout, change)
            if edit is None:
                yield from pieces
            else:
                yield edit(np.concatenate(list(pieces)))

    return values


def _matrix_values(
    source: Source, parts: list[Wish], layout: Rows | None, change: Change | None
) -> Iterator[F32]:
    if layout is not None and (layout.transposed or layout.heads):
        values = layout.whole([np.concatenate(list(source.pieces(w))) for w in parts])
        if change is not None:
            values = change(0, values.T).T if layout.transposed else change(0, values)
        yield values
        return
    row = 0
    for wish in parts:
        for rows in source.pieces(wish):
            yield rows if change is None else change(row, rows)
            row += len(rows)


def _fitting(
    source: Source, name: str, values: F32, kind: Float
) -> npt.NDArray[np.float16 | np.float32]:
    with np.errstate(over="ignore"):
        found = values.astype(kind)
    if not np.isfinite(found).all():
        raise CheckpointError(
            f"expected weights that fit {kind.name}", file=source.checkpoint.path, tensor=name
        )
    return np.ascontiguousarray(found)
