"""Adapters as a plan takes them: which of its weights each pair of matrices adds to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

import slmq._native as _native
from slmq.errors import CheckpointError
from slmq.formats import FORMATS
from slmq.machine.exact import exact_log
from slmq.models.adapted import fitted
from slmq.weights.dora import ProductSum, row_factors

if TYPE_CHECKING:
    from slmq.models.loading import LoadedWeights
    from slmq.plan.plan import RecordedPlan
    from slmq.weights.lora import Lora

__all__ = ["Adapter", "fit"]

F32 = npt.NDArray[np.float32]
ROWS = 1024  # of a weight that are widened at a time


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits a plan.

    Attributes
    ----------
    native : _native.Adapter
    digest : str
        Of all that it adds, whatever file that came from: what was computed with one adapter is
        no use with another.
    """

    native: _native.Adapter
    digest: str


def fit(plan: RecordedPlan, loaded: LoadedWeights, lora: Lora) -> Adapter:
    """Bring an adapter into the order of a plan's weights.

    Raises
    ------
    CheckpointError
        If it has pairs that no weight of the model takes, or of another size.
    UnsupportedModelError
        If it does more than change what its linear layers give.
    """
    slots: dict[str, list[int]] = {}
    for number, linear in enumerate(plan.slots):
        slots.setdefault(linear.name, []).append(number)
    parts, digest = [], hashlib.sha256()
    operators = _native.Operators(1)
    for part in fitted(loaded, lora, slots):
        digest.update(f"{part.name}\0{part.a.shape}".encode() + part.a.tobytes() + part.b.tobytes())
        for more in (part.lengths, part.bias):
            digest.update(b"" if more is None else more.tobytes())
        for slot in slots[part.name]:
            linear = plan.slots[slot]
            a = part.a
            if linear.columns is not None:
                a = np.ascontiguousarray(a[:, linear.columns])
            factors = None
            if part.lengths is not None:
                factors = _factors(linear.matrix, a, part.b, part.lengths, operators)
                if not np.isfinite(factors).all():
                    raise CheckpointError(
                        f"{part.name}: a row of zeros has no direction (DoRA)", file=lora.path
                    )
            bias = None
            if part.bias is not None:
                bias = part.bias
                if not part.replaces_bias and linear.bias is not None:
                    bias = linear.bias + bias
            parts.append((slot, *_balanced(a, part.b), factors, bias))
    kept = _type_beside(loaded.formats, plan.activations)
    return Adapter(plan.native.adapter(parts, kept), digest.hexdigest())


def _factors(
    matrix: _native.Matrix, a: F32, b: F32, lengths: F32, operators: _native.Operators
) -> F32:
    """What DoRA multiplies rows with: their lengths over those of the sums."""
    total, found = ProductSum(a, b, operators), []
    for first in range(0, matrix.n, ROWS):
        last = min(first + ROWS, matrix.n)
        rows = total.rows(first, matrix.dequantize(first, last))
        found.append(row_factors(rows, lengths[first:last]))
    return np.concatenate(found).astype(np.float32)


def _type_beside(formats: Iterable[str], activations: str) -> str:
    """What an adapter is kept in: no coarser than weights of these formats and their inputs."""
    found = [FORMATS[name] for name in formats]
    if any(f.quantized and f.bits < 8 for f in found) and activations != "a16g32":
        return "i8"
    return "f16" if any(f.quantized or f.name == "f16" for f in found) else "f32"


def _balanced(a: F32, b: F32) -> tuple[F32, F32]:
    """The same product of matrices that float16 holds equally well, by a power of two."""
    most_a, most_b = float(np.abs(a).max(initial=0)), float(np.abs(b).max(initial=0))
    if most_a == 0 or most_b == 0:
        return np.zeros_like(a), np.zeros_like(b)
    shift = round(exact_log(most_a / most_b) / exact_log(4.0))
    return np.ldexp(a, -shift), np.ldexp(b, shift)
