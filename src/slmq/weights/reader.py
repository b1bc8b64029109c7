"""Checkpoint tensors to packed matrices."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import slmq._native as _native
import slmq.formats as formats
from slmq.checkpoint import Checkpoint, Layout, PackedCheckpoint, TensorInfo
from slmq.checkpoint.foreign.weight import (
    BLOCK_FORMATS,
    WIDENED,
    ForeignWeight,
    GgufTensor,
    decode,
    foreign_weights,
)
from slmq.checkpoint.packed_folder import COLUMNS
from slmq.errors import CheckpointError
from slmq.plan.linear import Linear
from slmq.weights.doubts import Doubts
from slmq.weights.placement import PackedFile, choose_memory
from slmq.weights.rows import Rows

F32 = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
I32 = npt.NDArray[np.int32]

# What a stored type becomes when nothing else is asked for: the format that keeps every bit (bf16
# has no kernel of its own; float16 holds trained weights' range with more precision).
KEPT = {
    "f64": "f32",
    "f32": "f32",
    "f16": "f16",
    "bf16": "f16",
    "q4_0": "q4g32s",
    "q4_1": "q4g32a",
    "q8_0": "q8g32s",
    **BLOCK_FORMATS,
    **{kind: kept for kind, (kept, _) in WIDENED.items()},
}
# What rows are packed from one at a time, beside GGUF's blocks.
ROW_BY_ROW = ("f32", "f16", "bf16", "q4_0", "q4_1", "q8_0")
FLOATS = ("f64", "f32", "f16", "bf16")
INTEGERS = {"i32": "<i4", "i64": "<i8"}
LARGEST_EXACT = 1 << 24  # integers up to here are themselves in float32
# The largest bfloat16 whose lower bits float16 can lose, as stored: 2^-17.
SMALL_BF16 = (127 - 17) << 7


SAMPLED = 1 << 12  # values of a matrix that say whether all need a look
COMPARED = 1 << 20  # bytes of two tensors that are compared at a time

log = logging.getLogger("slmq")


class WeightReader:
    """Reads a checkpoint's tensors by name, checks shapes, packs linear weights.

    Weights of a packed folder are packed already: they are mapped or read.

    Parameters
    ----------
    checkpoint : Checkpoint
    names : callable
        Maps the model file's (Hugging Face) tensor name to the stored name.
    format : str, optional
        "int4", "int8", "f16", "f32" or another format of `formats.ROUNDED`: what weights become.
        None keeps them as stored. Quantized tensors of a checkpoint are kept bit by bit unless
        `format` is given; values that no format of ours holds are rounded to float16, which a
        warning of the logger "slmq" says.
    threads : int
        Threads that pack or read.
    memory : {"mmap", "huge", "small"}, optional
        Where the packed weights lie: see `slmq.weights.placement`.
    keep : bool
        Whether all weights are kept, as a model keeps them: they then lie in one piece of memory.
    progress : callable, optional
        Called with the bytes done and their total after every tensor.

    Raises
    ------
    CheckpointError
        If a tensor cannot be packed, or not as `format` says.
    ValueError
        For an unknown `format` or `memory`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        names: Callable[[str], str] = lambda name: name,
        *,
        format: str | None = None,
        threads: int = 1,
        memory: str | None = None,
        keep: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self._names = names
        self._wanted = None if format is None else formats.format_named(format).name
        if not checkpoint.packed and self._wanted not in (None, *formats.ROUNDED):
            known = ", ".join([*formats.USER_FORMATS, *formats.ROUNDED])
            raise ValueError(
                f"format: expected a format to round to, one of {known}; {self._wanted} only "
                f"holds weights quantized elsewhere"
            )
        self._threads = threads
        self._progress = progress
        self._done = 0
        self._total = sum(t.nbytes for t in checkpoint.tensors.values())
        self._foreign = foreign_weights(checkpoint)
        self.memory = choose_memory(memory, checkpoint)
        self._packed: PackedFile | None = None
        self._arena: _native.Arena | None = None
        if isinstance(checkpoint, PackedCheckpoint):
            self._packed = PackedFile(checkpoint, self.memory.memory, threads)
        elif keep:
            # Never more than every two-dimensional tensor packed. What is not used costs nothing.
            self._arena = _native.Arena(self._upper_bound(), self.memory.memory == "huge")
        self.packed_nbytes = 0
        self.packed_formats: Counter[str] = Counter()
        self.parameters = 0
        self._rounded: set[str] = set()
        self._asked: set[str] = set()
        self._small: set[str] = set()
        # Names of tensors whose rows a packed folder holds as several: "name[0:64]".
        cut = (name.partition("[") for name in checkpoint.tensors if checkpoint.packed)
        self._cut = {name for name, bracket, _ in cut if bracket}
        # Of GGUF files and packed folders the configuration was made from the tensors.
        self._has_config = not (checkpoint.packed or checkpoint.layout.gguf_terms)
        self._doubts = Doubts(checkpoint.path)

    @property
    def layout(self) -> Layout:
        """How the checkpoint's tensors are named, and how their values lie."""
        return self.checkpoint.layout

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this tensor, or rows of it as tensors of their own."""
        stored = self._names(name)
        return stored in self.checkpoint.tensors or stored in self._foreign or stored in self._cut

    def stored_name(self, name: str) -> str:
        """What the checkpoint calls a tensor."""
        return self._names(name)

    def note(self, name: str) -> None:
        """A tensor of this name will be read."""
        self._asked.add(self._names(name))

    def bias(self, name: str, announced: bool) -> str | None:
        """The name of a bias that is stored, if it is; says where the configuration disagrees."""
        if not self.has(name):
            if announced and self._has_config:
                self._doubts.missing(name)
            return None
        if not announced and self._has_config:
            self._doubts.added(name)
        return name

    def own_head(self, name: str, embed: str, tied: bool) -> bool:
        """Whether the head is stored and is not the embedding; says where that is in doubt."""
        if not self.has(name):
            if not tied and self._has_config:
                self._doubts.headless(name)
            return False
        if tied and self._same(name, embed):
            self.note(name)
            return False
        if tied and self._has_config:
            self._doubts.untied(name)
        return True

    def tell(self) -> None:
        """Warns of what was stored and not read, once everything is."""
        parts = {
            part for name in self._asked & set(self._foreign) for part in self._foreign[name].parts
        }
        read = self._asked | parts
        self._doubts.tell(
            name
            for name in self.checkpoint.tensors
            if name not in read and not name.endswith(COLUMNS)
        )

    def _same(self, name: str, other: str) -> bool:
        """Whether two tensors are stored alike, byte by byte."""
        first, second = (self.checkpoint.tensors.get(self._names(n)) for n in (name, other))
        if first is None or second is None:
            return False
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        a, b = self.checkpoint.raw(first.name), self.checkpoint.raw(second.name)
        steps = range(0, len(a), COMPARED)
        return all(np.array_equal(a[i : i + COMPARED], b[i : i + COMPARED]) for i in steps)

    def vector(
        self,
        name: str,
        size: int,
        rows: Rows | None = None,
        *,
        columns: int = 0,
        whole: bool = False,
    ) -> F32:
        """A float32[size] tensor: norms and biases; with `rows` a part of a stored one.

        With `columns` it is stored as rows of so many, or as [size / columns, 1, columns]. If
        `whole` it may be stored as integers, which have to be exact as floats.
        """
        if rows is not None and self.checkpoint.packed:
            name, rows = rows.name(name, size), None
        info = self._info(name)
        stored = size if rows is None else rows.stored
        # A number by itself is a vector of one.
        flat = self.layout.stacked_norms or (info.shape == () and stored == 1)
        if not flat or math.prod(info.shape) != stored:
            spread = columns > 0 and not self.checkpoint.packed
            shape = (size // columns, columns) if spread else (stored,)
            if not (spread and info.shape == (shape[0], 1, columns)):
                self._check_shape(info, shape)
        if info.dtype not in FLOATS and not (whole and info.dtype in INTEGERS):
            raise self._error(info, f"expected f64, f32, f16 or bf16, found {info.dtype}")
        raw = self.checkpoint.read(info.name)
        if info.dtype in INTEGERS:
            integers = raw.view(INTEGERS[info.dtype])
            far = (integers < -LARGEST_EXACT) | (integers > LARGEST_EXACT)
            if far.any():
                raise self._error(info, f"expected integers of at most {LARGEST_EXACT}")
            values = integers.astype(np.float32)
        elif info.dtype == "bf16":
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = rounded(raw.view(f"<f{info.nbytes // math.prod(info.shape)}"))
        if not np.isfinite(values).all():
            raise self._error(info, "expected finite weights, found NaN or infinity")
        self._finish(info)
        return values if rows is None else self._stored_rows(rows).of(values, size)

    def linear(
        self,
        name: str,
        n: int,
        k: int,
        *,
        bias: str | None = None,
        order: npt.NDArray[np.int32] | None = None,
        rows: Rows | None = None,
        floats: bool = False,
    ) -> Linear:
        """A packed weight [n, k]; row r of it is row order[r] of the checkpoint's.

        With `rows` it is a part of a stored matrix of `rows.stored` rows. With `floats` it stays
        what it is where `format` would make integers of it: positions, which are added.

        Raises
        ------
        CheckpointError
            If the tensor is missing, has another shape or type, or holds NaN or infinity.
        """
        info = self._part(name, n, k, rows)
        fmt = self._format(info, floats)
        columns = self._columns(info, fmt)
        if self._packed is not None:
            if order is not None:
                raise ValueError("the rows of a packed matrix cannot be reordered")
            matrix = self._packed.matrix(info.name)
        else:
            matrix = self._pack(info, fmt, order, rows or Rows(0, n), n, k)
        self.packed_nbytes += matrix.nbytes
        self.packed_formats[fmt] += matrix.nbytes
        self._finish(info, n * k)
        if columns is not None and self._packed is not None:
            self._done += columns.nbytes
        bias_values = None
        if bias is not None:
            bias_values = self.vector(bias, n, rows)
            if order is not None:
                bias_values = bias_values[order]
        return Linear(matrix, bias_values, columns, name if rows is None else rows.name(name, n))

    def table(self, name: str, n: int, k: int) -> Linear:
        """A table that stays in its file where its rows can be packed one at a time."""
        info = self._part(name, n, k, None)
        weight, fmt = self._foreign.get(info.name), self._format(info, floats=True)
        alone = info.dtype in ROW_BY_ROW if weight is None else type(weight) is GgufTensor
        if self._packed is not None or not alone:
            return self.linear(name, n, k, floats=True)
        try:
            held = _native.RowTable(info.dtype, self.checkpoint.raw(info.name), n, k, fmt)
        except ValueError as error:
            raise self._error(info, str(error)) from None
        self._finish(info, n * k)
        return Linear(held, name=name)

    def format_of(
        self, name: str, n: int, k: int, rows: Rows | None = None, floats: bool = False
    ) -> str:
        """The format that `linear` gives a weight; raises as it does for a wrong shape or type."""
        return self._format(self._part(name, n, k, rows), floats)

    def columns_of(self, name: str, n: int, k: int, rows: Rows | None = None) -> I32 | None:
        """The order of columns that `linear` gives a weight; raises as `format_of`."""
        info = self._part(name, n, k, rows)
        return self._columns(info, self._format(info))

    def _part(self, name: str, n: int, k: int, rows: Rows | None) -> TensorInfo:
        """The stored tensor that holds a weight."""
        if rows is not None and self.checkpoint.packed:
            name, rows = rows.name(name, n), None
        info = self._info(name)
        if rows is None:
            self._check_shape(info, (n, k))
        elif self._stored_rows(rows).transposed:
            self._check_shape(info, (k, rows.stored))
        else:
            self._check_shape(info, (rows.stored, k))
        return info

    def _stored_rows(self, rows: Rows) -> Rows:
        """As this checkpoint stores them."""
        kept = self.layout.own_rows or rows.everywhere
        return rows if kept else Rows(rows.first, rows.stored)

    def _pack(
        self,
        info: TensorInfo,
        fmt: str,
        order: npt.NDArray[np.int32] | None,
        rows: Rows,
        n: int,
        k: int,
    ) -> _native.Matrix:
        rows, weight = self._stored_rows(rows), self._foreign.get(info.name)
        if weight is not None and rows.transposed:
            raise self._error(info, "quantized weights stored transposed are not supported")
        try:
            if weight is not None and weight.kept == fmt:
                self._say_change(info, weight, fmt)
                wanted = rows.of(np.arange(info.shape[0]), n)
                return weight.pack(wanted, order, self._arena, self._threads)
            source, raw = self._rows(info, weight, rows, n)
            return _native.Matrix.pack(source, raw, n, k, fmt, order, self._arena, self._threads)
        except ValueError as error:
            raise self._error(info, str(error)) from None

    def _rows(
        self, info: TensorInfo, weight: ForeignWeight | None, rows: Rows, n: int
    ) -> tuple[str, npt.NDArray[np.uint8]]:
        """Rows of a weight as bytes of a type that the packer reads."""
        if weight is None:
            # Rows that lie together are read alone.
            part = rows.heads == 0 and not rows.transposed
            span = (rows.first, rows.first + n) if part else ()
            dtype, raw = info.dtype, self.checkpoint.read(info.name, *span)
            if dtype == "f64":  # as transformers casts them
                dtype, raw = "f32", rounded(raw.view("<f8")).view(np.uint8)
            if dtype == "bf16" and (self._wanted or KEPT[dtype]) == "f16":
                self._check_small(info, raw.view("<u2"))
            if part:
                return dtype, raw
            if rows.transposed:
                wide = "<u4" if dtype == "f32" else "<u2"
                wanted = rows.of(raw.view(wide).reshape(info.shape).T, n)
                return dtype, np.ascontiguousarray(wanted).view(np.uint8).reshape(-1)
            return dtype, rows.of(raw.reshape(info.shape[0], -1), n).reshape(-1)
        if self._wanted is None and info.dtype not in self._rounded:
            self._rounded.add(info.dtype)
            log.warning(
                "%s: no packed format can hold these weights of type %s; their values are "
                "rounded to float16 (relative error at most 2^-11)",
                self.checkpoint.path,
                info.dtype,
            )
        if rows.heads == 0:
            values = decode(weight, self._threads, (rows.first, rows.first + n))
        else:
            values = np.ascontiguousarray(rows.of(decode(weight, self._threads), n))
        return "f32", values.reshape(-1).view(np.uint8)

    def _say_change(self, info: TensorInfo, weight: ForeignWeight, fmt: str) -> None:
        """Tells once of every type that takes more bits here than in the file."""
        said = f"{info.dtype} as {fmt}"
        if weight.change is None or said in self._rounded:
            return
        self._rounded.add(said)
        log.warning(
            "%s: weights of type %s take %.1f bits each here (%s), as they have no kernel of their "
            "own; %s",
            self.checkpoint.path,
            info.dtype,
            formats.FORMATS[fmt].bits_per_weight,
            fmt,
            weight.change,
        )

    def _check_small(self, info: TensorInfo, stored: npt.NDArray[np.uint16]) -> None:
        """Warns of a bfloat16 matrix that is too small, as a whole, for float16 to keep its bits.

        A few small values among larger ones lose less than 2^-25, which no answer notices.
        """
        if info.name in self._small or int((stored[:SAMPLED] & 0x7FFF).max()) > SMALL_BF16:
            return
        self._small.add(info.name)
        largest = int((stored & 0x7FFF).max())
        if 0 < largest <= SMALL_BF16:
            value = np.array([largest << 16], np.uint32).view(np.float32)[0]
            log.warning(
                "%s: the weights of %s are %.1e at most, and lose bits in float16; format='f32' "
                "keeps them",
                self.checkpoint.path,
                info.name,
                value,
            )

    def _columns(self, info: TensorInfo, fmt: str) -> I32 | None:
        """The order of a packed weight's columns, None if they are as they were."""
        if self._packed is None:
            weight = self._foreign.get(info.name)
            return None if weight is None or weight.kept != fmt else weight.columns
        order = self.checkpoint.tensors.get(info.name + COLUMNS)
        if order is None:
            return None
        k = info.shape[1]
        if order.dtype != "i32" or order.shape != (k,):
            raise self._error(order, f"expected i32 [{k}], found {order.dtype} {list(order.shape)}")
        columns: I32 = self.checkpoint.read(order.name).view("<i4").astype(np.int32)
        if not np.array_equal(np.sort(columns), np.arange(k)):
            raise self._error(order, f"expected every column 0..{k - 1} once")
        return columns

    def _upper_bound(self) -> int:
        stored = {t.name: t for t in self.checkpoint.tensors.values() if t.dtype in KEPT}
        stored |= {name: weight.info for name, weight in self._foreign.items()}
        return sum(
            # A fused matrix is read in up to three parts, each filled up to 32 rows.
            _native.packed_bytes(self._format(info), info.shape[0] + 3 * 32, info.shape[1])
            for info in stored.values()
            if len(info.shape) == 2 and min(info.shape) > 0
        )

    def _info(self, name: str) -> TensorInfo:
        stored = self._names(name)
        weight = self._foreign.get(stored)
        info = self.checkpoint.tensors.get(stored) if weight is None else weight.info
        if info is None:
            raise CheckpointError(
                f"tensor {stored!r} is missing; the file does not contain the model it describes"
                f"{self._nearest(stored)}",
                file=self.checkpoint.path,
            )
        self._asked.add(info.name)
        return info

    def _nearest(self, name: str) -> str:
        """A stored tensor whose name ends like one that is missing, for an error."""
        names = [*self._foreign, *self.checkpoint.tensors]
        parts = name.split(".")
        for first in range(1, len(parts) - 1):
            end = ".".join(parts[first:])
            for found in names:
                if found == end or found.endswith(f".{end}"):
                    return f" (there is {found!r:.80})"
        return f" (there are {', '.join(map(repr, names[:3]))}, ...)" if names else ""

    def _format(self, info: TensorInfo, floats: bool = False) -> str:
        """What a weight is packed to."""
        if self.checkpoint.packed:
            if self._wanted not in (None, info.dtype):
                raise self._error(
                    info,
                    f"packed as {info.dtype}, but {self._wanted} was requested; quantize the "
                    f"original model (`slmq quantize`)",
                )
            return info.dtype
        weight = self._foreign.get(info.name)
        if weight is not None:
            kept = weight.kept or "f16"
            rounds = self._wanted not in (None, "f16", "f32")
            return kept if floats and rounds else self._wanted or kept
        if info.dtype not in KEPT:
            known = ", ".join(KEPT)
            raise self._error(
                info, f"expected a tensor of type {known}; {info.dtype} is not supported"
            )
        if floats and self._wanted not in (None, "f16", "f32"):
            return KEPT[info.dtype]
        return self._wanted or KEPT[info.dtype]

    def _check_shape(self, info: TensorInfo, shape: tuple[int, ...]) -> None:
        if tuple(info.shape) != shape:
            raise self._error(info, f"expected shape {list(shape)}, found {list(info.shape)}")

    def _error(self, info: TensorInfo, message: str) -> CheckpointError:
        return CheckpointError(message, file=self.checkpoint.path, tensor=info.name)

    def _finish(self, info: TensorInfo, count: int | None = None) -> None:
        """Notes that a tensor, or `count` values of it, is read."""
        weight = self._foreign.get(info.name)
        if self._packed is None:
            for part in (info.name,) if weight is None else weight.parts:
                self.checkpoint.release(part)
        size = math.prod(info.shape)
        read = size if count is None else count
        self.parameters += read
        self._done += info.nbytes * read // max(size, 1)
        if self._progress is not None:
            self._progress(self._done, self._total)


def rounded(values: Array) -> F32:
    """Values of any float type as float32; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
