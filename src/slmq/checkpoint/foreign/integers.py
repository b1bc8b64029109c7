"""Linear weights that are stored in several tensors: what GPTQ, AWQ and compressed-tensors share.

All tensors of a weight are checked against each other when it is found. Sizes come from shapes
that lie inside of a checked file, so nothing asks for more memory than the file justifies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.checkpoint.base import Checkpoint, TensorInfo
from slmq.checkpoint.foreign.chunks import in_chunks
from slmq.checkpoint.foreign.config import QuantConfig
from slmq.checkpoint.foreign.words import GroupedIntegers
from slmq.errors import CheckpointError
from slmq.formats import FORMATS, GROUP

__all__ = ["ForeignLinear"]

F32 = npt.NDArray[np.float32]
I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
Indices = npt.NDArray[np.intp]
U8 = npt.NDArray[np.uint8]

WORDS = ("i32", "u32")
NUMPY_TYPES = {
    "i8": "|i1",
    "i32": "<i4",
    "u32": "<u4",
    "i64": "<i8",
    "f16": "<f2",
    "bf16": "<u2",
    "f32": "<f4",
}


class ForeignLinear(ABC):
    """One weight of n rows and k columns; see `slmq.checkpoint.foreign.weight.ForeignWeight`.

    Parameters
    ----------
    checkpoint : Checkpoint
    stem : str
        What the names of its tensors begin with; it stands for the tensor "<stem>.weight".
    config : QuantConfig

    Attributes
    ----------
    info : TensorInfo
        Name, type ("gptq int4"), shape (n, k) and bytes of all parts.
    parts : tuple of str
        The stored tensors.
    bits : int
        4 or 8.
    group_size : int
        Columns that share a scale.
    group_of : int32[k] or None
        The group of each column, where they are not in order.

    Raises
    ------
    CheckpointError
        A part is missing, or of another type or shape than the others ask for.
    """

    # role: end of the name; those of `OPTIONAL` may be missing.
    SUFFIXES: ClassVar[dict[str, str]]
    OPTIONAL: ClassVar[tuple[str, ...]]
    change = None  # see `ForeignWeight`
    BY_COLUMN: ClassVar[bool]  # scales are [groups, n], not [n, groups]

    def __init__(self, checkpoint: Checkpoint, stem: str, config: QuantConfig) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._names = self._find_parts(stem)
        self.parts = tuple(self._names.values())
        self.bits, n, k = self._size()
        groups = self._count_groups(n)
        self.group_size = self._group_size(k, groups)
        self.group_of = self._group_of(k, groups)
        self._check_zeros(n, groups)
        nbytes = sum(checkpoint.tensors[part].nbytes for part in self.parts)
        dtype = f"{config.method} int{self.bits}"
        self.info = TensorInfo(f"{stem}.weight", dtype, (n, k), nbytes)

    def integers(self, begin: int, end: int) -> GroupedIntegers:
        """Rows `begin` to `end` as they are stored, nothing lost."""
        return GroupedIntegers(
            self._codes(begin, end),
            self._scales(begin, end),
            self._zeros(begin, end),
            self.group_size,
            self.group_of,
        )

    def floats(self, begin: int, end: int, out: F32) -> None:
        """Write the values of rows to float32[end - begin, k]."""
        self.integers(begin, end).dequantize(out)

    def pack(
        self, rows: Indices, order: I32 | None, arena: _native.Arena | None, threads: int
    ) -> _native.Matrix:
        """Pack rows in the format `kept`, with columns in the order of `columns`."""
        assert self.kept is not None
        first, last = int(rows.min()), int(rows.max()) + 1
        n, k, fmt = len(rows), self.info.shape[1], FORMATS[self.kept]
        codes = np.empty((last - first, k), np.uint8)

        def chunk(begin: int, end: int) -> None:
            found = self._codes(first + begin, first + end)
            if self.columns is None:
                codes[begin:end] = found
            else:
                np.take(found, self.columns, axis=1, out=codes[begin:end], mode="clip")

        in_chunks(last - first, k, threads, chunk)
        group = np.arange(0, k, GROUP * fmt.run) // self.group_size  # of each run
        scales = self._scales(first, last).take(group, axis=1)
        zeros = self._zeros(first, last).take(group, axis=1)
        if last - first != n:
            codes, scales, zeros = codes[rows - first], scales[rows - first], zeros[rows - first]
        mins: npt.NDArray[Any] | None = None
        if fmt.offset == "zero":
            mins = zeros.astype(np.uint8)
        elif fmt.offset == "min":
            mins = (-scales * zeros.astype(np.float32)).astype(np.float16)
        halves = scales.astype(np.float16)
        return _native.Matrix.from_parts(
            fmt.name, n, k, codes, halves, mins, order=order, arena=arena, threads=threads
        )

    @cached_property
    def columns(self) -> I32 | None:
        """The order that puts columns of one group side by side: int32[k].

        None where they lie so already, and where groups differ in size.
        """
        k = self.info.shape[1]
        if self.group_of is None or k % self.group_size:
            return None
        if (np.bincount(self.group_of, minlength=k // self.group_size) != self.group_size).any():
            return None
        return np.argsort(self.group_of, kind="stable").astype(np.int32)

    @cached_property
    def kept(self) -> str | None:
        """The weight format that holds the same values, if one does.

        Needs scales that float16 holds, and groups of whole runs of 32 columns, neighbours at least
        in `columns`. Weights of 4 bits take the longest run that fits, with zero points if they
        have them; those of 8 bits with zero points need mins, ``-scale * zero``, that are float16.
        """
        run = self._longest_run()
        if run == 0:
            return None
        n, middle = self.info.shape[0], 1 << self.bits - 1
        scales, zeros = self._scales(0, n), self._zeros(0, n)
        if not _fits_float16(scales):
            return None
        symmetric = bool((zeros == middle).all())
        if self.bits == 4:
            if zeros.min() < 0 or zeros.max() > 15:
                return None
            return f"q4g{GROUP * run}{'s' if symmetric else 'z'}"
        if symmetric:
            return "q8g32s"
        return "q8g32a" if _fits_float16(scales * zeros.astype(np.float32)) else None

    def _longest_run(self) -> int:
        """How many groups of 32 columns share a scale: 4, 2 or 1; 0 if a single one may not."""
        if self.group_of is not None and self.columns is None:
            return 0
        k = self.info.shape[1]
        for run in (4, 2):
            whole = self.group_size % (GROUP * run) == 0 or self.group_size == k
            if self.bits == 4 and whole and k % (GROUP * run) == 0:
                return run
        return 1 if self.group_size % GROUP == 0 or self.group_size == k else 0

    # -- what the layouts differ in ----------------------------------------------------------------

    @abstractmethod
    def _size(self) -> tuple[int, int, int]:
        """Width of a code, rows and columns."""

    @abstractmethod
    def _check_zeros(self, n: int, groups: int) -> None:
        """Check type and shape of the zero points."""

    @abstractmethod
    def _codes(self, begin: int, end: int) -> U8:
        """Codes of rows: uint8[rows, k]."""

    @abstractmethod
    def _zeros(self, begin: int, end: int) -> I16:
        """Zero points of rows: int16[rows, groups]."""

    # -- what they share ---------------------------------------------------------------------------

    def _find_parts(self, stem: str) -> dict[str, str]:
        tensors = self._checkpoint.tensors
        names = {role: stem + suffix for role, suffix in self.SUFFIXES.items()}
        for role, name in names.items():
            if name not in tensors and role not in self.OPTIONAL:
                raise self._error(f"{stem}.weight", f"part {name!r} is missing")
        if f"{stem}.weight" in tensors:
            raise self._error(f"{stem}.weight", "stored twice, as is and quantized in parts")
        return {role: name for role, name in names.items() if name in tensors}

    def _count_groups(self, n: int) -> int:
        info = self._info("scales", ("f16", "bf16", "f32"))
        if len(info.shape) == 2 and info.shape[self.BY_COLUMN] == n and info.nbytes > 0:
            return info.shape[not self.BY_COLUMN]
        wanted = f"[groups, {n}]" if self.BY_COLUMN else f"[{n}, groups]"
        raise self._error(info.name, f"expected shape {wanted}, found {list(info.shape)}")

    def _group_size(self, k: int, groups: int) -> int:
        known = self._config.group_sizes
        for size in known:
            if size > 0 and groups == -(-k // size):
                return min(size, k)
            if size < 0 and groups == 1:
                return k
        if not known and k % groups == 0:
            return k // groups
        wanted = " or ".join(str(x) if x > 0 else "whole rows" for x in known) or "equal size"
        raise self._error(
            self._names["scales"],
            f"expected one scale per group of {wanted} in {k} columns, found {groups} groups",
        )

    def _group_of(self, k: int, groups: int) -> I32 | None:
        if "groups" not in self._names:
            return None
        name = self._info("groups", ("i32",)).name
        self._expect("groups", (k,))
        found = self._array("groups")
        if self._config.method == "compressed-tensors" and (found == -1).any():
            return None  # what it writes where nothing was reordered
        low, high = int(found.min()), int(found.max())
        if low < 0 or high >= groups:
            raise self._error(name, f"expected groups 0..{groups - 1}, found {low}..{high}")
        in_order = np.array_equal(found, np.arange(k) // self.group_size)
        return None if in_order else found.astype(np.int32)

    def _scales(self, begin: int, end: int) -> F32:
        stored = self._array("scales")
        rows = np.ascontiguousarray(stored[:, begin:end].T if self.BY_COLUMN else stored[begin:end])
        if rows.dtype == np.uint16:  # bfloat16: the upper half of a float32
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return rows.astype(np.float32)

    def _array(self, role: str) -> npt.NDArray[Any]:
        """A tensor as it is stored; bfloat16 as uint16."""
        info = self._checkpoint.tensors[self._names[role]]
        raw = self._checkpoint.held(info.name)
        return raw.view(NUMPY_TYPES[info.dtype]).reshape(info.shape)

    def _info(self, role: str, dtypes: tuple[str, ...]) -> TensorInfo:
        info = self._checkpoint.tensors[self._names[role]]
        if info.dtype not in dtypes:
            raise self._error(info.name, f"expected {' or '.join(dtypes)}, found {info.dtype}")
        return info

    def _expect(self, role: str, shape: tuple[int, ...]) -> None:
        info = self._checkpoint.tensors[self._names[role]]
        if info.shape != shape:
            raise self._error(info.name, f"expected shape {list(shape)}, found {list(info.shape)}")

    def _matrix_of_words(self) -> tuple[int, int]:
        info = self._info("codes", WORDS)
        if len(info.shape) != 2 or min(info.shape) == 0:
            raise self._error(
                info.name, f"expected two dimensions, none empty, found {list(info.shape)}"
            )
        return info.shape[0], info.shape[1]

    def _error(self, name: str, message: str) -> CheckpointError:
        return CheckpointError(message, file=self._checkpoint.path, tensor=name)


def _fits_float16(values: F32) -> bool:
    with np.errstate(over="ignore"):
        return bool((values == values.astype(np.float16)).all() and np.isfinite(values).all())
