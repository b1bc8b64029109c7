"""What tests of native code share: matrices, every ISA of this machine, comparison by bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from slmq import _native, formats

F32 = npt.NDArray[np.float32]

FORMATS = ("q4g32s", "q4g32a", "q8g32s", "q8rs", "f16", "f32")
QUANTIZED = FORMATS[:4]
# Not rounded from floats but made of the parts that somebody else quantized.
FROM_PARTS = tuple(name for name in formats.FORMATS if name not in FORMATS)
# Any: tests pass what the types forbid.
ISAS: dict[str, Any] = {
    name: table for name, table in _native.isa_tables().items() if table is not None
}
SCALAR = ISAS["scalar"]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> F32:
    """Standard normal float32 values times `scale`."""
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return values.astype(np.float32)


def pack(w: npt.NDArray[Any], fmt: str, source: str | None = None, **options: Any) -> Any:
    """The native matrix of float weights [n, k], by default of their own type."""
    kind = source or {"float32": "f32", "float16": "f16"}[str(w.dtype)]
    rows = np.ascontiguousarray(w).view(np.uint8).reshape(-1)
    return _native.Matrix.pack(kind, rows, len(w), w.shape[1], fmt, **options)


def random_parts(fmt: str, n: int, k: int, seed: int = 0) -> formats.Parts:
    """Parts of a format with every code, factor and zero point that it knows, scales at random."""
    layout, rng = formats.FORMATS[fmt], np.random.default_rng(seed)
    groups = -(-k // 32)
    scales: npt.NDArray[Any]
    mins: npt.NDArray[Any] | None
    codes = rng.integers(0, 1 << layout.bits, (n, k), np.uint8)

    def halves(count: int) -> npt.NDArray[np.float16]:
        values = (rng.standard_normal((n, count)) * 0.1).astype(np.float16)
        values[rng.random(values.shape) < 0.05] = 2.0**-24  # the smallest subnormal
        return values

    if layout.two_level:
        signed = fmt == "q6k" or layout.lift
        low, high = (-128, 128) if signed else (0, 16 if fmt == "q2k" else 64)
        shape = (n, groups * layout.parts)
        scales = rng.integers(low, high, shape).astype(np.int8)
        mins = rng.integers(low, high, shape).astype(np.int8)
        units = groups // layout.run_groups(k)
        d, dmin = halves(units), halves(units)
        if not layout.offset:
            return formats.Parts(codes, scales, None, d)
        return formats.Parts(codes, scales, mins, d, dmin)
    scales = halves(groups // layout.run_groups(k))
    mins = {
        "": None,
        "min": halves(groups // layout.run_groups(k)),
        "zero": rng.integers(0, 17, scales.shape, np.uint8),
    }[layout.offset]
    return formats.Parts(codes, scales, mins)


def from_parts(parts: formats.Parts, fmt: str, **options: Any) -> Any:
    """The native matrix of these parts."""
    n, k = parts.codes.shape
    p = parts
    return _native.Matrix.from_parts(fmt, n, k, p.codes, p.scales, p.mins, p.d, p.dmin, **options)


def same_bits(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Whether two arrays are equal bit by bit, the sign of zero included; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    bits = np.dtype(f"u{a.dtype.itemsize}")
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    both_nan = np.isnan(a) & np.isnan(b)
    return bool(((a.view(bits) == b.view(bits)) | both_nan).all())


def assert_within(got: npt.NDArray[Any], want: npt.NDArray[Any], bound: npt.NDArray[Any]) -> None:
    """Every value is within its own bound of what is wanted; says which one is worst."""
    assert got.shape == want.shape
    with np.errstate(invalid="ignore"):  # infinities that agree differ by 0
        error = np.where(got == want, 0.0, np.abs(got.astype(np.float64) - want))
    excess = np.where(np.isnan(error), np.inf, error - bound)
    worst = np.unravel_index(excess.argmax(), excess.shape)
    assert (excess <= 0).all(), (
        f"at {tuple(map(int, worst))}: expected {want[worst]!r} within {bound[worst]:.3g}, "
        f"got {got[worst]!r}"
    )


def recorded_rows(isa: str, x: F32, record: Callable[[Any, Any], int], threads: int = 2) -> F32:
    """What the step that `record(recording, slice)` appends makes of the rows of x: float32[m, k].

    A plan runs it: with up to two rows every thread for itself, with more the threads share them.
    """
    m, k = x.shape
    r = _native.Recording(threads, m, 1, m, "f32", isa)
    step = record(r, (r.embed(pack(x, "f32")), 0, k))
    selected = r.select((step, 0, k))
    plan = r.finish(r.linear(selected, [(pack(np.zeros((m, k), np.float32), "f32"), None)]))
    behind = len(plan.describe()) - 2  # steps up to the one that is asked for
    tokens = np.arange(m, dtype=np.int32)
    plan.run(tokens, [(plan.make_cache().sequence(), m)], np.zeros(0, np.int32), behind)
    return plan.read(step)


class Recording:
    """A recording of 64-wide rows that has only begun."""

    def __init__(self) -> None:
        self.matrix = pack(normal(64, 64), "f32")
        self.native: Any = _native.Recording(2, 32, 8, 64)
        self.x: int = self.native.embed(self.matrix)

    def norm(self, weight: Any) -> Any:
        return self.native.rmsnorm((self.x, 0, 64), weight, 1e-5)

    def biased(self, bias: Any) -> Any:
        return self.native.linear(self.x, [(self.matrix, bias)])

    def finished(self) -> Any:
        slices = [(self.x, 0, 64)] * 3
        a = self.native.attention(*slices, -1, 4, 4, 16, 0, 0.25)
        return self.native.finish(self.native.select((a, 0, 64)))
