"""Our own folder, which `slmq convert` writes: packed tiles, stored as they run.

``config.json`` is the family's own with a section ``"slmq"`` on where the weights come from.
``model.safetensors`` opens with any safetensors reader: a packed matrix is ``U8[bytes]``, norms and
biases are ``F32[size]``. A matrix whose columns are stored in another order has it beside it: an
``I32[k]`` of its name and ``.columns``. The file's ``__metadata__`` has ``"slmq"``, the version of
this layout, and for every packed tensor its name with ``"FORMAT N K"``: weight format, rows and
columns. The header is padded with spaces, and every tensor begins at a multiple of 64 bytes of the
file, so that what is mapped can run. (Where a vector would leave the next tensor unaligned,
``slmq.padding.I`` follows.)
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmq.checkpoint.base import Layout, TensorInfo
from slmq.checkpoint.mapped import MappedCheckpoint, MappedFile, Span
from slmq.checkpoint.safetensors import SINGLE, SafetensorsCheckpoint
from slmq.errors import CheckpointError
from slmq.formats import FORMATS, packed_bytes, padded

__all__ = [
    "ALIGNMENT",
    "COLUMNS",
    "PACKED",
    "VERSIONS",
    "PackedCheckpoint",
    "PackedTensor",
    "PackedWriter",
    "is_packed",
    "packed_checkpoint",
    "packed_header",
    "packed_version",
]

PACKED = "slmq"  # the kind of these checkpoints, and the key of the version
VERSIONS = ("1", "2")  # the second one: how the tiles of formats with `row_panels` lie
ALIGNMENT = 64
PADDING = "slmq.padding."
COLUMNS = ".columns"  # behind a matrix's name: column c of it reads input columns[c]
PIECE_BYTES = 8 << 20
MAX_DIMENSION = 1 << 28
TAG = re.compile(r"([a-z0-9]{1,16}) ([0-9]{1,9}) ([0-9]{1,9})", re.ASCII)


class PackedCheckpoint(MappedCheckpoint):
    """An open folder of packed weights; see `slmq.checkpoint.Checkpoint`.

    A packed tensor's dtype is its weight format and its shape is ``(n, k)``; its raw bytes are the
    tiles, at a multiple of 64 bytes in memory.
    """

    kind = PACKED
    layout = Layout(gguf_tensors=True, own_rows=False)
    packed = True

    @property
    def file(self) -> MappedFile:
        """The mapped ``model.safetensors``."""
        return self.files[0]

    def packed_range(self) -> tuple[int, int]:
        """Where in the file the packed tensors begin and end."""
        packed = [t for t in self.tensors.values() if len(t.shape) == 2]
        begins = [self.begin(t.name) for t in packed]
        ends = [begin + t.nbytes for begin, t in zip(begins, packed, strict=True)]
        return (min(begins), max(ends)) if packed else (0, 0)

    def begin(self, name: str) -> int:
        """Where in the file a tensor begins."""
        return self.span(name)[1]


def is_packed(checkpoint: SafetensorsCheckpoint) -> bool:
    """Whether a folder of safetensors is one of ours."""
    return PACKED in checkpoint.file_metadata


def packed_checkpoint(stored: SafetensorsCheckpoint) -> PackedCheckpoint:
    """Check the tags of a folder whose headers are sound; closes it if they are not.

    Raises
    ------
    CheckpointError
        The layout is of another version, or a tag does not agree with its tensor.
    """
    try:
        path = stored.path / SINGLE
        metadata = stored.file_metadata
        version = metadata[PACKED]
        if version not in VERSIONS:
            raise CheckpointError(
                f"expected packed weights of version {' or '.join(VERSIONS)}, found "
                f"{version!r:.40}; convert the model again with this slmq, or update slmq",
                file=path,
            )
        tensors: dict[str, TensorInfo] = {}
        spans: dict[str, Span] = {}
        for name, info in stored.tensors.items():
            if name.startswith(PADDING):
                continue
            span = stored.span(name)
            tensors[name] = _checked(info, metadata.get(name), span)
            if version < packed_version([tensors[name].dtype]):
                raise CheckpointError(
                    f"packed by an older slmq, whose {tensors[name].dtype} this one does not read; "
                    f"convert the model again",
                    file=path,
                    tensor=name,
                )
            spans[name] = span
        return PackedCheckpoint(
            stored.path,
            metadata=dict(stored.metadata),
            tensors=tensors,
            spans=spans,
            files=stored.files,
        )
    except BaseException:
        stored.close()
        raise


def _checked(info: TensorInfo, tag: str | None, span: Span) -> TensorInfo:
    """The tensor as its tag describes it."""

    def fail(message: str) -> CheckpointError:
        return CheckpointError(message, file=span[0].path, tensor=info.name)

    if len(info.shape) != 1 or info.dtype not in ("u8", "f32", "i32"):
        raise fail(
            f"expected U8, F32 or I32 of one dimension, found {info.dtype} {list(info.shape)}"
        )
    if info.dtype != "u8":
        if tag is not None:
            found = info.dtype.upper()
            raise fail(f"expected packed bytes (U8) for the format {tag!r:.80}, found {found}")
        return info
    match = None if tag is None else TAG.fullmatch(tag)
    if match is None or match[1] not in FORMATS:
        raise fail(f"expected a tag 'FORMAT N K', FORMAT of {', '.join(FORMATS)}; got {tag!r:.80}")
    fmt, n, k = FORMATS[match[1]], int(match[2]), int(match[3])
    if not (1 <= n <= MAX_DIMENSION and 1 <= k <= MAX_DIMENSION):
        raise fail(f"expected 1..2^28 rows and columns, got {n} x {k}")
    if k % fmt.columns:
        raise fail(f"{fmt.name} of {n} x {k}: expected columns in multiples of {fmt.columns}")
    if packed_bytes(fmt, n, k) != info.nbytes:
        raise fail(
            f"{fmt.name} of {n} x {k}: expected {packed_bytes(fmt, n, k)} bytes, found "
            f"{info.nbytes}"
        )
    if span[1] % ALIGNMENT:
        raise fail(f"expected its bytes at a multiple of {ALIGNMENT}, found offset {span[1]}")
    return TensorInfo(info.name, fmt.name, (n, k), info.nbytes)


@dataclass(frozen=True)
class PackedTensor:
    """One tensor of a file to be written.

    Attributes
    ----------
    name : str
    format : str
        A weight format; "f32" or "i32" for a vector.
    shape : tuple of int
        (n, k), or (size,) for a vector.
    """

    name: str
    format: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that are stored, without padding."""
        if len(self.shape) == 1:
            return 4 * self.shape[0]
        return packed_bytes(FORMATS[self.format], *self.shape)


def packed_version(formats: Iterable[str]) -> str:
    """The version of a folder that holds tensors of these formats: the oldest one that can."""
    return VERSIONS[any(name in FORMATS and FORMATS[name].row_panels for name in formats)]


def packed_header(tensors: Sequence[PackedTensor]) -> bytes:
    """Everything before the data of a ``model.safetensors``; its length is a multiple of 64.

    The data are the tensors in this order, each followed by zeros to a multiple of 64 bytes.
    """
    metadata = {PACKED: packed_version(tensor.format for tensor in tensors)}
    header: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    for i, tensor in enumerate(tensors):
        end = position + tensor.nbytes
        if len(tensor.shape) == 1:
            entry = {"dtype": tensor.format.upper(), "shape": list(tensor.shape)}
        else:
            entry = {"dtype": "U8", "shape": [tensor.nbytes]}
            metadata[tensor.name] = f"{tensor.format} {tensor.shape[0]} {tensor.shape[1]}"
        header[tensor.name] = entry | {"data_offsets": [position, end]}
        position = padded(end, ALIGNMENT)
        if position > end:
            entry = {"dtype": "U8", "shape": [position - end]}
            header[f"{PADDING}{i}"] = entry | {"data_offsets": [end, position]}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text = text.ljust(padded(8 + len(text), ALIGNMENT) - 8)
    return struct.pack("<Q", len(text)) + text


class PackedWriter:
    """Writes a ``model.safetensors``; a context manager.

    It writes whole 8 MiB at multiples of 8 MiB: Linux then caches the file in 2 MiB pages, which
    are mapped as they are.

    Parameters
    ----------
    path : Path
    tensors : sequence of PackedTensor
        What `write` will be given, in this order.
    """

    def __init__(self, path: Path, tensors: Sequence[PackedTensor]) -> None:
        self._file = path.open("wb", buffering=0)
        self._piece = bytearray(PIECE_BYTES)
        self._used = 0
        self._put(packed_header(tensors))

    def write(self, data: bytes | memoryview) -> None:
        """Write the bytes of the next tensor."""
        self._put(data)
        self._put(bytes(-len(data) % ALIGNMENT))

    def __enter__(self) -> PackedWriter:
        """Return the writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write what is left, unless something failed, and close the file."""
        with self._file:
            if kind is None:
                self._flush()

    def _put(self, data: bytes | memoryview) -> None:
        begin = 0
        while begin < len(data):
            part = data[begin : begin + PIECE_BYTES - self._used]
            self._piece[self._used : self._used + len(part)] = part
            self._used += len(part)
            begin += len(part)
            if self._used == PIECE_BYTES:
                self._flush()

    def _flush(self) -> None:
        left = memoryview(self._piece)[: self._used]
        while left:
            left = left[self._file.write(left) :]
        self._used = 0
