"""Norm, rope, gated unit and softmax on every ISA: within derived bounds, equal bit by bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference as ref
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import ISAS, SCALAR, assert_within, normal, pack, recorded_rows, same_bits

from slmq import _native
from slmq.machine import exact

F32 = npt.NDArray[np.float32]

SIZES = (1, 2, 15, 16, 17, 31, 32, 33, 50, 100, 576, 1536)
INF = np.float32(np.inf)


def on_every_isa(kernel: str, *arguments: Any) -> F32:
    """The result of a kernel on all ISAs, which must be one."""
    want: F32 = getattr(SCALAR, kernel)(*arguments)
    for name, table in ISAS.items():
        assert same_bits(getattr(table, kernel)(*arguments), want), name
    return want


def on_every_plan(x: F32, record: Callable[[Any, Any], int]) -> F32:
    """The rows of a recorded step on all ISAs, which must be one; alone and among others."""
    want = recorded_rows("scalar", x, record)
    for isa in ISAS:
        assert same_bits(recorded_rows(isa, x, record, threads=3), want), isa
        assert same_bits(recorded_rows(isa, x[:1], record, threads=3), want[:1]), isa
    return want


# --- rmsnorm --------------------------------------------------------------------------------


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("eps", [1e-5, 1e-6, 0.0])
def test_rmsnorm(k: int, eps: float) -> None:
    x, w = normal(5, k, seed=k), normal(k, seed=k + 1)
    x[1] *= 1e4
    x[2] *= 1e-4
    x[3] = 0.5
    x[4, k // 2] = 1e5
    eps32 = float(np.float32(eps))
    got = on_every_isa("rmsnorm", x, w, eps)
    assert_within(got, ref.rmsnorm(x, w, eps32), ref.rmsnorm_bound(x, w, eps32))


def test_rmsnorm_of_small_and_large_values() -> None:
    w = np.ones(100, np.float32)
    assert not on_every_isa("rmsnorm", np.zeros((1, 100), np.float32), w, 1e-5).any()
    tiny = np.full((1, 100), 1e-30, np.float32)  # its squares vanish beside eps
    assert_within(
        on_every_isa("rmsnorm", tiny, w, 1e-5),
        ref.rmsnorm(tiny, w, float(np.float32(1e-5))),
        np.full((1, 100), 1e-33),
    )
    # Squares of 1e20 overflow: the result is 0, as PyTorch's in float32 is.
    assert not on_every_isa("rmsnorm", np.full((1, 100), 1e20, np.float32), w, 1e-5).any()


def test_rows_of_a_norm_do_not_meet() -> None:
    x, w = normal(6, 33), normal(33, seed=1)
    clean = on_every_isa("rmsnorm", x, w, 1e-5)
    x[2, 7] = np.nan
    got = on_every_isa("rmsnorm", x, w, 1e-5)
    assert np.isnan(got[2]).all()
    assert same_bits(np.delete(got, 2, axis=0), np.delete(clean, 2, axis=0))


# --- layernorm ------------------------------------------------------------------------------


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("biased", [True, False])
def test_layernorm(k: int, biased: bool) -> None:
    x, w, b = normal(5, k, seed=k), normal(k, seed=k + 1), normal(k, seed=k + 2)
    x[1] *= 1e4
    x[2] *= 1e-4
    x[3] += 1000  # what mean(x^2) - mean^2 would lose
    x[4, k // 2] = 1e5
    eps = float(np.float32(1e-5))
    got = on_every_isa("layernorm", x, w, b if biased else None, eps)
    b = b if biased else 0 * b
    assert_within(got, ref.layernorm(x, w, b, eps), ref.layernorm_bound(x, w, b, eps))


def test_layernorm_of_equal_values_is_its_bias() -> None:
    b = normal(37)
    got = on_every_isa("layernorm", np.full((1, 37), 3.5, np.float32), b, b, 1e-5)
    assert np.array_equal(got[0], b)
    spoiled = normal(2, 37)
    spoiled[1, 5] = INF
    got = on_every_isa("layernorm", spoiled, b, None, 1e-5)
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[0]).all()


# --- rope -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rotary", [2, 8, 20, 30, 32, 34, 64, 80, 128])
@pytest.mark.parametrize("rest", [0, 1, 16])
def test_rope(rotary: int, rest: int) -> None:
    x = normal(7, rotary + rest, seed=rotary)
    inv_freq = 10000.0 ** (-np.arange(rotary // 2) / (rotary // 2))
    position = 977
    cosines, sines = (f(position * inv_freq).astype(np.float32) for f in (np.cos, np.sin))
    got = on_every_isa("rope", x, cosines, sines)
    want = ref.rope(x[:, None], np.full(7, position), inv_freq)[:, 0]
    assert_within(got, want, ref.rope_bound(x, rotary))
    assert same_bits(got[:, rotary:], x[:, rotary:])


def test_rope_by_no_angle_changes_nothing() -> None:
    x = normal(3, 20)
    one, zero = np.ones(10, np.float32), np.zeros(10, np.float32)
    assert np.array_equal(on_every_isa("rope", x, one, zero), x)


@pytest.mark.parametrize("k", [16, 33, 100])
@pytest.mark.parametrize("m", [2, 3, 40])
def test_norms_in_a_plan_are_the_kernels(m: int, k: int) -> None:
    x, w, b = normal(m, k, seed=k), normal(k, seed=k + 1), normal(k, seed=k + 2)
    got = on_every_plan(x, lambda r, rows: r.rmsnorm(rows, w, 1e-5))
    assert same_bits(got, SCALAR.rmsnorm(x, w, 1e-5))
    got = on_every_plan(x, lambda r, rows: r.layernorm(rows, w, b, k, 1e-5))
    assert same_bits(got, SCALAR.layernorm(x, w, b, 1e-5))


# --- gated units ----------------------------------------------------------------------------

GATES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "silu": (ref.swiglu, ref.swiglu_bound),
    "gelu_tanh": (ref.geglu, ref.geglu_bound),
    "gelu": (ref.geglu_exact, ref.geglu_exact_bound),
    "sigmoid": (ref.glu, ref.glu_bound),
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("n", SIZES)
def test_gated(name: str, n: int) -> None:
    gate, up = normal(n, seed=n, scale=4), normal(n, seed=n + 1)
    want, bound = GATES[name]
    assert_within(on_every_isa("gated", name, gate, up), want(gate, up), bound(gate, up))


@pytest.mark.parametrize("name", GATES)
def test_gated_over_the_whole_range(name: str) -> None:
    gate = np.concatenate([np.linspace(-120, 120, 4001), 10.0 ** np.arange(-45, 39)])
    gate = np.concatenate([gate, -gate, [0.0, -0.0]]).astype(np.float32)
    up = np.resize(np.array([1, -0.5, 1e-3], np.float32), gate.size)
    want, bound = GATES[name]
    got = on_every_isa("gated", name, gate, up)
    with np.errstate(over="ignore"):
        assert_within(got, want(gate, up), bound(gate, up))
    assert np.isfinite(got).all()


@pytest.mark.parametrize("name", GATES)
def test_gated_of_infinities_and_nan(name: str) -> None:
    gate = np.array([INF, np.nan, 1, 1, -INF], np.float32)
    up = np.array([1, 1, np.nan, INF, 1], np.float32)
    got = on_every_isa("gated", name, gate, up)
    assert got[0] == (1 if name == "sigmoid" else INF)
    assert np.isnan(got[1:3]).all()
    assert got[3] == INF
    assert abs(got[4]) < 1e-30


def test_a_gate_is_the_activation_times_the_other_half() -> None:
    """The same bits as the activation by itself: both are made of one function."""
    gate, up = normal(576, seed=1, scale=4), normal(576, seed=2)
    for name in set(GATES) & set(UNARIES):
        alone = on_every_isa("unary", name, gate)
        assert same_bits(on_every_isa("gated", name, gate, up), alone * up)


def test_an_unknown_gate() -> None:
    with pytest.raises(ValueError, match=r"expected 'silu'.* got 'swiglu'"):
        SCALAR.gated("swiglu", normal(16), normal(16))


# --- activations without a gate -------------------------------------------------------------

UNARIES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "gelu": (ref.gelu_exact, ref.gelu_exact_bound),
    "gelu_tanh": (ref.gelu, lambda x: ref.geglu_bound(x, np.ones_like(x))),
    "relu": (lambda x: np.maximum(x, 0), np.zeros_like),
    "relu2": (ref.relu2, lambda x: ref.U * np.minimum(ref.relu2(x), 4e38) + ref.TINY),
    "silu": (ref.silu, lambda x: ref.swiglu_bound(x, np.ones_like(x))),
    "tanh": (lambda x: np.tanh(ref.f64(x)), lambda x: ref.softcap_bound(x, 1.0)),
}


@pytest.mark.parametrize("name", UNARIES)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 33, 100])
def test_unary(name: str, n: int) -> None:
    x = normal(n, seed=n, scale=3)
    want, bound = UNARIES[name]
    assert_within(on_every_isa("unary", name, x), want(x), bound(x))


@pytest.mark.parametrize("name", UNARIES)
def test_unary_over_the_whole_range(name: str) -> None:
    x = np.concatenate([np.linspace(-30, 30, 8001), 10.0 ** np.arange(-40, 39)])
    x = np.concatenate([x, -x, [0.0, -0.0]]).astype(np.float32)
    want, bound = UNARIES[name]
    got = on_every_isa("unary", name, x)
    with np.errstate(over="ignore"):
        assert_within(got, want(x), bound(x))
    assert not got[x == 0].any()
    ends = on_every_isa("unary", name, np.array([INF, -INF, np.nan], np.float32))
    assert ends[0] == (1 if name == "tanh" else INF)
    assert ends[1] == -1 if name == "tanh" else abs(ends[1]) < 1e-30
    assert np.isnan(ends[2])


@pytest.mark.parametrize("name", UNARIES)
@pytest.mark.parametrize("fmt", ["f32", "q8g32s", "q8rs"])
def test_an_activation_behind_a_product(fmt: str, name: str) -> None:
    """Whether the product's kernel computes it or the step: the bits of the kernel by itself."""
    x, bias = normal(21, 70, seed=1), normal(70, seed=3)
    matrix = pack(normal(70, 70, seed=2), fmt)

    def product(r: Any, rows: Any, activation: str | None = None) -> int:
        inputs = rows[0] if fmt == "f32" else r.quantize(rows, "a8g32", fmt == "q8rs")
        step: int = r.linear(inputs, [(matrix, bias)], None, activation)
        return step

    got = on_every_plan(x, lambda r, rows: product(r, rows, name))
    assert same_bits(got.ravel(), SCALAR.unary(name, on_every_plan(x, product).ravel()))


# --- xielu ----------------------------------------------------------------------------------

XIELU = (0.75, 1.25, 0.5)


def test_xielu() -> None:
    x = np.concatenate([np.linspace(-30, 30, 3021), 10.0 ** np.arange(-40, 19)])
    x = np.concatenate([x, -x, [0.0, -0.0, -0.5, np.nextafter(-0.5, 0)]]).astype(np.float32)
    x = np.resize(x, (4, 1568))
    got = on_every_plan(x, lambda r, rows: r.xielu(rows, *XIELU))
    assert_within(got, ref.xielu(x, *XIELU), ref.xielu_bound(x, *XIELU))
    assert not got[x == 0].any()


def test_xielu_of_infinity() -> None:
    x = np.array([[1e30, 1.0, 0.0, -1.0]], np.float32)  # the square of the first is infinite

    def record(r: Any, rows: Any) -> int:
        twice: int = r.xielu((r.xielu(rows, *XIELU), 0, 4), *XIELU)
        return twice

    got = on_every_plan(x, record)
    assert got[0, 0] == INF
    assert np.isfinite(got[0, 1:]).all()


# --- steps that depend on a position -----------------------------------------------------------


@pytest.mark.parametrize(("head_dim", "rotary"), [(20, 20), (32, 8), (10, 6)])
def test_heads_are_turned_by_the_angles_of_their_row(head_dim: int, rotary: int) -> None:
    frequencies = (0.7 ** np.arange(rotary // 2)).astype(np.float32)
    x = normal(5, 2 * head_dim)

    def record(r: Any, rows: Any) -> int:
        turned: int = r.rotate(rows, r.rope(frequencies), rotary, head_dim)
        return turned

    got = on_every_plan(x, record).reshape(5, 2, head_dim)
    for row in range(5):
        angles = [float(np.float32(row) * f) for f in frequencies]
        sines, cosines = zip(*(exact.exact_sincos(a) for a in angles), strict=True)
        turns = np.array(cosines, np.float32), np.array(sines, np.float32)
        assert same_bits(got[row], on_every_isa("rope", x[row].reshape(2, head_dim), *turns))


def test_rows_grow_with_the_logarithm_of_their_position() -> None:
    x = normal(9, 24)
    got = on_every_plan(x, lambda r, rows: r.scale_by_position(rows, 0.5, 3))
    factors = [np.float32(1 + 0.5 * math.log(1 + row // 3)) for row in range(9)]
    assert same_bits(got, x * np.array(factors, np.float32)[:, None])


# --- softcap --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("cap", [30.0, 1.0, 0.01])
def test_softcap(n: int, cap: float) -> None:
    x = normal(n, seed=n, scale=20)
    cap = float(np.float32(cap))
    assert_within(on_every_isa("softcap", x, cap), ref.softcap(x, cap), ref.softcap_bound(x, cap))


def test_softcap_over_the_whole_range() -> None:
    x = np.concatenate([np.linspace(-12, 12, 8001), 10.0 ** np.arange(-36, 39), [0.625]])
    x = np.concatenate([x, -x, np.nextafter(np.float32(0.625), [0, 1])]).astype(np.float32)
    got = on_every_isa("softcap", x, 1.0)
    assert_within(got, ref.softcap(x, 1.0), ref.softcap_bound(x, 1.0))
    assert np.array_equal(on_every_isa("softcap", -x, 1.0), -got)
    assert (got[x > 9.1] == 1).all()
    order = np.argsort(x)
    assert (np.diff(got[order]) >= -1e-7).all()


def test_softcap_of_infinities_and_nan() -> None:
    got = on_every_isa("softcap", np.array([INF, -INF, np.nan, 0], np.float32), 30.0)
    assert np.array_equal(got[[0, 1, 3]], np.array([30, -30, 0], np.float32))
    assert np.isnan(got[2])


# --- softmax --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [*SIZES, 63, 64, 65, 4099])
@pytest.mark.parametrize("scale", [1.0, 0.125, -3.0])
def test_softmax(n: int, scale: float) -> None:
    x = normal(n, seed=n, scale=5)
    got = on_every_isa("softmax", x, scale)
    assert_within(got, ref.softmax(x, scale), ref.softmax_bound(x, scale))
    assert abs(float(got.astype(np.float64).sum()) - 1) < 1e-5
    assert same_bits(_native.softmax(x, scale), got)


def test_softmax_of_extremes() -> None:
    flat = on_every_isa("softmax", np.full(33, 1e30, np.float32))
    assert_within(flat, np.full(33, 1 / 33), np.full(33, 1e-8))
    x = normal(50)
    x[[3, 49]] = -INF
    masked = on_every_isa("softmax", x)
    assert_within(masked, ref.softmax(x), ref.softmax_bound(x))
    assert not masked[[3, 49]].any()
    x[17] = 1e6
    assert np.array_equal(on_every_isa("softmax", x), (np.arange(50) == 17).astype(np.float32))
    assert on_every_isa("softmax", np.array([-5.0], np.float32)) == 1


def test_softmax_of_infinities_is_the_same_everywhere() -> None:
    for first in (INF, np.nan):
        x = normal(40)
        x[20] = first
        on_every_isa("softmax", x)
    on_every_isa("softmax", np.full(20, -INF, np.float32))


@given(st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=70))
@settings(max_examples=60, deadline=None)
def test_softmax_of_anything(values: list[float]) -> None:
    x = np.array(values, np.float32)
    assert_within(on_every_isa("softmax", x), ref.softmax(x), ref.softmax_bound(x))


# --- float64 functions that are the same everywhere -----------------------------------------


def close(got: float, want: float, ulps: int = 4) -> bool:
    return abs(got - want) <= ulps * math.ulp(want)


@given(st.floats(-700, 700))
@settings(max_examples=200)
def test_exact_exp(x: float) -> None:
    assert close(exact.exact_exp(x), math.exp(x), 4 + int(abs(x)))


@given(st.floats(1e-300, 1e300))
@settings(max_examples=200)
def test_exact_log(x: float) -> None:
    assert abs(exact.exact_log(x) - math.log(x)) <= 4 * math.ulp(1 + abs(math.log(x)))


@given(st.floats(1.5, 1e7), st.floats(-2, 2))
@settings(max_examples=200)
def test_exact_pow(base: float, power: float) -> None:
    want = base**power
    assert abs(exact.exact_pow(base, power) - want) <= 1e-13 * want


@given(st.floats(-1e6, 1e6))
@settings(max_examples=200)
def test_exact_sincos(x: float) -> None:
    sine, cosine = exact.exact_sincos(x)
    assert abs(sine - math.sin(x)) < 1e-15
    assert abs(cosine - math.cos(x)) < 1e-15


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_exact_functions_refuse_what_has_no_value(value: float) -> None:
    with pytest.raises(ValueError, match="expected a finite x > 0"):
        exact.exact_log(value)
    with pytest.raises(ValueError, match="expected a finite base > 0"):
        exact.exact_pow(value, 0.5)
    if not math.isfinite(value):
        with pytest.raises(ValueError, match="expected |x| < 1e9".replace("|", r"\|")):
            exact.exact_sincos(value)
