"""What several benchmarks need."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from slmq import QuantizedMatrix, _native

FORMATS = ["int4", "int8", "f16"]


def runnable_threads() -> int:
    """The number of threads to use; skips the benchmark where SLMQ_ISA cannot be had."""
    try:
        _native.active_isa()
    except ValueError as error:
        raise NotImplementedError(str(error)) from error
    threads: int = _native.resolve_threads(None)["threads"]
    return threads


def random_rows(m: int, k: int) -> npt.NDArray[np.float32]:
    """float32[m, k], the same in every process."""
    return np.random.default_rng(7).standard_normal((m, k), dtype=np.float32)


def random_matrix(n: int, k: int, format_name: str) -> QuantizedMatrix:
    """Weights of n outputs and k inputs."""
    return QuantizedMatrix.quantize(random_rows(n, k), format_name)


def large_matrix(k: int, format_name: str, nbytes: int) -> QuantizedMatrix:
    """At least nbytes of weights: one block over and over, since only their number matters."""
    block = random_matrix(2048, k, format_name)
    repeats = -(-nbytes // block.nbytes)
    packed = np.tile(block.packed, repeats)
    return QuantizedMatrix.from_packed(packed, (repeats * 2048, k), format_name)
