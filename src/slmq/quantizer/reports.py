"""What `quantize` tells about a folder that it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["QuantizedFolder", "TensorReport"]


@dataclass(frozen=True)
class TensorReport:
    """How one matrix was rounded.

    Attributes
    ----------
    name, format, method : str
    n, k : int
    weight_error : float
        Squared error of the weights over their squares.
    output_errors : mapping of str to float
        Squared error of the outputs over their squares, on calibration text that was held back, by
        method; empty without calibration and for embeddings.
    damage : mapping of str to float
        By format: what rounding this matrix alone does to the values that its layer passes on, as
        relative squared error; empty where formats were not chosen by it.
    """

    name: str
    format: str
    method: str
    n: int
    k: int
    weight_error: float
    output_errors: Mapping[str, float] = field(default_factory=dict)
    damage: Mapping[str, float] = field(default_factory=dict)

    @property
    def output_error(self) -> float | None:
        """The output error of the method that was taken, if it was measured."""
        return self.output_errors.get(self.method)


@dataclass(frozen=True)
class QuantizedFolder:
    """What `quantize` wrote; usable wherever a path is.

    Attributes
    ----------
    path : Path
    bits_per_weight : float
        Of all matrices, scales included, padding not.
    tensors : tuple of TensorReport
    front : tuple of (float, float)
        Bits per weight and summed damage of mixes that were considered, fewest bits first.
    """

    path: Path
    bits_per_weight: float
    tensors: tuple[TensorReport, ...] = field(repr=False)  # pages long
    front: tuple[tuple[float, float], ...] = field(default=(), repr=False)

    @property
    def shares(self) -> dict[str, float]:
        """By format: its share of the weights of all matrices, the largest first."""
        counts: dict[str, int] = {}
        for tensor in self.tensors:
            counts[tensor.format] = counts.get(tensor.format, 0) + tensor.n * tensor.k
        total = sum(counts.values())
        ordered = sorted(counts.items(), key=lambda item: -item[1])
        return {fmt: count / total for fmt, count in ordered}

    def __fspath__(self) -> str:
        """Return the path."""
        return str(self.path)
