"""Gradients of weights themselves, and AdamW: against float64 and NumPy, and everywhere one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from kernel_cases import normal as normal_of
from training_cases import everywhere, rows

import slmq._native as _native

F32 = npt.NDArray[np.float32]
SIZES = ((1, 1, 1), (5, 32, 33), (33, 70, 64), (300, 48, 530))  # rows, n, k


def normal(shape: tuple[int, ...], seed: int) -> F32:
    return normal_of(*shape, seed=seed)


def empty(n: int, k: int) -> F32:
    """Where the gradient of a weight goes; something is there already."""
    made: F32 = _native.zero_rows(1, _native.packed_bytes("f32", n, k) // 4)[0]
    return made


def unpacked(slope: F32, n: int, k: int) -> F32:
    return _native.Matrix.from_packed("f32", n, k, slope.view(np.uint8)).dequantize(0, n)


def near(got: F32, wanted: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> bool:
    """Whether sums are right, by the size of what is summed up."""
    return bool((np.abs(got - wanted) <= 1e-6 * sizes + 1e-30).all())


@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_weights_and_biases(size: tuple[int, int, int]) -> None:
    m, n, k = size
    x, dy = normal((m, k), 1), normal((m, n), 2)

    def work(o: _native.Operators) -> tuple[F32, F32]:
        slope, bias = empty(n, k), np.ones(n, np.float32)
        o.weight_back(rows(x), rows(dy), n, k, slope, bias)
        return slope, bias

    slope, bias = everywhere(work)
    wide = dy.astype(np.float64)
    assert near(unpacked(slope, n, k), wide.T @ x, np.abs(wide).T @ np.abs(x) * m)
    assert near(bias, 1 + wide.sum(0), m * (1 + np.abs(wide).sum(0)))
    o, cut = _native.Operators(2), m // 3
    again, again_bias = empty(n, k), np.ones(n, np.float32)
    for part in (slice(0, cut), slice(cut, m)):
        if part.stop > part.start:
            o.weight_back(rows(x[part]), rows(dy[part]), n, k, again, again_bias)
    assert again.tobytes() == slope.tobytes()
    assert again_bias.tobytes() == bias.tobytes()
    without = empty(n, k)
    o.weight_back(rows(x), rows(dy), n, k, without, None)
    assert without.tobytes() == slope.tobytes()
    assert np.count_nonzero(slope) <= n * k  # padding stays zero


def test_gradients_of_rows_that_were_taken() -> None:
    n, k, ids = 40, 70, np.array([39, 3, 3, 0, 39, 39], np.int32)
    dy = normal((len(ids), k), 3)

    def work(o: _native.Operators) -> tuple[F32]:
        slope = empty(n, k)
        o.embed_back(ids, 2.5, rows(dy), n, k, slope)
        return (slope,)

    (slope,) = everywhere(work)
    wanted = np.zeros((n, k), np.float32)
    for row, one in zip(ids, dy, strict=True):
        wanted[row] += np.float32(2.5) * one
    assert (unpacked(slope, n, k) == wanted).all()
    with pytest.raises(ValueError, match="ids: expected tokens below 40"):
        _native.Operators(1).embed_back(np.full(6, 40, np.int32), 1.0, rows(dy), n, k, slope)
    with pytest.raises(ValueError, match="slope: expected"):
        _native.Operators(1).embed_back(ids, 1.0, rows(dy), n, k, slope[:-1])


@pytest.mark.parametrize(
    ("kind", "width", "heads"), [("rms", 70, 1), ("rms", 24, 3), ("rms", 64, 2), ("layer", 70, 1)]
)
def test_gradients_of_norms(kind: str, width: int, heads: int) -> None:
    m, eps, layer = 9, 1e-5, kind == "layer"
    x, dy = normal((m, width * heads), 4), normal((m, width * heads), 5)
    weight = normal((width,), 6)

    def work(o: _native.Operators) -> tuple[F32, F32]:
        norm = _native.Norm(weight, weight if layer else None, heads, eps, layer)
        slope, bias = np.ones(width, np.float32), np.ones(width, np.float32)
        o.norm_weight_back(norm, rows(x), rows(dy), 0.5, slope, bias if layer else None)
        return slope, bias

    slope, bias = everywhere(work)
    values = x.astype(np.float64).reshape(m * heads, width)
    slopes = dy.astype(np.float64).reshape(m * heads, width)
    if layer:
        values = values - values.mean(1, keepdims=True)
    values /= np.sqrt((values**2).mean(1, keepdims=True) + eps)
    assert near(slope, 1 + 0.5 * (values * slopes).sum(0), np.full(width, 10.0 * m))
    assert near(bias, 1 + (slopes.sum(0) if layer else 0 * slopes[0]), np.full(width, 10.0 * m))


def test_norms_take_new_values() -> None:
    weight, bias, x = (normal((size,), i) for i, size in enumerate((40, 40, 40)))
    o = _native.Operators(1)
    norm = _native.Norm(np.ones(40, np.float32), np.zeros(40, np.float32), 1, 1e-5, True)
    norm.set(weight, bias)
    got, wanted = rows(x[None]), rows(x[None])
    o.norm(norm, rows(x[None]), got)
    o.norm(_native.Norm(weight, bias, 1, 1e-5, True), rows(x[None]), wanted)
    assert got.tobytes() == wanted.tobytes()
    with pytest.raises(ValueError, match="bias: expected one where there was one"):
        norm.set(weight, None)
    with pytest.raises(ValueError, match="weight: expected"):
        norm.set(weight[:-1], bias)


@pytest.mark.parametrize("m", [3, 150])
def test_gradients_of_the_head(m: int) -> None:
    """As those of any weight with the gradient of logits; a tied one has room for both."""
    n, k = 70, 40
    x, weight, bias = normal((m, k), 1), normal((n, k), 2), normal((n,), 3)
    targets = np.arange(m, dtype=np.int32) % n
    raw = np.ascontiguousarray(weight).view(np.uint8).reshape(-1)
    head = _native.Head(_native.Matrix.pack("f32", raw, n, k, "f32"), bias, "a16g32", 0.0)

    def work(o: _native.Operators) -> tuple[F32, F32, F32]:
        slope, bias_slope, dx = empty(n, k), np.zeros(n, np.float32), rows(0 * x)
        o.loss(head, rows(x), targets, 0.25, dx, slope, bias_slope)
        return slope, bias_slope, dx

    slope, bias_slope, dx = everywhere(work)
    logits = x.astype(np.float64) @ weight.T + bias
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    shares[np.arange(m), targets] -= 1
    wanted = 0.25 * shares.T @ x
    assert np.abs(unpacked(slope, n, k) - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert np.abs(bias_slope - 0.25 * shares.sum(0)).max() < 1e-5
    alone = rows(0 * x)
    _native.Operators(1).loss(head, rows(x), targets, 0.25, alone)
    assert alone.tobytes() == dx.tobytes()
    head.set_bias(bias + 1)  # which changes no share
    moved = _native.Operators(1).loss(head, rows(x), targets, 0.25, None)
    assert np.abs(moved - _native.Operators(1).loss(head, rows(x), targets, 0.25, alone)).max() == 0


def test_adam_is_pytorchs_operation_by_operation() -> None:
    f = np.float32
    numbers = tuple(float(f(v)) for v in (0.999, 0.1, 0.001, 0.999, 3e-3, 0.7, 1e-8))
    kept, first, second, second_kept, step, root, eps = (f(v) for v in numbers)
    before = [normal((40_001,), seed) for seed in range(4)]
    before[3] = np.abs(before[3])

    def work(o: _native.Operators) -> list[F32]:
        values, slopes, mean, square = (part.copy() for part in before)
        o.adam(values, slopes, mean, square, numbers)
        return [values, mean, square]

    values, slopes, mean, square = before
    mean = mean + (slopes - mean) * first
    square = square * second_kept + slopes * slopes * second
    values = values * kept - mean / (np.sqrt(square) / root + eps) * step
    for got, wanted in zip(everywhere(work), (values, mean, square), strict=True):
        assert got.tobytes() == wanted.tobytes()


def test_bad_shapes_are_refused() -> None:
    o, x, slope = _native.Operators(1), rows(normal((4, 40), 1)), empty(32, 40)
    for n, k, dy in ((0, 40, x), (32, 0, x), (32, 40, x[:3]), (64, 40, x)):
        with pytest.raises(ValueError, match="expected"):
            o.weight_back(x, dy, n, k, slope, None)
    parts = [np.zeros(5, np.float32) for _ in range(4)]
    for i in range(1, 4):
        wrong = [part[:4] if j == i else part for j, part in enumerate(parts)]
        with pytest.raises(ValueError, match="expected"):
            o.adam(*wrong, (1.0, 0.1, 0.1, 0.9, 0.1, 1.0, 1e-8))
