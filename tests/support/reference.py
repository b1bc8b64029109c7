"""Every kernel in float64 NumPy, and how far a float32 kernel may be from it.

Each function is the plain definition; each ``*_bound`` is an absolute error bound of the same
shape as the result, for a kernel that computes in float32 in *any* order. Dimensions are `m`
tokens, `n` outputs, `k` inputs; weights are ``[n, k]``.

Where the bounds come from
--------------------------
One float32 operation gives the exact result times ``1 + d`` with ``|d| <= U = 2**-24``. A result
that went through r of them carries at most ``gamma(r) = r U / (1 - r U)`` (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1). A sum of t terms, each made by r operations, in
any order and with or without fused multiply-add, is then off by at most
``gamma(t + r) * sum(|term|)``. A function f of such a value adds ``|f'| * error`` and its own
error. The kernels' own polynomials are allowed the ``*_ERROR`` constants below; products of two
small errors are covered by `SLACK`, and results too small for float32's normal range by `TINY`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]

GROUP = 32  # values that share a scale
U = 2.0**-24  # unit roundoff of float32
U16 = 2.0**-11  # unit roundoff of float16
EXP_ERROR = 4 * U  # relative
TANH_ERROR = 4 * U  # relative
RSQRT_ERROR = 4 * U  # relative
SLACK = 1.01
TINY = 2.0**-120


def gamma(roundings: int) -> float:
    """Relative error that `roundings` float32 operations in a row may cause."""
    return roundings * U / (1 - roundings * U)


def f64(x: npt.ArrayLike) -> F64:
    """`x` as float64, exactly."""
    return np.asarray(x, np.float64)


# --- quantization ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantized:
    """Codes and their scales: w = scale * (code - zero) + minimum, group by group of a row."""

    codes: npt.NDArray[np.int16]  # [n, groups, 32]
    scale: npt.NDArray[np.float16]  # [n, groups]
    minimum: npt.NDArray[np.float16] | None  # [n, groups], q4g32a only
    zero: int
    k: int

    def dequantize(self) -> F64:
        """The weights that the codes stand for: float64[n, k]."""
        w = f64(self.scale)[..., None] * (self.codes - self.zero)
        if self.minimum is not None:
            w = w + f64(self.minimum)[..., None]
        return w.reshape(len(w), -1)[:, : self.k]

    def magnitude(self) -> F64:
        """Size of the parts that a kernel sums for each weight, float64[n, k], for `linear_bound`.

        A kernel may add scale * code and minimum * activation sum apart from each other, so
        their cancellation does not shrink the error.
        """
        parts = f64(self.scale)[..., None] * np.abs(self.codes - self.zero)
        if self.minimum is not None:
            parts = np.abs(parts) + np.abs(f64(self.minimum))[..., None]
        return np.abs(parts).reshape(len(parts), -1)[:, : self.k]


def groups_of(w: npt.ArrayLike) -> F64:
    """Rows cut into groups, the last one filled up with zeros: [n, k] -> [n, groups, 32]."""
    rows = f64(w)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % GROUP))).reshape(len(rows), -1, GROUP)


def quantize(w: npt.ArrayLike, fmt: str) -> Quantized:
    """Quantize [n, k] to ``q4g32s``, ``q4g32a`` or ``q8g32s`` by the usual rules of GGUF.

    q4g32s puts the value of largest magnitude at code 0 (scale = value / -8), q4g32a spans
    minimum to maximum with 15 steps, q8g32s puts the largest magnitude at 127.
    """
    k = np.shape(w)[1]
    g = groups_of(w)
    if fmt == "q4g32a":
        low, high = g.min(axis=2), g.max(axis=2)
        scale, minimum = (high - low) / 15, low.astype(np.float16)
        codes = np.clip(np.rint(divide(g - low[..., None], scale)), 0, 15)
        return Quantized(codes.astype(np.int16), scale.astype(np.float16), minimum, 0, k)
    if fmt not in ("q4g32s", "q8g32s"):
        raise ValueError(f"expected format q4g32s, q4g32a or q8g32s, got {fmt!r}")
    peak = np.take_along_axis(g, np.abs(g).argmax(axis=2)[..., None], axis=2)[..., 0]
    if fmt == "q4g32s":
        scale, zero = peak / -8, 8
        codes = np.clip(np.rint(divide(g, scale)) + 8, 0, 15)
    else:
        scale, zero = np.abs(peak) / 127, 0
        codes = np.rint(divide(g, scale))
    return Quantized(codes.astype(np.int16), scale.astype(np.float16), None, zero, k)


def divide(x: F64, scale: F64) -> F64:
    """x[..., 32] / scale[...], and 0 where the scale is 0."""
    return np.divide(x, scale[..., None], out=np.zeros_like(x), where=scale[..., None] != 0)


def quantization_bound(w: npt.ArrayLike, fmt: str) -> F64:
    """Largest error of each weight under the rules of `quantize`: [n, k].

    Half a step for rounding to a code, and a whole step in q4g32s, whose 16 codes reach 8 steps
    to one side but only 7 to the other. Rounding the scale to float16 moves a weight by up to
    its code times ``U16`` steps (or times 2**-25 where the scale is subnormal).
    """
    g = groups_of(w)
    low, high, peak = g.min(axis=2), g.max(axis=2), np.abs(g).max(axis=2)
    if fmt == "q8rs":
        fmt, peak = "q8g32s", np.broadcast_to(peak.max(axis=1)[:, None], peak.shape)
    steps, largest_code, offset = {
        "q4g32s": (1.0, 8, 0.0 * peak),
        "q4g32a": (0.5, 15, np.maximum(U16 * np.abs(low), 2.0**-25)),
        "q8g32s": (0.5, 127, 0.0 * peak),
    }[fmt]
    step = (high - low) / 15 if fmt == "q4g32a" else peak / largest_code
    bound = steps * step + largest_code * np.maximum(U16 * step, 2.0**-25) + offset
    bound = SLACK * bound + np.where(peak == 0, 0, TINY)
    return np.repeat(bound, GROUP, axis=1)[:, : np.shape(w)[1]]


def quantize_activations(x: npt.ArrayLike) -> tuple[npt.NDArray[np.int8], F64, Ints]:
    """``a8g32``: codes int8[m, groups, 32], scale [m, groups] = max|x| / 127, sum of the codes.

    A float32 kernel may round a value that lies between two codes the other way.
    """
    g = groups_of(x)
    scale = np.abs(g).max(axis=2) / 127
    codes = np.rint(divide(g, scale)).astype(np.int8)
    return codes, scale, codes.sum(axis=2, dtype=np.int32)


def activation_bound(x: npt.ArrayLike) -> F64:
    """Largest error of an a8g32 activation, [m, k]: half a step, and float32 in the division."""
    scale = np.abs(groups_of(x)).max(axis=2) / 127
    bound = scale * (0.5 + 127 * gamma(4)) + np.where(scale == 0, 0, TINY)
    return np.repeat(bound, GROUP, axis=1)[:, : np.shape(x)[1]]


# --- linear and embedding ------------------------------------------------------------------


def linear(w: npt.ArrayLike, x: npt.ArrayLike) -> F64:
    """y[m, n] = x[m, k] @ w[n, k].T; give dequantized weights, and activations as the kernel has
    them (dequantized a8g32 codes where it quantizes)."""
    return np.asarray(f64(x) @ f64(w).T)


def linear_bound(
    magnitude: npt.ArrayLike, x: npt.ArrayLike, *, grouped: bool, parts: int = 1
) -> F64:
    """Bound of `linear` for weights of `magnitude` [n, k] (|w|, or `Quantized.magnitude`).

    `grouped`: integer dot products per group are exact (32 * 127 * 128 < 2**24), so only the
    groups are summed in float32, in up to two terms each (scale and minimum) for each of their
    `parts`, with up to three operations to make a term. Otherwise all k products are.
    """
    k = np.shape(x)[1]
    terms = 2 * parts * -(-k // GROUP) + 3 if grouped else k + 1
    return np.asarray(SLACK * gamma(terms) * (np.abs(f64(x)) @ np.abs(f64(magnitude)).T) + TINY)


def embed(w: npt.ArrayLike, tokens: npt.ArrayLike) -> F64:
    """Rows of w[vocab, hidden] by token id: [m, hidden]."""
    return f64(w)[np.asarray(tokens, np.int64)]


# --- norms ---------------------------------------------------------------------------------


def rmsnorm(x: npt.ArrayLike, w: npt.ArrayLike, eps: float) -> F64:
    """x / sqrt(mean(x ** 2) + eps) * w over the last axis."""
    x = f64(x)
    return np.asarray(x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * f64(w))


def rmsnorm_bound(x: npt.ArrayLike, w: npt.ArrayLike, eps: float) -> F64:
    """The squares are positive, so their mean is off by gamma(k + 3) relative, and the inverse
    square root halves that; its own error and two products follow."""
    relative = gamma(np.shape(x)[-1] + 3) / 2 + RSQRT_ERROR + gamma(2)
    return np.asarray(SLACK * relative * np.abs(rmsnorm(x, w, eps)) + TINY)


def layernorm(x: npt.ArrayLike, w: npt.ArrayLike, b: npt.ArrayLike, eps: float) -> F64:
    """(x - mean) / sqrt(variance + eps) * w + b over the last axis, population variance."""
    x = f64(x)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + eps) * f64(w) + f64(b))


def layernorm_bound(x: npt.ArrayLike, w: npt.ArrayLike, b: npt.ArrayLike, eps: float) -> F64:
    """The mean is off by gamma(k + 1) * mean|x| and moves every centred value by that much. The
    same shift s moves the variance by s ** 2 at most (to first order the centred values cancel
    it), which joins the relative error as in `rmsnorm_bound`. The kernel takes the variance of
    the centred values, not mean(x ** 2) - mean ** 2."""
    x, k = f64(x), np.shape(x)[-1]
    shift = (gamma(k + 1) + U) * np.abs(x).mean(axis=-1, keepdims=True)
    shift = shift + U * np.abs(x - x.mean(axis=-1, keepdims=True))
    sigma2 = x.var(axis=-1, keepdims=True) + eps
    widest = shift.max(axis=-1, keepdims=True)
    variance_error = widest**2 + 2 * widest * np.sqrt(sigma2) * U * k
    relative = (gamma(k + 3) + variance_error / sigma2) / 2 + RSQRT_ERROR + gamma(3)
    scaled = np.abs(layernorm(x, w, np.zeros(k), eps))
    error = shift / np.sqrt(sigma2) * np.abs(f64(w)) + relative * scaled
    return np.asarray(SLACK * (error + U * np.abs(layernorm(x, w, b, eps))) + TINY)


# --- rope ----------------------------------------------------------------------------------


def rope(x: npt.ArrayLike, positions: npt.ArrayLike, inv_freq: npt.ArrayLike) -> F64:
    """Rotate x[m, heads, d]: channels i and i + r / 2 by angle position * inv_freq[i].

    r = 2 * len(inv_freq) channels are rotated, the rest of a head stays as it is.
    """
    x, half = f64(x), len(f64(inv_freq))
    angle = np.multiply.outer(f64(positions), f64(inv_freq))[:, None]  # [m, 1, half]
    a, b, rest = np.split(x, [half, 2 * half], axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def rope_bound(x: npt.ArrayLike, rotated: int, angle_error: float = 0.0) -> F64:
    """Cosine and sine are off by U (rounded from float64) plus `angle_error` (absolute, where a
    kernel computes angles in float32); a product and a sum follow. Channels past the `rotated`
    first ones are copied: bound 0."""
    x = np.abs(f64(x))
    a, b, rest = np.split(x, [rotated // 2, rotated], axis=-1)
    error = SLACK * (a + b) * (angle_error + U + gamma(2)) + TINY
    return np.concatenate([error, error, 0 * rest], axis=-1)


# --- activations ---------------------------------------------------------------------------


def silu(x: npt.ArrayLike) -> F64:
    """x / (1 + exp(-x)), without overflow."""
    x = f64(x)
    small = np.exp(-np.abs(x))
    return np.asarray(x * np.where(x >= 0, 1.0, small) / (1 + small))


def swiglu(gate: npt.ArrayLike, up: npt.ArrayLike) -> F64:
    """silu(gate) * up."""
    return silu(gate) * f64(up)


def glu(gate: npt.ArrayLike, up: npt.ArrayLike) -> F64:
    """sigmoid(gate) * up."""
    return f64(up) / (1 + np.exp(-f64(gate)))


def glu_bound(gate: npt.ArrayLike, up: npt.ArrayLike) -> F64:
    """As `swiglu_bound`, which has the same operations."""
    lost = np.where(f64(gate) < -87, 1.0, SLACK * (EXP_ERROR + gamma(4)))
    return np.asarray(lost * np.abs(glu(gate, up)) + TINY)


def geglu(gate: npt.ArrayLike, up: npt.ArrayLike) -> F64:
    """gelu(gate) * up."""
    return gelu(gate) * f64(up)


def geglu_bound(gate: npt.ArrayLike, up: npt.ArrayLike) -> F64:
    """As `swiglu_bound`; five roundings of the exponent, at most 90 where it counts, come first.
    Below -10 the kernel returns gelu(-10)."""
    gate, up = f64(gate), f64(up)
    exponent = np.minimum(1.6 * np.abs(gate) * (1 + 0.044715 * gate**2), 90.0)
    lost = SLACK * (EXP_ERROR + gamma(4) + gamma(5) * exponent)
    return np.asarray(lost * np.abs(geglu(gate, up)) + (1e-36 + TINY) * (1 + np.abs(up)))


def relu2(x: npt.ArrayLike) -> F64:
    """The square of what is above 0; infinite where float32 is."""
    y = np.maximum(f64(x), 0) ** 2
    return np.asarray(np.where(y > np.finfo(np.float32).max, np.inf, y))


def xielu(x: npt.ArrayLike, up: float, down: float, mid: float) -> F64:
    """up x^2 + mid x above 0, down (exp(x) - 1 - x) + mid x below."""
    x = f64(x)
    below = np.expm1(np.minimum(x, 0)) - np.minimum(x, 0)
    return np.asarray(np.where(x > 0, up * x**2, down * below) + mid * x)


def xielu_bound(x: npt.ArrayLike, up: float, down: float, mid: float) -> F64:
    """Terms of two signs are added, so each is counted. Below -1/2, exp(x) - 1 - x is a difference
    of numbers up to 1 + |x|; near 0 its series is cut at a relative 2e-8, after nine operations."""
    x = f64(x)
    low = np.minimum(x, 0)
    far = (EXP_ERROR + U) * np.exp(low) + 2 * U * (1 + np.abs(low))
    near = (gamma(9) + 2e-8) * low**2
    below = np.where(low < -0.5, far, near) + gamma(2) * (np.expm1(low) - low)
    above = gamma(3) * up * np.maximum(x, 0) ** 2
    return np.asarray(SLACK * (above + down * below + gamma(2) * mid * np.abs(x)) + TINY)


def softcap(x: npt.ArrayLike, cap: float) -> F64:
    """cap * tanh(x / cap)."""
    return np.asarray(cap * np.tanh(f64(x) / cap))


def softcap_bound(x: npt.ArrayLike, cap: float) -> F64:
    """The argument u carries two roundings, which tanh turns into gamma(2) |u| (1 - tanh(u) ** 2),
    at most gamma(2) |tanh(u)|; its own error, relative as it is small for small u, and a product
    follow."""
    relative = gamma(2) + TANH_ERROR + gamma(1)
    return np.asarray(SLACK * relative * np.abs(softcap(x, cap)) + TINY)


def geglu_exact(gate: npt.ArrayLike, up: npt.ArrayLike) -> F64:
    """gelu_exact(gate) * up."""
    return np.reshape(gelu_exact(gate), np.shape(gate)) * f64(up)


def geglu_exact_bound(gate: npt.ArrayLike, up: npt.ArrayLike) -> F64:
    """That of the activation, times up, and one product more."""
    one = np.reshape(gelu_exact_bound(gate), np.shape(gate))
    size = np.abs(geglu_exact(gate, up))
    return np.asarray(one * np.abs(f64(up)) + SLACK * gamma(1) * size + TINY)


def swiglu_bound(gate: npt.ArrayLike, up: npt.ArrayLike) -> F64:
    """exp(-gate) is off by EXP_ERROR relative, and so at most is 1 + exp(-gate); a sum, a
    division and a product follow. Below -87 exp(-gate) overflows float32's range and the kernel
    may return 0."""
    lost = np.where(f64(gate) < -87, 1.0, SLACK * (EXP_ERROR + gamma(4)))
    return np.asarray(lost * np.abs(swiglu(gate, up)) + TINY)


def gelu(x: npt.ArrayLike) -> F64:
    """Gelu by its tanh approximation, x (1 + tanh(u)) / 2, without cancellation."""
    x = f64(x)
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    small = np.exp(-2 * np.abs(u))
    return np.asarray(x * np.where(x >= 0, 1.0, small) / (1 + small))


def gelu_bound(x: npt.ArrayLike) -> F64:
    """The argument u is made by six operations on terms of one sign, so tanh(u) is off by
    gamma(6) * |u| * (1 - tanh(u) ** 2) + TANH_ERROR; near -1 it cancels in 1 + tanh, hence
    absolute, times |x| / 2; three operations follow."""
    x = f64(x)
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    inner = gamma(6) * np.abs(u) * (1 - np.tanh(u) ** 2) + TANH_ERROR + U
    return np.asarray(SLACK * (np.abs(x) / 2 * inner + gamma(3) * np.abs(gelu(x))) + TINY)


def gelu_exact(x: npt.ArrayLike) -> F64:
    """x times the normal distribution up to x, without cancellation."""
    x = f64(x)
    return np.asarray(x * np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in x.flat]))


def gelu_exact_bound(x: npt.ArrayLike) -> F64:
    """The kernel takes a Phi(-a), a = |x|, from max(x, 0). It has Phi(-a) from a polynomial that is
    off by 6e-7 at most, a Phi(-a) by 1.4e-7, in 18 operations on terms that come to 1.09, or a / 2,
    if all are of one sign; the last is rounded as the result. Beyond 5.75 Phi(-a) counts as 0."""
    x = f64(x)
    a = np.abs(x)
    inside = SLACK * gamma(18) * np.minimum(a / 2, 1.09) + np.minimum(6e-7 * a, 1.4e-7)
    lost = np.where(a < 5.75, inside, 5.75 * 4.5e-9)
    return np.asarray(lost + SLACK * U * np.abs(gelu_exact(x)) + TINY)


# --- softmax and attention -----------------------------------------------------------------


def softmax(x: npt.ArrayLike, scale: float = 1.0) -> F64:
    """exp(scale * x) / sum over the last axis; -inf gives 0."""
    z = f64(x) * scale
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def softmax_bound(x: npt.ArrayLike, scale: float = 1.0) -> F64:
    """The argument z = scale * (x - max) is made by two operations, so exp(z) is off by
    2 U |z| + EXP_ERROR; the sum by the largest such error of its terms (weighted by themselves)
    and gamma(k); a division follows."""
    z = f64(x) * scale
    z = z - z.max(axis=-1, keepdims=True)
    z = np.where(np.isneginf(z), 0.0, np.abs(z))
    p = softmax(x, scale)
    in_sum = (p * z).sum(axis=-1, keepdims=True)
    relative = 2 * U * (z + in_sum) + 2 * EXP_ERROR + gamma(p.shape[-1] + 2)
    return np.asarray(SLACK * relative * p + TINY)


@dataclass(frozen=True)
class Scores:
    """Attention scores of grouped heads and what bounds them: [heads, m, positions]."""

    value: F64  # after scale and soft cap; -inf where masked
    magnitude: F64  # scale * sum |q| |k|


def attention_scores(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    positions: npt.ArrayLike,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    causal: bool = True,
    bias: npt.ArrayLike | None = None,
) -> Scores:
    """Scores of q[m, heads, d] against k[positions, kv_heads, d], masked; see `attention`."""
    at, keys = np.asarray(positions, np.int64), np.shape(k)[0]
    q, k = f64(q), f64(k)
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    s = scale * np.einsum("mhd,thd->hmt", q, k)
    size = abs(scale) * np.einsum("mhd,thd->hmt", np.abs(q), np.abs(k))
    if softcap is not None:
        s = softcap * np.tanh(s / softcap)
    age = at[:, None] - np.arange(keys)  # [m, positions]
    if bias is not None:
        added = f64(bias)[:, keys - 1 - age]
        s, size = s + added, size + np.abs(added)
    if causal:
        visible = age >= 0 if window is None else (age >= 0) & (age < window)
    else:
        visible = np.abs(age) <= (keys if window is None else window)
    return Scores(np.where(visible, s, -np.inf), np.where(visible, size, 0.0))


def attention(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    positions: npt.ArrayLike,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    causal: bool = True,
    bias: npt.ArrayLike | None = None,
) -> F64:
    """Causal attention of q[m, heads, d] over k, v[positions, kv_heads, d]: [m, heads, d].

    Row i stands at positions[i] and sees the keys at positions <= it, the last `window` of them
    where given. Query head h reads KV head h // (heads / kv_heads). `softcap` c maps a score s
    to c * tanh(s / c). Give k and v as the cache holds them (rounded to float16 there).

    Not `causal`, a row sees all keys, or those at most `window` positions away; `bias`[heads,
    2 positions - 1] is added to scores, by key - row, counted from 1 - positions.
    """
    p = softmax(
        attention_scores(
            q, k, positions, scale=scale, window=window, softcap=softcap, causal=causal, bias=bias
        ).value
    )
    v = f64(v)
    out = np.einsum("hmt,thd->mhd", p, np.repeat(v, p.shape[0] // v.shape[1], axis=1))
    return np.asarray(out)


def attention_bound(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    positions: npt.ArrayLike,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    causal: bool = True,
    bias: npt.ArrayLike | None = None,
    tile: int = 16,
) -> F64:
    """Bound of `attention` for an online softmax over tiles of `tile` positions or more.

    A score is a sum of d products and a scaling: e = gamma(d + 2) * magnitude (tanh has slope at
    most 1, and adds its own error times the cap). A weight p is off by 2 max(e), by softmax's
    own error, and by one rescaling for each tile (an exp, its argument and a product, whose
    arguments add up to at most the range of the scores). The output is sum(p |v|) times all of
    that, and gamma(positions) for the sum itself.
    """
    s = attention_scores(
        q, k, positions, scale=scale, window=window, softcap=softcap, causal=causal, bias=bias
    )
    shape = np.shape(q)
    e = gamma(shape[2] + 2) * s.magnitude
    if softcap is not None:
        e = np.where(s.magnitude > 0, e + softcap * (TANH_ERROR + gamma(3)), 0.0)
    finite = np.where(np.isneginf(s.value), np.nan, s.value)
    span = np.nanmax(finite, axis=-1) - np.nanmin(finite, axis=-1)  # [heads, m]
    seen = s.value.shape[-1]
    rescales = -(-seen // tile) + 1
    relative = 2 * e.max(axis=-1) + 6 * U * span + (2 + rescales) * EXP_ERROR
    relative = relative + gamma(2 * seen + 2 * rescales + 4)
    p, v = softmax(s.value), np.abs(f64(v))
    size = np.einsum("hmt,thd->mhd", p, np.repeat(v, p.shape[0] // v.shape[1], axis=1))
    return np.asarray(SLACK * relative.T[:, :, None] * size + TINY * (1 + v.max()))


# --- the int8 cache --------------------------------------------------------------------------


def quantize_cached(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], Floats]:
    """Keys or values [t, kv_heads, d] as the int8 cache holds them: codes, and a scale
    [t, kv_heads] = max|x| / 127. In float32, operation by operation as the kernel: a code that
    lies between two must round the same way."""
    largest = np.abs(x).max(axis=-1)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest < np.float32(1e-30), np.float32(0), np.float32(127) / largest)
    codes = np.clip(np.rint(x * inverse[..., None]), -127, 127).astype(np.int8)
    return codes, np.where(largest < np.float32(1e-30), np.float32(0), largest / np.float32(127))


def attention_int8_bound(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    positions: npt.ArrayLike,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    causal: bool = True,
    bias: npt.ArrayLike | None = None,
) -> F64:
    """What sixteen-bit queries and probabilities add to `attention_bound`, k and v as cached.

    A query is rounded in steps of max|q| / 32767, so a score moves by up to half a step times
    sum |k| (a soft cap has a slope of 1 at most), and a weight by twice the largest such error.
    Probabilities, times the scales of their values, are rounded in steps of the largest of a part
    / 32767, and then meet codes of 127 at most: with the largest of all, half a step for every
    position that is seen.
    """
    q, k, v = f64(q), f64(k), f64(v)
    group = q.shape[1] // k.shape[1]
    scores = attention_scores(
        q, k, positions, scale=scale, window=window, softcap=softcap, causal=causal, bias=bias
    )
    p = softmax(scores.value)  # [h, m, t]
    step = np.abs(q).max(axis=-1) / 32767  # [m, heads]
    keys = np.repeat(np.abs(k).sum(axis=-1).max(axis=0), group)  # [heads]
    e = 0.5 * abs(scale) * step * keys
    size = np.einsum("hmt,thd->mhd", p, np.repeat(np.abs(v), group, axis=1))
    largest = np.repeat(np.abs(v).max(axis=-1), group, axis=1).T[:, None]  # [heads, 1, t]
    rounded = 0.5 / 32767 * (p > 0).sum(axis=-1) * (p * largest).max(axis=-1)  # [heads, m]
    return np.asarray(SLACK * (np.expm1(2 * e)[..., None] * size + rounded.T[..., None]))
