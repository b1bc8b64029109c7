"""Attention through the paged cache on every ISA: within its bound of float64, equal by bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference as ref
import reference_int4 as ref4
from kernel_cases import ISAS, SCALAR, assert_within, normal, pack, same_bits

from slmq import _native

F32 = npt.NDArray[np.float32]

KV_TYPES = ("f16", "f32", "int8", "int4")
LENGTHS = (1, 15, 16, 17, 63, 64, 65, 511, 512, 513, 700)
HEAD_DIMS = (8, 12, 20, 64, 80, 128)


def problem(m: int, t: int, heads: int, kv_heads: int, head_dim: int) -> tuple[F32, F32, F32]:
    """q[m, heads, d], k and v[t, kv_heads, d]: the m latest of t positions ask."""
    q, k = normal(m, heads, head_dim), normal(t, kv_heads, head_dim, seed=1)
    return q, k, normal(t, kv_heads, head_dim, seed=2)


def stored(x: F32, kv: str, keys: bool = False) -> Any:
    """Keys or values [t, kv_heads, d] as the cache holds them."""
    if kv == "int4":
        return ref4.held(x, keys)
    if kv == "int8":
        codes, scale = ref.quantize_cached(x)
        return codes * scale.astype(np.float64)[..., None]
    return x.astype({"f16": np.float16, "f32": np.float32}[kv])


def assert_attention(
    q: F32,
    k: F32,
    v: F32,
    *,
    kv: str,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    causal: bool = True,
    bias: F32 | None = None,
) -> F32:
    """Within the bound of the reference on what the cache holds, and one result on every ISA."""
    scale = float(np.float32(q.shape[2] ** -0.5 if scale is None else scale))
    arguments: Any = (q, k, v, scale, window, kv, softcap, causal, bias)
    got: F32 = SCALAR.attention(*arguments)
    stored_k, stored_v = stored(k, kv, keys=True), stored(v, kv)
    if kv == "int4":
        q = ref4.asked(q)
    positions = np.arange(len(k) - len(q), len(k))
    options: Any = {"scale": scale, "window": window or None, "softcap": softcap or None}
    options |= {"causal": causal, "bias": bias}
    want = ref.attention(q, stored_k, stored_v, positions, **options)
    bound = ref.attention_bound(q, stored_k, stored_v, positions, **options)
    if kv == "int8":
        bound = bound + ref.attention_int8_bound(q, stored_k, stored_v, positions, **options)
    if kv == "int4":
        bound = bound + ref4.int4_bound(q, stored_k, stored_v, positions, **options)
    assert_within(got, want, bound)
    for name, table in ISAS.items():
        assert same_bits(table.attention(*arguments), got), name
    return got


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("t", LENGTHS)
def test_lengths_around_tiles_pages_and_parts(t: int, kv: str) -> None:
    assert_attention(*problem(min(t, 2), t, 4, 2, 20), kv=kv)


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("head_dim", [1, *HEAD_DIMS])
def test_head_dims(head_dim: int, kv: str) -> None:
    assert_attention(*problem(3, 70, 3, 1, head_dim), kv=kv)


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("heads", [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (9, 3), (4, 4), (64, 1)])
def test_heads_that_share_a_kv_head(heads: tuple[int, int], kv: str) -> None:
    """The bits of a head do not depend on how many others read the same keys."""
    n_heads, kv_heads = heads
    q, k, v = problem(2, 67, n_heads, kv_heads, 12)
    got = assert_attention(q, k, v, kv=kv)
    group = n_heads // kv_heads
    for head in range(0, n_heads, 3):
        own = slice(head // group, head // group + 1)
        alone = [np.ascontiguousarray(x) for x in (q[:, head : head + 1], k[:, own], v[:, own])]
        got_alone = SCALAR.attention(*alone, float(np.float32(12**-0.5)), 0, kv)
        assert same_bits(got_alone[:, 0], np.ascontiguousarray(got[:, head]))


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("window", [1, 15, 16, 17, 63, 64, 65, 512, 600, 10_000])
def test_windows(window: int, kv: str) -> None:
    """Pages and whole parts that a window hides must not count."""
    q, k, v = problem(3, 600, 4, 2, 12)
    got = assert_attention(q, k, v, kv=kv, window=window)
    if window == 1:
        assert_within(
            got,
            ref.f64(np.repeat(stored(v[-3:], kv), 2, axis=1)),
            np.full(got.shape, 1e-4 if kv.startswith("int") else 1e-6),
        )
    if window >= 600:
        whole = SCALAR.attention(q, k, v, float(np.float32(12**-0.5)), 0, kv)
        assert same_bits(got, whole)


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_scales(scale: float, kv: str) -> None:
    """From a plain mean of the values to a softmax that knows one position."""
    q, k, v = problem(2, 530, 2, 2, 8)
    got = assert_attention(q, k, v, kv=kv, scale=scale)
    if scale == 0:
        mean = ref.f64(stored(v[:529], kv)).mean(axis=0)
        assert_within(got[0], mean, np.full(mean.shape, 1e-4 if kv.startswith("int") else 1e-5))


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("softcap", [0.5, 3.0, 50.0])
def test_soft_caps(softcap: float, kv: str) -> None:
    """Scores far below and far above the cap, behind a part of 512, in windows; few query heads
    multiply from the cache, twenty from what is converted."""
    for m, t, heads, kv_heads, head_dim, window in [
        (2, 530, 4, 2, 20, 0),
        (1, 65, 20, 1, 33, 17),
        (3, 31, 3, 3, 1, 0),
    ]:
        q, k, v = problem(m, t, heads, kv_heads, head_dim)
        q[-1] *= 100
        got = assert_attention(q, k, v, kv=kv, window=window, softcap=softcap)
        scale = float(np.float32(head_dim**-0.5))
        assert not same_bits(got, SCALAR.attention(q, k, v, scale, window, kv))
        for head in range(0, heads, 7):  # alone as beside others
            own = slice(head * kv_heads // heads, head * kv_heads // heads + 1)
            alone = [np.ascontiguousarray(x) for x in (q[:, head : head + 1], k[:, own], v[:, own])]
            one = SCALAR.attention(*alone, scale, window, kv, softcap)
            assert same_bits(one[:, 0], np.ascontiguousarray(got[:, head]))


@pytest.mark.parametrize("kv", KV_TYPES)
def test_a_soft_cap_hides_no_infinity(kv: str) -> None:
    q, k, v = problem(2, 70, 2, 2, 12)
    k[3, 1, 5] = np.inf
    got = SCALAR.attention(q, k, v, 0.3, 0, kv, 2.0)
    assert np.isfinite(got[:, 0]).all()
    assert not np.isfinite(got[:, 1]).any()
    for name, table in ISAS.items():
        assert same_bits(table.attention(q, k, v, 0.3, 0, kv, 2.0), got), name


@pytest.mark.parametrize("kv", KV_TYPES)
def test_a_position_that_outshines_all_before_it(kv: str) -> None:
    """Rescaling across pages and parts, upwards at every step and downwards after the first."""
    q, k, v = problem(1, 700, 1, 1, 8)
    q[:] = 1
    for ramp in (np.linspace(-6, 6, 700), np.linspace(6, -6, 700)):
        k[:] = ramp[:, None, None]
        assert_attention(q, k, v, kv=kv, scale=1.5)


@pytest.mark.parametrize("kv", KV_TYPES)
def test_queries_see_nothing_of_the_future(kv: str) -> None:
    q, k, v = problem(5, 130, 2, 1, 16)
    among = SCALAR.attention(q, k, v, 0.25, 0, kv)
    for row in range(5):
        alone = SCALAR.attention(q[row : row + 1], k[: 126 + row], v[: 126 + row], 0.25, 0, kv)
        assert same_bits(alone[0], among[row])


def attention_plan(
    kv: str, isa: str, threads: int, scale: float, window: int = 0, softcap: float = 0.0
) -> Any:
    """Attention of 2 heads and 1 KV head alone: token i is row i of an embedding, the output is
    what attention gives. Queries are channels 0-31, keys 16-31, values 32-47."""
    embedding = normal(64, 64)
    embedding[63, 32:48] = 3e38
    r: Any = _native.Recording(threads, 64, 64, 64, kv, isa)
    x = r.embed(pack(embedding, "f32"), scale)
    slices: Any = [(x, 0, 32), (x, 16, 16), (x, 32, 16)]
    gathered = r.select((r.attention(*slices, -1, 2, 1, 16, 0, 0.25, window, softcap), 0, 32))
    head = pack(np.eye(64, 32, dtype=np.float32), "f32")
    return r.finish(r.linear(gathered, [(head, None)]))


def outputs(plan: Any, sequence: Any, tokens: npt.NDArray[np.int32], cuts: int) -> F32:
    """Outputs of all tokens, fed in chunks of `cuts`."""
    logits = []
    for start in range(0, len(tokens), cuts):
        part = tokens[start : start + cuts]
        plan.run(part, [(sequence, len(part))], np.arange(len(part), dtype=np.int32))
        logits.append(plan.logits()[:, :32])
    return np.concatenate(logits)


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (100, 0.0), (600, 0.0), (600, 2.0)])
def test_parts_of_a_plan(window: int, softcap: float, kv: str) -> None:
    """Blocks of rows, rows split among threads, and the kernel alone agree behind position 512."""
    tokens = np.random.default_rng(3).integers(0, 63, 1100).astype(np.int32)
    rows = normal(64, 64)[tokens]
    q, k, v = rows[-3:, :32].reshape(3, 2, 16), rows[:, None, 16:32], rows[:, None, 32:48]
    arrays = [np.ascontiguousarray(x) for x in (q, k, v)]
    want = SCALAR.attention(*arrays, 0.25, window, kv, softcap).reshape(3, 32)
    for threads in (1, 3):
        plan = attention_plan(kv, "scalar", threads, 1.0, window, softcap)
        sequence = plan.make_cache().sequence()
        whole = outputs(plan, sequence, tokens, 64)
        assert same_bits(whole[-3:], want)
        sequence.truncate(1097)
        assert same_bits(outputs(plan, sequence, tokens[-3:], 1), want)


def poisoned_logits(kv: str, isa: str, rows: int, poison: int, cuts: int) -> F32:
    """Outputs of attention alone, in chunks of `cuts` rows: row `poison` has values of infinity."""
    plan = attention_plan(kv, isa, 2, 2.0)
    tokens = np.arange(rows, dtype=np.int32)
    if poison >= 0:
        tokens[poison] = 63
    return outputs(plan, plan.make_cache().sequence(), tokens, cuts)


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_masked_positions_never_contribute(kv: str, isa: str) -> None:
    """An infinite value late in a chunk reaches its own row and those behind it, no other."""
    clean = poisoned_logits(kv, isa, 40, -1, 40)
    assert np.isfinite(clean).all()
    for cuts in (40, 7, 3):
        got = poisoned_logits(kv, isa, 40, 29, cuts)
        assert same_bits(got[:29], clean[:29])
        assert not np.isfinite(got[29:]).any()


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_surfaces(kv: str, bad: float) -> None:
    """In a query, a key or a value, on every ISA alike."""
    for which in range(3):
        arrays = problem(2, 70, 2, 2, 12)
        # The last row's own query and head 1 of position 3: head 0 of row 0 stays clean.
        arrays[which][(1, 1, 5) if which == 0 else (3, 1, 5)] = bad
        got = SCALAR.attention(*arrays, 0.3, 0, kv)
        assert np.isfinite(got[:, 0]).all()
        assert not np.isfinite(got[1, 1, 5])
        for name, table in ISAS.items():
            assert same_bits(table.attention(*arrays, 0.3, 0, kv), got), name


def test_int8_keeps_the_extremes_of_a_head() -> None:
    """The largest value of a head is exact but for the rounding of its scale; zeros are zeros."""
    q, k, v = problem(1, 1, 2, 2, 20)
    v[0, 0], v[0, 1] = 0, -0.0
    v[0, 0, 7] = -3e30
    got = assert_attention(q, k, v, kv="int8", scale=1e-3)
    assert abs(got[0, 0, 7] / -3e30 - 1) < 1e-6
    assert not got[0, 1].any()


@pytest.mark.parametrize("kv", ["int8", "int4"])
def test_integers_take_at_most_512_channels(kv: str) -> None:
    assert_attention(*problem(1, 20, 1, 1, 512), kv=kv)
    with pytest.raises(ValueError, match="at most 512 channels, got 513"):
        SCALAR.attention(*problem(1, 2, 1, 1, 513), 1.0, 0, kv)
    recording: Any = _native.Recording(1, 4, 4, 64, kv)
    x = recording.embed(pack(normal(64, 3 * 1024), "f32"))
    slices: Any = [(x, 1024 * i, 513) for i in range(3)]
    with pytest.raises(ValueError, match=r"at most 512 channels, got 513; use kv_dtype='f16'"):
        recording.attention(*slices, -1, 1, 1, 513, 0, 1.0)


def test_values_beyond_float16_turn_infinite_in_its_cache_only() -> None:
    q, k, v = problem(1, 20, 1, 1, 8)
    v[3] = 1e5
    assert np.isinf(SCALAR.attention(q, k, v, 0.3, 0, "f16")).any()
    assert_attention(q, k, v, kv="f32")
