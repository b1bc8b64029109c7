"""Checkpoint tensors to packed matrices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slmq import _native, formats
from slmq.checkpoint import Checkpoint, TensorInfo
from slmq.errors import CheckpointError

F32 = npt.NDArray[np.float32]

# What a stored type becomes when nothing else is asked for: the format that keeps every bit (bf16
# has no kernel of its own; float16 holds trained weights' range with more precision).
KEPT = {
    "f32": "f32",
    "f16": "f16",
    "bf16": "f16",
    "q4_0": "q4g32s",
    "q4_1": "q4g32a",
    "q8_0": "q8g32s",
}
FLOATS = ("f32", "f16", "bf16")

LARGEST_SIZE = 1 << 24


@dataclass(frozen=True)
class Linear:
    """A packed weight of n rows (outputs) and k columns (inputs), with its bias if it has one."""

    matrix: _native.Matrix
    bias: F32 | None = None

    @property
    def n(self) -> int:
        """Outputs."""
        return self.matrix.n

    @property
    def k(self) -> int:
        """Inputs."""
        return self.matrix.k


class WeightReader:
    """Reads a checkpoint's tensors by name, checks shapes, packs linear weights.

    Parameters
    ----------
    checkpoint : Checkpoint
    names : callable
        Maps the model file's (Hugging Face) tensor name to the stored name.
    quant : str, optional
        "int4", "int8", "f16", "f32" or a stored format: what float weights become. None keeps
        them as stored. Quantized tensors of a checkpoint are kept bit by bit unless `quant` is
        given.
    threads : int
        Threads that pack.
    huge : bool
        Whether the packed weights ask for 2 MiB pages.
    progress : callable, optional
        Called with the bytes done and their total after every tensor.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        names: Callable[[str], str] = lambda name: name,
        *,
        quant: str | None = None,
        threads: int = 1,
        huge: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self._names = names
        self._quant = None if quant is None else formats.format_named(quant).name
        self._threads = threads
        self._progress = progress
        self._done = 0
        self._total = sum(t.nbytes for t in checkpoint.tensors.values())
        # One piece of memory for all: never more than every two-dimensional tensor packed. What
        # is not used costs nothing.
        self._arena = _native.Arena(self._upper_bound(), huge)
        self.packed_nbytes = 0
        self.packed_formats: Counter[str] = Counter()
        self.parameters = 0

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this tensor."""
        return self._names(name) in self.checkpoint.tensors

    def vector(self, name: str, size: int) -> F32:
        """A float32[size] tensor: norms and biases."""
        info = self._info(name)
        self._check_shape(info, (size,))
        if info.dtype not in FLOATS:
            raise self._error(info, f"expected f32, f16 or bf16, found {info.dtype}")
        raw = self.checkpoint.raw(info.name)
        if info.dtype == "f32":
            values = raw.view("<f4").astype(np.float32)
        elif info.dtype == "f16":
            values = raw.view("<f2").astype(np.float32)
        else:
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        if not np.isfinite(values).all():
            raise self._error(info, "expected finite weights, found NaN or infinity")
        self._finish(info)
        return values

    def linear(
        self,
        name: str,
        n: int,
        k: int,
        *,
        bias: str | None = None,
        order: npt.NDArray[np.int32] | None = None,
    ) -> Linear:
        """A packed weight [n, k]; row r of it is row order[r] of the checkpoint's.

        Raises
        ------
        CheckpointError
            If the tensor is missing, has another shape or type, or holds NaN or infinity.
        """
        info = self._info(name)
        self._check_shape(info, (n, k))
        fmt = self._format(info)
        try:
            matrix = _native.Matrix.pack(
                info.dtype,
                self.checkpoint.raw(info.name),
                n,
                k,
                fmt,
                order,
                self._arena,
                self._threads,
            )
        except ValueError as error:
            raise self._error(info, str(error)) from None
        self.packed_nbytes += matrix.nbytes
        self.packed_formats[fmt] += matrix.nbytes
        self._finish(info)
        bias_values = None
        if bias is not None:
            bias_values = self.vector(bias, n)
            if order is not None:
                bias_values = bias_values[order]
        return Linear(matrix, bias_values)

    def _upper_bound(self) -> int:
        return sum(
            _native.packed_bytes(self._format(info), *info.shape)
            for info in self.checkpoint.tensors.values()
            if len(info.shape) == 2 and min(info.shape) > 0 and info.dtype in KEPT
        )

    def _info(self, name: str) -> TensorInfo:
        stored = self._names(name)
        info = self.checkpoint.tensors.get(stored)
        if info is None:
            raise CheckpointError(
                f"tensor {stored!r} is missing; the file does not hold the model it describes",
                file=self.checkpoint.path,
            )
        return info

    def _format(self, info: TensorInfo) -> str:
        if info.dtype not in KEPT:
            raise self._error(
                info, f"expected a tensor of type {', '.join(KEPT)}; {info.dtype} is not supported"
            )
        return self._quant or KEPT[info.dtype]

    def _check_shape(self, info: TensorInfo, shape: tuple[int, ...]) -> None:
        if tuple(info.shape) != shape:
            raise self._error(info, f"expected shape {list(shape)}, found {list(info.shape)}")

    def _error(self, info: TensorInfo, message: str) -> CheckpointError:
        return CheckpointError(message, file=self.checkpoint.path, tensor=info.name)

    def _finish(self, info: TensorInfo) -> None:
        self.checkpoint.release(info.name)
        self.parameters += int(np.prod(info.shape, dtype=np.int64))
        self._done += info.nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)


def config_value(config: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """A checked value of a configuration.

    Raises
    ------
    CheckpointError
        If it is missing without a default, or of another type.
    """
    value = config.get(key)
    if value is None:
        value = default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1000 else value
    wrong_bool = isinstance(value, bool) and kind is not bool
    if not isinstance(value, kind) or wrong_bool:
        raise CheckpointError(
            f"configuration value {key!r}: expected {kind.__name__}, found {value!r}"
        )
    return value


def config_count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A checked size of a configuration: an integer of 1 to 2^24.

    The upper end is far beyond any model; it keeps a hostile file from asking for tables and loops
    before its tensors are compared with what it says.

    Raises
    ------
    CheckpointError
        If it is missing without a default, of another type, or out of range.
    """
    value: int = config_value(config, key, int, default)
    if not 1 <= value <= LARGEST_SIZE:
        raise CheckpointError(
            f"configuration value {key!r}: expected 1..{LARGEST_SIZE}, found {value}"
        )
    return value
