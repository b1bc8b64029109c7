"""Folders of safetensors: ``config.json`` beside one ``model.safetensors`` or an index of shards.

Layout of a file: the header's length as u64, little-endian; the header, a JSON object of
``{name: {"dtype", "shape", "data_offsets": [begin, end]}}`` and an optional ``__metadata__``;
then the data, to which the offsets refer and which they must cover from end to end.
"""

from __future__ import annotations

import logging
import math
import os
import re
import struct
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any

from slmq.checkpoint.base import TensorInfo
from slmq.checkpoint.jsonfile import parse_json_object, read_json_object
from slmq.checkpoint.mapped import MappedCheckpoint, MappedFile, Span
from slmq.checkpoint.strangers import became_text, describe_start, text_error
from slmq.errors import CheckpointError

__all__ = [
    "CONFIG",
    "INDEX",
    "MAX_CONFIG_BYTES",
    "SINGLE",
    "SafetensorsCheckpoint",
    "open_safetensors",
    "open_single",
]

log = logging.getLogger("slmq")

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

MAX_CONFIG_BYTES = 4 << 20
MAX_HEADER_BYTES = 16 << 20  # also of an index; the largest real ones have some 5 MB
MAX_DIMS = 32
MAX_NAME_LENGTH = 1024

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}


Header = tuple[dict[str, TensorInfo], dict[str, int], dict[str, str]]


class SafetensorsCheckpoint(MappedCheckpoint):
    """An open folder of safetensors; see `slmq.checkpoint.Checkpoint`.

    Attributes
    ----------
    file_metadata : Mapping
        ``__metadata__`` of ``model.safetensors``; empty for a folder of shards.
    """

    kind = "safetensors"
    stacks = re.compile(
        r".*\.experts\.(gate_up|down)_proj(_bias|_blocks|_scales)?"
        r"|.*\.block_sparse_moe\.(input|output)_linear\.weight"
    )
    file_metadata: Mapping[str, str] = MappingProxyType({})


def open_safetensors(
    folder: Path, stated: Mapping[str, Any] | None = None
) -> SafetensorsCheckpoint:
    """Map the shards of a folder and check all of their headers.

    With both ``model.safetensors`` and an index in the folder, the single file is read. An index
    says which files to open; what they hold counts. `stated` stands for ``config.json``.

    Raises
    ------
    CheckpointError
        ``config.json`` or a shard is missing, or a file is truncated or corrupt.
    """
    if stated is None:
        stated = read_json_object(folder / CONFIG, MAX_CONFIG_BYTES, allow_duplicates=True)
    files: list[MappedFile] = []
    tensors: dict[str, TensorInfo] = {}
    spans: dict[str, Span] = {}
    placed = _shards(folder)
    try:
        for path, names in placed.items():
            file = MappedFile(path)
            files.append(file)
            found, begins, file_metadata = _read_header(file)
            for name, info in found.items():
                # Of two tensors of one name the one that the index means.
                if name not in tensors or name in names:
                    tensors[name] = info
                    spans[name] = (file, begins[name])
    except BaseException:
        for file in files:
            file.close()
        raise
    absent = [name for names in placed.values() for name in names if name not in tensors]
    if absent:
        log.warning("%s: the index names what no shard holds: %s", folder, _some(absent))
    checkpoint = SafetensorsCheckpoint(
        folder, metadata=dict(stated), tensors=tensors, spans=spans, files=files
    )
    if len(files) == 1:
        checkpoint.file_metadata = MappingProxyType(file_metadata)
    return checkpoint


def open_single(path: Path, metadata: dict[str, Any]) -> SafetensorsCheckpoint:
    """Map one file of whatever name, with metadata that were read elsewhere; errors likewise."""
    file = MappedFile(path)
    try:
        tensors, begins, file_metadata = _read_header(file)
    except BaseException:
        file.close()
        raise
    spans = {name: (file, begin) for name, begin in begins.items()}
    checkpoint = SafetensorsCheckpoint(
        path, metadata=metadata, tensors=tensors, spans=spans, files=[file]
    )
    checkpoint.file_metadata = MappingProxyType(file_metadata)
    return checkpoint


def _shards(folder: Path) -> dict[Path, list[str]]:
    """Return each file to open with the tensors that the index places there."""
    if os.path.lexists(folder / SINGLE):
        return {folder / SINGLE: []}
    index = folder / INDEX
    weight_map = read_json_object(index, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("expected a non-empty JSON object under 'weight_map'", file=index)
    wanted: dict[str, list[str]] = defaultdict(list)
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            got = type(shard).__name__
            raise CheckpointError(f"expected a file name, got a {got}", file=index, tensor=tensor)
        wanted[shard].append(tensor)
    paths = {shard: _inside(folder, shard, index) for shard in wanted}
    # Path.exists raises for a name that is too long; this is False.
    missing = [s for s, path in paths.items() if not os.path.exists(path)]  # noqa: PTH110
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(paths)} shards are missing: "
            + "; ".join(f"{shard!r} ({_some(wanted[shard])})" for shard in missing[:8])
            + (f"; and {len(missing) - 8} more" if len(missing) > 8 else "")
            + ". Download the model again",
            file=folder,
        )
    return {paths[shard]: names for shard, names in wanted.items()}


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return "tensors " + ", ".join(f"{name!r:.80}" for name in names[:3]) + rest


def _inside(folder: Path, shard: str, index: Path) -> Path:
    """Return the path of a shard, which must not lead out of the folder, by name or by link."""
    windows = PureWindowsPath(shard)  # knows both separators and drives
    if not shard or "\0" in shard or windows.anchor or ".." in windows.parts or "\\" in shard:
        raise CheckpointError(
            f"weight_map names the shard {shard!r}; expected the name of a file in the folder",
            file=index,
        )
    path = folder / PurePosixPath(shard)
    try:
        real, root = path.resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError) as e:  # RuntimeError: links in a circle
        raise CheckpointError(f"cannot follow the shard {shard!r}: {e}", file=index) from e
    # The cache of huggingface-hub: snapshots/REVISION/NAME are links to ../../blobs/HASH.
    caches = [p.parent / "blobs" for p in root.parents if p.name == "snapshots"]
    if not any(real.is_relative_to(home) for home in (root, *caches)):
        raise CheckpointError(
            f"the shard {shard!r} is a link to {real}, outside of the folder; put the file itself "
            f"there",
            file=index,
        )
    return path


def _read_header(file: MappedFile) -> Header:
    """Return the tensors of one file, where in the file each begins, and its metadata."""
    try:
        return _header(file)
    except CheckpointError as error:
        if became_text(file):
            raise CheckpointError(text_error(file.path), file=file.path) from error
        raise


def _header(file: MappedFile) -> Header:
    if file.size < 8:
        raise CheckpointError(
            f"expected a header length of 8 bytes, found {file.size}: the file is truncated",
            file=file.path,
        )
    start = file.read(0, min(file.size, 64)).tobytes()
    length = struct.unpack_from("<Q", start)[0]
    if length > MAX_HEADER_BYTES or start[8:9] not in (b"{", b""):
        raise CheckpointError(
            f"expected a safetensors file (a length up to {MAX_HEADER_BYTES}, then '{{'), "
            f"got {describe_start(start)}",
            file=file.path,
        )
    if length > file.size - 8:
        raise CheckpointError(
            f"expected a header of {length} bytes, found {file.size - 8}: the file is truncated "
            f"(an incomplete download?); download it again",
            file=file.path,
        )
    header = parse_json_object(file.read(8, length).tobytes(), file.path, "the header")
    metadata = _user_metadata(header.pop("__metadata__", None), file.path)
    tensors: dict[str, TensorInfo] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        tensors[name], begin, end = _tensor_info(name, entry, file.path)
        ranges.append((begin, end, name))
    _check_layout(sorted(ranges), 8 + length, file)
    return tensors, {name: 8 + length + begin for begin, _, name in ranges}, metadata


def _user_metadata(found: Any, path: Path) -> dict[str, str]:
    if found is None:
        return {}
    if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
        return found
    raise CheckpointError("expected __metadata__ to be an object of strings", file=path)


def _tensor_info(name: str, entry: Any, path: Path) -> tuple[TensorInfo, int, int]:
    """Check one entry by itself; return the tensor and its bytes, begin and end."""

    def fail(message: str) -> CheckpointError:
        return CheckpointError(message, file=path, tensor=name[:MAX_NAME_LENGTH])

    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise fail(f"expected a name of 1 to {MAX_NAME_LENGTH} characters, got {len(name)}")
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise fail("expected an object with dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        got = repr(dtype)[:40]
        raise fail(f"unknown dtype {got}, expected one of {', '.join(BITS)}")
    if not _are_counts(shape) or len(shape) > MAX_DIMS:
        raise fail(f"expected a shape of at most {MAX_DIMS} integers >= 0, got {repr(shape)[:80]}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail(
            f"expected data_offsets [begin, end], 0 <= begin <= end, got {repr(offsets)[:80]}"
        )
    # NumPy bounds the product of the dimensions even where one of them is zero.
    if math.prod(d for d in shape if d) >= 1 << 59:
        raise fail(f"the product of the shape {shape} overflows")
    begin, end = offsets
    bits = math.prod(shape) * BITS[dtype]
    if bits != 8 * (end - begin):
        raise fail(
            f"{dtype} of shape {shape}: expected {bits / 8:.15g} bytes, "
            f"data_offsets {offsets} hold {end - begin}"
        )
    return TensorInfo(name, dtype.lower(), tuple(shape), end - begin), begin, end


def _are_counts(values: Any) -> bool:
    # type(), not isinstance(): true and false are integers to Python.
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _check_layout(ranges: list[tuple[int, int, str]], data_begin: int, file: MappedFile) -> None:
    """Check that the tensors, in the order of their bytes, fill the rest of the file."""
    position, before = 0, "the header"
    for begin, end, name in ranges:
        if begin != position:
            relation = "inside of" if begin < position else "with a gap after"
            raise CheckpointError(
                f"its bytes start at {begin}, {relation} those of {before}, which end at "
                f"{position}: the file is corrupt",
                file=file.path,
                tensor=name,
            )
        position, before = end, repr(name)
    expected = data_begin + position
    if expected != file.size:
        cause = "truncated (an incomplete download?)" if expected > file.size else "corrupt"
        raise CheckpointError(
            f"expected {expected} bytes according to its header, found {file.size}: the file is "
            f"{cause}; download it again",
            file=file.path,
        )
