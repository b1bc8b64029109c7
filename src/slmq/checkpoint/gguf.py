"""GGUF files, versions 2 and 3, little-endian: one mapping, tensors as views into it.

Layout of a file::

    "GGUF" version:u32 n_tensors:u64 n_keys:u64
    n_keys    x (key:string type:u32 value)
    n_tensors x (name:string n_dims:u32 ne:u64[n_dims] type:u32 offset:u64)
    padding to general.alignment, then tensor data; offsets count from here

Keys and tensor names must be UTF-8. Values need not be, be it an author's name or a piece of a
vocabulary: bytes that do not decode become lone surrogates, and
``s.encode("utf-8", "surrogateescape")`` gives the stored bytes back.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from slmq.checkpoint.base import Layout, TensorInfo
from slmq.checkpoint.gguf_header import Cursor
from slmq.checkpoint.mapped import MappedCheckpoint, MappedFile, Span
from slmq.checkpoint.strangers import became_text, describe_start, text_error
from slmq.errors import CheckpointError

__all__ = ["MAGIC", "MODEL", "GgufCheckpoint", "open_gguf", "part_of", "role_in", "role_of"]

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 2 << 20  # a huge page
MAX_DIMS = 4  # as in ggml
MAX_PARTS = 1000
PART_NAME = re.compile(r"(.+)-([0-9]{1,5})-of-([0-9]{1,5})(\.gguf)", re.ASCII | re.IGNORECASE)

MODEL = "model"
# Architectures of files from before `general.type`.
OLD_ROLES = {"clip": "mmproj", "controlvector": "control vector"}


class BlockType(NamedTuple):
    """How a tensor type is stored: `size` elements of a row in `nbytes` bytes."""

    name: str
    size: int
    nbytes: int


BLOCK_TYPES = {
    0: BlockType("f32", 1, 4),
    1: BlockType("f16", 1, 2),
    2: BlockType("q4_0", 32, 18),
    3: BlockType("q4_1", 32, 20),
    6: BlockType("q5_0", 32, 22),
    7: BlockType("q5_1", 32, 24),
    8: BlockType("q8_0", 32, 34),
    10: BlockType("q2_k", 256, 84),
    11: BlockType("q3_k", 256, 110),
    12: BlockType("q4_k", 256, 144),
    13: BlockType("q5_k", 256, 176),
    14: BlockType("q6_k", 256, 210),
    15: BlockType("q8_k", 256, 292),
    16: BlockType("iq2_xxs", 256, 66),
    17: BlockType("iq2_xs", 256, 74),
    18: BlockType("iq3_xxs", 256, 98),
    19: BlockType("iq1_s", 256, 50),
    20: BlockType("iq4_nl", 32, 18),
    21: BlockType("iq3_s", 256, 110),
    22: BlockType("iq2_s", 256, 82),
    23: BlockType("iq4_xs", 256, 136),
    24: BlockType("i8", 1, 1),
    25: BlockType("i16", 1, 2),
    26: BlockType("i32", 1, 4),
    27: BlockType("i64", 1, 8),
    28: BlockType("f64", 1, 8),
    29: BlockType("iq1_m", 256, 56),
    30: BlockType("bf16", 1, 2),
    34: BlockType("tq1_0", 256, 54),
    35: BlockType("tq2_0", 256, 66),
    39: BlockType("mxfp4", 32, 17),
    40: BlockType("nvfp4", 64, 36),
    41: BlockType("q1_0", 128, 18),
    42: BlockType("q2_0", 64, 18),
}


class GgufCheckpoint(MappedCheckpoint):
    """An open GGUF file; see `slmq.checkpoint.Checkpoint`."""

    kind = "gguf"
    layout = Layout(
        gguf_terms=True,
        gguf_tensors=True,
        own_rows=False,
        interleaved_rows=True,
        stacked_norms=True,
    )
    holds_tokenizer = True
    architecture_key = "general.architecture"
    licence_key = "general.license"
    stacks = re.compile(r"blk\.\d+\.ffn_\w+_exps\.(weight|bias)")


def open_gguf(path: Path) -> GgufCheckpoint:
    """Map a GGUF file and check its whole header.

    Of a model that is split into files, any of them opens all.

    Raises
    ------
    CheckpointError
        The file is missing, truncated, corrupt, of another version or byte order, or one part of
        a split model whose other parts are missing.
    """
    part = _open_part(path)
    files = [part.file]
    try:
        count = _split_count(part.metadata, path)
        if count == 1:
            return _checkpoint(path, [part])
        part.file.close()
        files.clear()
        parts: list[_Part] = []
        for name in _split_names(path, count):
            parts.append(_open_part(path.with_name(name)))
            files.append(parts[-1].file)
        _check_split(parts, count)
        return _checkpoint(parts[0].file.path, parts)
    except BaseException:
        for file in files:
            file.close()
        raise


class _Part(NamedTuple):
    """A file with its header."""

    file: MappedFile
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    begins: dict[str, int]  # where in the file each tensor's bytes begin


def _open_part(path: Path) -> _Part:
    file = MappedFile(path)
    try:
        cursor = Cursor(file)
        n_tensors, n_keys = _preamble(cursor)
        metadata = _metadata(cursor, n_keys)
        tensors, offsets = _tensor_infos(cursor, n_tensors)
        alignment = _alignment(metadata, path)
        data_begin = -(-cursor.position // alignment) * alignment
        end = _check_layout(tensors, offsets, data_begin, alignment, file)
        # Where no line feed is in the header, the data alone would have grown.
        if file.size > end + alignment and became_text(file):
            cursor.fail(f"expected {end} bytes, found {file.size}")
    except CheckpointError as error:
        changed = file.buffer[: len(MAGIC)] == MAGIC and became_text(file)
        file.close()
        if changed:
            raise CheckpointError(text_error(path), file=path) from error
        raise
    except BaseException:
        file.close()
        raise
    begins = {name: data_begin + offset for name, offset in offsets.items()}
    return _Part(file, metadata, tensors, begins)


def _checkpoint(path: Path, parts: list[_Part]) -> GgufCheckpoint:
    tensors: dict[str, TensorInfo] = {}
    spans: dict[str, Span] = {}
    for part in parts:
        for name, info in part.tensors.items():
            if name in tensors:
                raise CheckpointError("is in two parts", file=part.file.path, tensor=name)
            tensors[name] = info
            spans[name] = (part.file, part.begins[name])
    return GgufCheckpoint(
        path,
        metadata=parts[0].metadata,
        tensors=tensors,
        spans=spans,
        files=[part.file for part in parts],
    )


def part_of(name: str) -> tuple[str, int] | None:
    """The model that a file is a part of, by its name, and which part: None for a whole one."""
    match = PART_NAME.fullmatch(name)
    return None if match is None else (f"{match[1]} of {match[3]}", int(match[2]))


def role_of(path: Path) -> str:
    """What a GGUF file is for: ``"model"``, ``"adapter"``, ``"mmproj"``, ``"imatrix"``, ...

    The keys that say it stand first, so little is read. What cannot be read counts as a model,
    whose opening says what is wrong with it.
    """
    found: dict[str, Any] = {}
    try:
        file = MappedFile(path)
    except CheckpointError:
        return MODEL
    try:
        cursor = Cursor(file)
        _, n_keys = _preamble(cursor)
        for i in range(n_keys):
            key = cursor.name(f"key {i}")
            if not key.startswith(("general.", "adapter.", "split.")):
                break
            found[key] = cursor.value(key)
    except CheckpointError:
        pass
    finally:
        file.close()
    return role_in(found)


def role_in(metadata: Mapping[str, Any]) -> str:
    """What a GGUF file with these keys is for."""
    role = metadata.get("general.type")
    if isinstance(role, str) and role:
        return role
    if "adapter.type" in metadata:
        return "adapter"
    return OLD_ROLES.get(str(metadata.get("general.architecture")), MODEL)


def _preamble(cursor: Cursor) -> tuple[int, int]:
    start = cursor.start
    if not start.startswith(MAGIC):
        cursor.fail(f"expected a GGUF file (first bytes {MAGIC!r}), got {describe_start(start)}")
    cursor.take(len(MAGIC), "the magic number")
    version = cursor.u32("the version")
    if version & 0xFFFF == 0 and version:
        cursor.fail("a big-endian GGUF file, expected little-endian; convert it with gguf-py")
    if version not in (2, 3):
        cursor.fail(f"GGUF version {version}, expected 2 or 3; convert the model anew")
    n_tensors = cursor.entries("tensors")
    n_keys = cursor.entries("keys")
    return n_tensors, n_keys


def _metadata(cursor: Cursor, n_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for i in range(n_keys):
        key = cursor.name(f"key {i} of {n_keys}")
        if key in metadata:
            cursor.fail(f"key {key!r} occurs twice: the file is corrupt")
        metadata[key] = cursor.value(key)
    return metadata


def _split_count(metadata: dict[str, Any], path: Path) -> int:
    """Files that the model is split into."""
    count = metadata.get("split.count", 0)
    if type(count) is not int:
        got = type(count).__name__
        raise CheckpointError(f"split.count: expected an integer, got a {got}", file=path)
    if count > MAX_PARTS:
        raise CheckpointError(
            f"split.count: {count} parts, expected at most {MAX_PARTS}", file=path
        )
    return max(count, 1)


def _split_names(path: Path, count: int) -> list[str]:
    """The names of all parts, by the name of one."""
    match = PART_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise CheckpointError(
            f"one part of a model that is split into {count} files, which are found by their "
            f"names: expected NAME-00001-of-{count:05}.gguf; give the parts their names back",
            file=path,
        )
    stem, digits, total, ending = match[1], len(match[2]), match[3], match[4]
    names = [f"{stem}-{i:0{digits}}-of-{total}{ending}" for i in range(1, count + 1)]
    missing = [name for name in names if not os.path.lexists(path.with_name(name))]
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise CheckpointError(
            f"{len(missing)} of the {count} files that the model is split into are missing: "
            f"{', '.join(missing[:4])}{more}; put all of them into one folder",
            file=path,
        )
    return names


def _check_split(parts: list[_Part], count: int) -> None:
    """Check that every part says that it is the part that its name says."""
    for i, part in enumerate(parts):
        number, of = part.metadata.get("split.no"), part.metadata.get("split.count")
        if (number, of) != (i, count):
            raise CheckpointError(
                f"its name says part {i + 1} of {count}, its header split.no {number!r} and "
                f"split.count {of!r}: it is a part of another model, or was renamed",
                file=part.file.path,
            )
    total = parts[0].metadata.get("split.tensors.count")
    stored = sum(len(part.tensors) for part in parts)
    if type(total) is int and total != stored:
        raise CheckpointError(
            f"expected {total} tensors in all parts, found {stored}: a part is of another model",
            file=parts[0].file.path,
        )


def _tensor_infos(cursor: Cursor, n_tensors: int) -> tuple[dict[str, TensorInfo], dict[str, int]]:
    tensors: dict[str, TensorInfo] = {}
    offsets: dict[str, int] = {}
    for i in range(n_tensors):
        name = cursor.name(f"the name of tensor {i} of {n_tensors}")
        if name in tensors:
            cursor.fail(f"tensor {name!r} occurs twice: the file is corrupt")
        n_dims = cursor.u32(f"the number of dimensions of {name!r}")
        if n_dims > MAX_DIMS:
            cursor.fail(f"tensor {name!r} has {n_dims} dimensions, expected at most {MAX_DIMS}")
        ne = [cursor.u64(f"a dimension of {name!r}") for _ in range(n_dims)]
        kind = cursor.u32(f"the type of {name!r}")
        offsets[name] = cursor.u64(f"the offset of {name!r}")
        tensors[name] = _tensor_info(name, ne, kind, cursor.file.path)
    return tensors, offsets


def _tensor_info(name: str, ne: list[int], kind: int, path: Path) -> TensorInfo:
    block = BLOCK_TYPES.get(kind)
    if block is None:
        raise CheckpointError(
            f"unknown type {kind}: the file is corrupt, or from a newer or much older llama.cpp",
            file=path,
            tensor=name,
        )
    shape = tuple(reversed(ne))  # ne counts from the innermost dimension
    n_elements = math.prod(ne)
    if min(ne, default=1) == 0 or n_elements >= 1 << 63:
        raise CheckpointError(
            f"shape {shape}: expected dimensions of at least 1 whose product fits in 63 bits",
            file=path,
            tensor=name,
        )
    row = ne[0] if ne else 1
    if row % block.size:
        raise CheckpointError(
            f"rows of {row} elements, expected a multiple of {block.size} for type {block.name}",
            file=path,
            tensor=name,
        )
    return TensorInfo(name, block.name, shape, n_elements // block.size * block.nbytes)


def _alignment(metadata: dict[str, Any], path: Path) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    integral = type(alignment) is int
    if integral and 8 <= alignment <= MAX_ALIGNMENT and alignment.bit_count() == 1:
        return alignment  # type: ignore[no-any-return]
    got = alignment if integral else f"a {type(alignment).__name__}"
    raise CheckpointError(
        f"general.alignment: expected a power of two from 8 to {MAX_ALIGNMENT}, got {got}",
        file=path,
    )


def _check_layout(
    tensors: dict[str, TensorInfo],
    offsets: dict[str, int],
    data_begin: int,
    alignment: int,
    file: MappedFile,
) -> int:
    """Check that every tensor is aligned, inside the file and over no other; where they end."""
    expected = data_begin + max((offsets[t.name] + t.nbytes for t in tensors.values()), default=0)
    end, before = 0, ""
    for name in sorted(offsets, key=offsets.__getitem__):
        offset, nbytes = offsets[name], tensors[name].nbytes
        problem = None
        if offset % alignment:
            problem = f"offset {offset} is not a multiple of the alignment {alignment}"
        elif offset < end:
            problem = f"its bytes begin at {offset}, inside those of {before!r}, which end at {end}"
        elif data_begin + offset + nbytes > file.size:
            problem = (
                f"expected a file of at least {expected} bytes, found {file.size}. It is truncated "
                f"(an incomplete download?) or corrupt; download it again"
            )
        if problem:
            raise CheckpointError(problem, file=file.path, tensor=name)
        end, before = offset + nbytes, name
    return expected
