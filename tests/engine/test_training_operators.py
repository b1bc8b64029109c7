"""Training's operators: results and gradients against float64, and one answer everywhere.

Gradients are held against central differences of the float64 functions. What each CPU and number
of threads gives is compared by bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from kernel_cases import FORMATS, FROM_PARTS, normal, pack, random_parts
from training_cases import everywhere, rows

import slmq._native as _native

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
GATES = ("silu", "gelu_tanh", "gelu", "sigmoid", "relu2")
UNARIES = ("gelu", "gelu_tanh", "relu", "silu", "tanh", "relu2")


def like(values: npt.NDArray[Any]) -> F32:
    return rows(np.zeros(values.shape))


def differences(f: Callable[[F64], F64], x: npt.NDArray[Any], dy: npt.NDArray[Any]) -> F64:
    """The gradient of sum(dy * f(x)) by central differences in float64."""
    x = x.astype(np.float64)
    found = np.zeros_like(x)
    step = 1e-5
    for place in np.ndindex(x.shape):
        kept = x[place]
        x[place] = kept + step
        above = float((dy * f(x)).sum())
        x[place] = kept - step
        found[place] = (above - float((dy * f(x)).sum())) / (2 * step)
        x[place] = kept
    return found


def near(got: npt.NDArray[Any], wanted: npt.NDArray[Any], bound: float = 2e-5) -> None:
    most = max(1e-3, float(np.abs(wanted).max()))
    assert np.abs(got - wanted).max() <= bound * most


# ------------------------------------------------------------------ products


@pytest.mark.parametrize("name", [*FORMATS, *FROM_PARTS])
def test_gradients_flow_back_through_packed_weights(name: str) -> None:
    """Beside weights of integers they are rounded to sixteen bits, as inputs are."""
    n, k = 611, 256  # more than a block of rows is widened at once, and no whole one
    if name in FORMATS:
        matrix = pack(normal(n, k, seed=1, scale=0.2), name)
    else:
        p = random_parts(name, n, k)
        matrix = _native.Matrix.from_parts(name, n, k, p.codes, p.scales, p.mins, p.d, p.dmin)
    w = matrix.dequantize(0, n)
    dy = normal(29, n, seed=2)
    before = normal(29, k, seed=3)

    def back(o: _native.Operators) -> Iterable[F32]:
        alone, added = like(before), rows(before)
        o.linear_back([(matrix, None, None, rows(dy))], False, alone)
        o.linear_back([(matrix, None, None, rows(dy))], True, added)
        return alone, added

    alone, added = everywhere(back)
    wanted = dy.astype(np.float64) @ w
    bound = 2e-5 if name in ("f16", "f32") else 1e-4 if name in FORMATS else 2e-4
    near(alone[:, :k], wanted, bound)
    near(added[:, :k], wanted + before, bound)


@pytest.mark.parametrize("name", ["q4g32s", "q4g32a", "q8g32s", "q8rs"])
def test_rows_of_other_sizes_take_no_precision(name: str) -> None:
    """Rows of zeros meet the largest gradients, and small ones some that are as much larger."""
    n, k = 290, 96
    w, dy = normal(n, k, seed=1, scale=0.2), normal(19, n, seed=2)
    w[::5], dy[:, ::5] = 0.0, 1e6
    w[1::5] *= 1e-3
    dy[:, 1::5] *= 1e3
    matrix = pack(w, name)

    def back(o: _native.Operators) -> Iterable[F32]:
        dx = like(np.zeros((19, k)))
        o.linear_back([(matrix, None, None, rows(dy))], False, dx)
        return (dx,)

    (dx,) = everywhere(back)
    near(dx[:, :k], dy.astype(np.float64) @ matrix.dequantize(0, n), 1e-4)


@pytest.mark.parametrize("name", ["q4g32a", "q6k", "q8rs"])
def test_gradients_that_are_not_finite_stay_in_their_rows(name: str) -> None:
    n, k = 161, 256
    if name in FORMATS:
        matrix = pack(normal(n, k, seed=1, scale=0.2), name)
    else:
        p = random_parts(name, n, k)
        matrix = _native.Matrix.from_parts(name, n, k, p.codes, p.scales, p.mins, p.d, p.dmin)
    dy = normal(19, n, seed=2)
    spoiled = dy.copy()
    spoiled[3, 40], spoiled[7, 160] = np.nan, -np.inf
    dy[[3, 7]] = 0.0

    def back(o: _native.Operators) -> Iterable[F32]:
        for gradients in (dy, spoiled):
            dx = like(np.zeros((19, k)))
            o.linear_back([(matrix, None, None, rows(gradients))], False, dx)
            yield dx

    wanted, got = everywhere(back)
    others = np.delete(np.arange(19), [3, 7])
    assert (got[others] == wanted[others]).all()
    assert np.isnan(got[[3, 7], :k]).all()
    assert not wanted[[3, 7]].any()


@pytest.mark.parametrize("m", [3, 37])
@pytest.mark.parametrize("name", [*FORMATS, *FROM_PARTS])
def test_products_with_packed_weights(name: str, m: int) -> None:
    """Inputs of integers are rounded to sixteen bits, in panels of the format's kind."""
    n, k = 70, 256
    if name in FORMATS:
        matrix = pack(normal(n, k, seed=1, scale=0.2), name)
    else:
        p = random_parts(name, n, k)
        matrix = _native.Matrix.from_parts(name, n, k, p.codes, p.scales, p.mins, p.d, p.dmin)
    other = pack(normal(33, k, seed=4, scale=0.2), "q8rs")
    x = normal(m, k, seed=2)

    def both(o: _native.Operators) -> Iterable[F32]:
        y, z = like(np.zeros((m, n))), like(np.zeros((m, 33)))
        o.linear(rows(x), [(matrix, None, None, y), (other, None, None, z)], "a16g32")
        return y, z

    for got, used in zip(everywhere(both), (matrix, other), strict=True):
        wanted = x.astype(np.float64) @ used.dequantize(0, used.n).astype(np.float64).T
        near(got[:, : used.n], wanted, 1e-3 if used is other or name == "q8rs" else 1e-4)


def test_several_weights_of_one_input() -> None:
    x, add = normal(37, 100, seed=1), normal(37, 70, seed=2)
    weights = [normal(n, 100, seed=n, scale=0.3) for n in (70, 33, 64)]
    matrices = [pack(w, "f32") for w in weights]
    bias = np.pad(normal(1, 70, seed=9)[0], (0, 26))

    def both(o: _native.Operators) -> Iterable[F32]:
        ys = [like(np.zeros((37, len(w)))) for w in weights]
        first = (matrices[0], bias, rows(add), ys[0])
        rest = [(m, None, None, y) for m, y in zip(matrices[1:], ys[1:], strict=True)]
        o.linear(rows(x), [first, *rest], "a16g32")
        dx = like(x)
        o.linear_back([(m, None, None, y) for m, y in zip(matrices, ys, strict=True)], False, dx)
        return (*ys, dx)

    *ys, dx = everywhere(both)
    wanted = [x.astype(np.float64) @ w.T for w in weights]
    wanted[0] += bias[:70] + add
    for y, one in zip(ys, wanted, strict=True):
        near(y[:, : one.shape[1]], one)
        assert not y[:, one.shape[1] :].any()
    slopes = sum(y[:, : len(w)].astype(np.float64) @ w for y, w in zip(ys, weights, strict=True))
    near(dx[:, :100], np.asarray(slopes))


@pytest.mark.parametrize(("m", "n", "k"), [(1, 16, 1), (13, 48, 7), (97, 272, 130)])
@pytest.mark.parametrize("transposed", [False, True])
def test_products(m: int, n: int, k: int, transposed: bool) -> None:
    x = normal(k, m, seed=1) if transposed else normal(m, k, seed=1)
    w, before = normal(k, n, seed=2), normal(m, n, seed=3)

    def work(o: _native.Operators) -> Iterable[F32]:
        alone, added = like(before), rows(before)
        o.multiply(rows(x), rows(w), alone, n, k, transposed=transposed)
        o.multiply(rows(x), rows(w), added, n, k, transposed=transposed, add=True)
        halves = rows(before)  # the same sum in two parts has the same bits
        for part in (slice(0, k // 2), slice(k // 2, k)):
            if part.start == part.stop:
                continue
            some = x[part] if transposed else x[:, part]
            o.multiply(
                rows(some), rows(w[part]), halves, n, part.stop - part.start,
                transposed=transposed, add=True,
            )  # fmt: skip
        return alone, added, halves

    alone, added, halves = everywhere(work)
    wanted = (x.T if transposed else x).astype(np.float64) @ w
    near(alone[:, :n], wanted)
    near(added[:, :n], wanted + before)
    assert added.tobytes() == halves.tobytes()


@pytest.mark.parametrize(("m", "k", "rank"), [(1, 1, 1), (13, 48, 3), (97, 130, 8), (61, 70, 17)])
@pytest.mark.parametrize("widths", [(48,), (272, 33, 150)])
def test_pairs_of_low_rank(m: int, k: int, rank: int, widths: tuple[int, ...]) -> None:
    x, scale, count = normal(m, k, seed=1), 1.5, len(widths)
    a = [normal(rank, k, seed=2 + i, scale=0.3) for i in range(count)]
    b = [normal(n, rank, seed=5 + i, scale=0.3) for i, n in enumerate(widths)]
    y = [normal(m, n, seed=8 + i) for i, n in enumerate(widths)]
    before = normal(m, k, seed=11)
    joined = rows(np.concatenate(a).T)
    floats = [normal(n, k, seed=20 + i, scale=0.3) for i, n in enumerate(widths)]
    weights = [pack(w, "f32") for w in floats]

    def work(o: _native.Operators) -> Iterable[F32]:
        t, dx, outs = like(np.zeros((m, count * rank))), rows(before), [like(one) for one in y]
        bare = like(y[0])
        uses = [(w, None, None, out) for w, out in zip(weights, outs, strict=True)]
        ups: list[F32 | None] = [rows(w.T) for w in b]
        uses.insert(1, (weights[0], None, None, bare))  # has no pair
        ups.insert(1, None)
        o.linear(rows(x), uses, "a16g32", (joined, t, rank, scale, ups))
        slopes = [(like(one), rows(np.ones((rank, len(w))))) for one, w in zip(a, b, strict=True)]
        back = [
            (rows(dy), len(w), rows(one), rows(w), *slope)
            for dy, one, w, slope in zip(y, a, b, slopes, strict=True)
        ]
        o.low_rank_back(rows(x), t, k, rank, scale, back, dx)
        return (t, dx, bare, *outs, *(slope for both in slopes for slope in both))

    t, dx, bare, *rest = everywhere(work)
    outs, slopes = rest[:count], rest[count:]
    x64, ds = (
        x.astype(np.float64),
        [scale * dy.astype(np.float64) @ w for dy, w in zip(y, b, strict=True)],
    )
    near(bare[:, : widths[0]], x64 @ floats[0].T)
    near(dx[:, :k], before + sum(d @ one for d, one in zip(ds, a, strict=True)))
    for i, (one, w, dy) in enumerate(zip(a, b, y, strict=True)):
        products = scale * x64 @ one.T
        near(t[:, i * rank : (i + 1) * rank], products)
        near(outs[i][:, : len(w)], x64 @ floats[i].T + products @ w.T)
        near(slopes[2 * i][:, :k], ds[i].T @ x64)
        near(slopes[2 * i + 1][:, : len(w)], 1 + products.T @ dy)
    assert not any(one[:, n:].any() for one, n in zip(outs, widths, strict=True))


def test_gradients_of_pairs_go_on_from_piece_to_piece() -> None:
    """Sums over rows in two pieces have the bits of those over all rows."""
    m, n, k, rank = 61, 70, 100, 8
    x, dy = normal(m, k, seed=1), normal(m, n, seed=2)
    a, b, t = normal(rank, k, seed=3), normal(n, rank, seed=4), normal(m, rank, seed=5)

    def work(o: _native.Operators, cuts: tuple[int, ...]) -> Iterable[F32]:
        slopes = like(a), like(b.T)
        for begin, end in itertools.pairwise((0, *cuts, m)):
            part = slice(begin, end)
            use = (rows(dy[part]), n, rows(a), rows(b), *slopes)
            dx = like(x[part])
            o.low_rank_back(rows(x[part]), rows(t[part]), k, rank, 2.0, [use], dx)
        return slopes

    whole, parts = (everywhere(lambda o, c=cuts: work(o, c)) for cuts in ((), (7, 40)))
    assert all(one.tobytes() == other.tobytes() for one, other in zip(whole, parts, strict=True))


# ------------------------------------------------------------------ rows


def rms(x: F64, w: npt.NDArray[Any], eps: float) -> F64:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w


def layer(x: F64, w: npt.NDArray[Any], b: npt.NDArray[Any], eps: float) -> F64:
    d = x - x.mean(-1, keepdims=True)
    return d / np.sqrt((d**2).mean(-1, keepdims=True) + eps) * w + b


@pytest.mark.parametrize(("width", "heads"), [(32, 1), (45, 1), (100, 1), (20, 3), (64, 2)])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms(kind: str, width: int, heads: int) -> None:
    x, dy = normal(3, width * heads, seed=1), normal(3, width * heads, seed=2)
    w, b, eps = 1 + normal(width, seed=3), normal(width, seed=4), 1e-5
    before = normal(3, width * heads, seed=5)
    bias = b if kind == "layer" else None

    def f(values: F64) -> F64:
        shaped = values.reshape(3, heads, width)
        y = layer(shaped, w, b, eps) if kind == "layer" else rms(shaped, w, eps)
        return y.reshape(3, -1)

    def work(o: _native.Operators) -> Iterable[F32]:
        norm = _native.Norm(w, bias, heads, eps, kind == "layer")
        y, dx = like(x), rows(before)
        o.norm(norm, rows(x), y)
        o.norm_back(norm, rows(x), rows(dy), dx)
        return y, dx

    y, dx = everywhere(work)
    near(y[:, : width * heads], f(x.astype(np.float64)))
    near(dx[:, : width * heads] - before, differences(f, x, dy), 1e-4)
    assert not dx[:, width * heads :].any()


def erf(x: F64) -> F64:
    from math import erf as one

    return np.vectorize(one, otypes=[np.float64])(x)


ACTIVATIONS: dict[str, Callable[[F64], F64]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0.0),
    "relu2": lambda x: np.maximum(x, 0.0) ** 2,
    "tanh": np.tanh,
}


def wide(seed: int) -> F32:
    """Numbers of every size, from where functions bend to where they end."""
    return normal(4, 40, seed=seed, scale=3.0) * np.array(
        [[0.01], [1.0], [3.0], [40.0]], np.float32
    )


@pytest.mark.parametrize("name", UNARIES)
def test_activations(name: str) -> None:
    x, dy = wide(1), normal(4, 40, seed=2)

    def work(o: _native.Operators) -> Iterable[F32]:
        y, dx = like(x), like(x)
        o.unary(name, rows(x), y)
        o.unary_back(name, rows(x), rows(dy), dx)
        return y, dx

    y, dx = everywhere(work)
    f = ACTIVATIONS[name]
    near(y[:, :40], f(x.astype(np.float64)))
    near(dx[:, :40], differences(f, x, dy))


@pytest.mark.parametrize("name", GATES)
def test_gated_units(name: str) -> None:
    gate, up, dy = wide(1), normal(4, 40, seed=2), normal(4, 40, seed=3)

    def work(o: _native.Operators) -> Iterable[F32]:
        y, d_gate, d_up = like(gate), like(gate), like(gate)
        o.gated(name, rows(gate), rows(up), y)
        o.gated_back(name, rows(gate), rows(up), rows(dy), d_gate, d_up)
        return y, d_gate, d_up

    y, d_gate, d_up = everywhere(work)
    f = ACTIVATIONS[name]
    near(y[:, :40], f(gate.astype(np.float64)) * up)
    near(d_gate[:, :40], differences(lambda g: f(g) * up, gate, dy))
    near(d_up[:, :40], differences(lambda u: f(gate.astype(np.float64)) * u, up, dy))


def test_slopes_of_activations_end_where_they_must() -> None:
    far = np.array([[-1e30, -200.0, -50.0, 50.0, 200.0, 1e30] + [0.0] * 26], np.float32)
    o = _native.Operators(1)
    for name in ("silu", "gelu", "gelu_tanh", "tanh", "relu"):
        dx = like(far)
        o.unary_back(name, rows(far), rows(np.ones_like(far)), dx)
        right = 0.0 if name == "tanh" else 1.0
        assert np.abs(dx[0, :6] - [0, 0, 0, right, right, right]).max() < 1e-6, name


# ------------------------------------------------------------------ attention

LENGTHS = (1, 17, 50, 33)  # of texts: around a tile of 16 and a block of 48
STARTS = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int32)


def attended(
    q: F64, k: F64, v: F64, heads: int, kv: int, scale: float, window: int, cap: float
) -> F64:
    dim = q.shape[1] // heads
    out = np.zeros_like(q)
    for begin, end in itertools.pairwise(STARTS):
        n = end - begin
        ages = np.arange(n)[:, None] - np.arange(n)[None, :]
        seen = (ages >= 0) & ((ages < window) if window else True)
        for h in range(heads):
            mine, theirs = slice(h * dim, (h + 1) * dim), h // (heads // kv)
            other = slice(theirs * dim, (theirs + 1) * dim)
            s = q[begin:end, mine] @ k[begin:end, other].T * scale
            s = np.where(seen, cap * np.tanh(s / cap) if cap else s, -np.inf)
            e = np.exp(s - s.max(-1, keepdims=True))
            out[begin:end, mine] = e / e.sum(-1, keepdims=True) @ v[begin:end, other]
    return out


@pytest.mark.parametrize(
    ("heads", "kv", "dim", "window", "cap"),
    [(2, 1, 16, 0, 0.0), (4, 2, 20, 0, 0.0), (3, 3, 32, 7, 0.0), (2, 2, 8, 20, 1.5)],
)
def test_attention(heads: int, kv: int, dim: int, window: int, cap: float) -> None:
    m, scale = int(STARTS[-1]), 0.7 * dim**-0.5
    q, dy = normal(m, heads * dim, seed=1), normal(m, heads * dim, seed=4)
    k, v = normal(m, kv * dim, seed=2), normal(m, kv * dim, seed=3)

    def work(o: _native.Operators) -> Iterable[F32]:
        attention = _native.Attention(heads, kv, dim, scale, window, cap)
        out, slopes = like(q), [like(q), like(k), like(v)]
        o.attend(attention, STARTS, rows(q), rows(k), rows(v), out)
        o.attend_back(attention, STARTS, [rows(q), rows(k), rows(v)], rows(dy), slopes)
        return (out, *slopes)

    out, dq, dk, dv = everywhere(work)
    q64, k64, v64 = (x.astype(np.float64) for x in (q, k, v))
    rest = (heads, kv, scale, window, cap)
    near(out[:, : heads * dim], attended(q64, k64, v64, *rest))
    # Differences of some channels: each needs two runs over all texts.
    rng = np.random.default_rng(0)
    for slopes, values, at in ((dq, q64, 0), (dk, k64, 1), (dv, v64, 2)):
        most = float(np.abs(slopes).max())
        for _ in range(60):
            place = int(rng.integers(m)), int(rng.integers(values.shape[1]))
            total = []
            for sign in (1, -1):
                moved = values.copy()
                moved[place] += sign * 1e-5
                inputs = [q64, k64, v64]
                inputs[at] = moved
                total.append((dy * attended(*inputs, *rest)).sum())
            wanted = (total[0] - total[1]) / 2e-5
            assert abs(slopes[place] - wanted) <= 5e-5 * most, (at, place)


def test_rope_turns_back() -> None:
    heads, dim, half = 3, 24, 8
    m = int(STARTS[-1])
    x = normal(m, heads * dim, seed=1)
    angles = normal(max(LENGTHS), half, seed=2)
    cosines, sines = np.cos(angles) * np.float32(1.5), np.sin(angles) * np.float32(1.5)

    def work(o: _native.Operators) -> Iterable[F32]:
        there, back = like(x), rows(x)
        o.turn(rows(x), there, STARTS, (cosines, sines), heads, dim, False)
        o.turn(back, back, STARTS, (cosines, sines), heads, dim, True)
        return there, back

    there, back = everywhere(work)
    places = np.concatenate([np.arange(n) for n in LENGTHS])
    c, s = (t[places][:, None, :].astype(np.float64) for t in (cosines, sines))
    shaped = x.reshape(m, heads, dim).astype(np.float64)
    first, second, rest = shaped[..., :half], shaped[..., half : 2 * half], shaped[..., 2 * half :]
    for got, sign in ((there, 1), (back, -1)):  # the gradient of a turn is the turn transposed
        turned = [first * c - sign * second * s, second * c + sign * first * s, rest]
        near(got[:, : heads * dim], np.concatenate(turned, -1).reshape(m, -1))


# ------------------------------------------------------------------ the loss


@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("vocabulary", [7, 333])
def test_the_loss(vocabulary: int, cap: float) -> None:
    m, k, weight = 131, 40, 0.25  # more rows than have their logits at once
    x, w = normal(m, k, seed=1), normal(vocabulary, k, seed=2, scale=0.4)
    bias = normal(vocabulary, seed=3)
    targets = np.random.default_rng(4).integers(vocabulary, size=m).astype(np.int32)
    matrix = pack(w, "f32")

    def f(values: F64) -> F64:
        logits = values @ w.T.astype(np.float64) + bias
        if cap:
            logits = cap * np.tanh(logits / cap)
        top = logits.max(-1, keepdims=True)
        summed = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
        return np.asarray(summed - logits[np.arange(len(values)), targets[: len(values)]])

    found: list[F64] = []

    def work(o: _native.Operators) -> Iterable[F32]:
        dx = like(x)
        head = _native.Head(matrix, bias, "a16g32", cap)
        losses = o.loss(head, rows(x), targets, weight, dx)
        assert (losses == o.loss(head, rows(x), targets, 1.0, None)).all()
        found.append(losses)
        return (dx,)

    (dx,) = everywhere(work)
    assert all((losses == found[0]).all() for losses in found)
    assert np.abs(found[0] - f(x.astype(np.float64))).max() < 2e-6 * max(1, np.abs(found[0]).max())
    some = differences(f, x[:5], np.full(5, weight))
    near(dx[:5, :k], some, 1e-4)
    assert not dx[:, k:].any()


def test_a_loss_that_is_no_number_shows() -> None:
    x = normal(3, 32, seed=1)
    x[1, 5] = np.nan
    head = _native.Head(pack(normal(50, 32, seed=2), "f32"), None, "a16g32", 0.0)
    losses = _native.Operators(1).loss(head, rows(x), np.zeros(3, np.int32), 1.0, None)
    assert np.isnan(losses[1])
    assert np.isfinite(losses[[0, 2]]).all()


def test_embeddings() -> None:
    w = normal(50, 70, seed=1)
    ids = np.array([3, 49, 0], np.int32)

    def work(o: _native.Operators) -> Iterable[F32]:
        y = like(np.zeros((3, 70)))
        o.embed(pack(w, "f32"), ids, 2.0, y)
        return (y,)

    (y,) = everywhere(work)
    assert (y[:, :70] == 2 * w[ids]).all()


def test_wrong_sizes_are_refused() -> None:
    o = _native.Operators(1)
    matrix, x, y = pack(normal(32, 64), "f32"), like(np.zeros((2, 64))), like(np.zeros((2, 32)))
    with pytest.raises(ValueError, match="rows of at least 64 columns"):
        o.linear(y, [(matrix, None, None, y)], "a16g32")
    with pytest.raises(ValueError, match="rows of at least 64 columns"):
        o.linear_back([(matrix, None, None, y)], False, y)
    attention = _native.Attention(1, 1, 32, 1.0, 0, 0.0)
    with pytest.raises(ValueError, match="rising rows"):
        o.attend(attention, np.array([0, 3], np.int32), y, y, y, y)
    with pytest.raises(ValueError, match="tokens below 32"):
        o.embed(matrix, np.array([32, 0], np.int32), 1.0, x)
    with pytest.raises(ValueError, match="share KV heads"):
        _native.Attention(3, 2, 32, 1.0, 0, 0.0)


# ------------------------------------------------------------------ rows, and calls in one go


def test_rows_are_added_selected_and_zeroed() -> None:
    x, y, some = normal(37, 100, seed=1), normal(37, 100, seed=2), normal(3, 100, seed=3)
    numbers = np.array([0, 5, 36], np.int32)

    def work(o: _native.Operators) -> Iterable[F32]:
        total, chosen, spread, nothing = rows(y), like(some), rows(y), rows(x)
        o.add(rows(x), total)
        o.select(rows(x), numbers, chosen)
        o.select_back(rows(some), numbers, spread)
        o.zero(nothing)
        return total, chosen, spread, nothing

    total, chosen, spread, nothing = everywhere(work)
    assert (total[:, :100] == x + y).all()
    assert (chosen[:, :100] == x[numbers]).all()
    wanted = y.copy()
    wanted[numbers] += some
    assert (spread[:, :100] == wanted).all()
    assert not nothing.any()
    for bad in ([0, 5, 5], [5, 0, 36], [0, 5, 37], [-1, 5, 36]):
        with pytest.raises(ValueError, match="rising numbers below 37"):
            _native.Operators(1).select(rows(x), np.array(bad, np.int32), like(some))


def test_held_calls_run_in_one_go() -> None:
    o, x = _native.Operators(2), normal(37, 100, seed=1)
    norm = _native.Norm(normal(1, 100, seed=2)[0], None, 1, 1e-5, False)
    wanted, got = rows(x), rows(x)

    def work(y: F32) -> None:
        o.add(rows(x), y)  # what is given and forgotten is kept
        o.norm(norm, y, y)
        o.unary("gelu", y, y)

    work(wanted)
    o.hold()
    work(got)
    assert (got == rows(x)).all()
    with pytest.raises(ValueError, match="expected rows"):
        o.norm(norm, rows(x), rows(x[:, :32]))
    o.run_held()
    assert (got == wanted).all()
    o.hold()
    work(got)
    o.drop_held()
    o.run_held()
    assert (got == wanted).all()
    work(got)
    assert (got != wanted).any()
