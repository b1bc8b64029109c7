"""Attention through the paged cache on every ISA: within its bound of float64, equal by bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference as ref
from kernel_cases import ISAS, SCALAR, assert_within, normal, same_bits

F32 = npt.NDArray[np.float32]

STORED = {"f16": np.float16, "f32": np.float32}
LENGTHS = (1, 15, 16, 17, 63, 64, 65, 511, 512, 513, 700)
HEAD_DIMS = (8, 12, 20, 64, 80, 128)


def problem(m: int, t: int, heads: int, kv_heads: int, head_dim: int) -> tuple[F32, F32, F32]:
    """q[m, heads, d], k and v[t, kv_heads, d]: the m latest of t positions ask."""
    q, k = normal(m, heads, head_dim), normal(t, kv_heads, head_dim, seed=1)
    return q, k, normal(t, kv_heads, head_dim, seed=2)


def assert_attention(
    q: F32, k: F32, v: F32, *, kv: str, scale: float | None = None, window: int = 0
) -> F32:
    """Within the bound of the reference on what the cache holds, and one result on every ISA."""
    scale = float(np.float32(q.shape[2] ** -0.5 if scale is None else scale))
    arguments: Any = (q, k, v, scale, window, kv)
    got: F32 = SCALAR.attention(*arguments)
    stored_k, stored_v = k.astype(STORED[kv]), v.astype(STORED[kv])
    positions = np.arange(len(k) - len(q), len(k))
    options: Any = {"scale": scale, "window": window or None}
    want = ref.attention(q, stored_k, stored_v, positions, **options)
    bound = ref.attention_bound(q, stored_k, stored_v, positions, **options)
    assert_within(got, want, bound)
    for name, table in ISAS.items():
        assert same_bits(table.attention(*arguments), got), name
    return got


@pytest.mark.parametrize("kv", STORED)
@pytest.mark.parametrize("t", LENGTHS)
def test_lengths_around_tiles_pages_and_parts(t: int, kv: str) -> None:
    assert_attention(*problem(min(t, 2), t, 4, 2, 20), kv=kv)


@pytest.mark.parametrize("kv", STORED)
@pytest.mark.parametrize("head_dim", [1, *HEAD_DIMS])
def test_head_dims(head_dim: int, kv: str) -> None:
    assert_attention(*problem(3, 70, 3, 1, head_dim), kv=kv)


@pytest.mark.parametrize("kv", STORED)
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


@pytest.mark.parametrize("kv", STORED)
@pytest.mark.parametrize("window", [1, 15, 16, 17, 63, 64, 65, 512, 600, 10_000])
def test_windows(window: int, kv: str) -> None:
    """Pages and whole parts that a window hides must not count."""
    q, k, v = problem(3, 600, 4, 2, 12)
    got = assert_attention(q, k, v, kv=kv, window=window)
    if window == 1:
        assert_within(
            got, ref.f64(np.repeat(v[-3:].astype(STORED[kv]), 2, axis=1)), np.full(got.shape, 1e-6)
        )
    if window >= 600:
        whole = SCALAR.attention(q, k, v, float(np.float32(12**-0.5)), 0, kv)
        assert same_bits(got, whole)


@pytest.mark.parametrize("kv", STORED)
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_scales(scale: float, kv: str) -> None:
    """From a plain mean of the values to a softmax that knows one position."""
    q, k, v = problem(2, 530, 2, 2, 8)
    got = assert_attention(q, k, v, kv=kv, scale=scale)
    if scale == 0:
        mean = v[:529].astype(STORED[kv]).astype(np.float64).mean(axis=0)
        assert_within(got[0], mean, np.full(mean.shape, 1e-5))


@pytest.mark.parametrize("kv", STORED)
def test_a_position_that_outshines_all_before_it(kv: str) -> None:
    """Rescaling across pages and parts, upwards at every step and downwards after the first."""
    q, k, v = problem(1, 700, 1, 1, 8)
    q[:] = 1
    for ramp in (np.linspace(-6, 6, 700), np.linspace(6, -6, 700)):
        k[:] = ramp[:, None, None]
        assert_attention(q, k, v, kv=kv, scale=1.5)


def test_queries_see_nothing_of_the_future() -> None:
    q, k, v = problem(5, 130, 2, 1, 16)
    for row in range(5):
        alone = SCALAR.attention(q[row : row + 1], k[: 126 + row], v[: 126 + row], 0.25)
        among = SCALAR.attention(q, k, v, 0.25)
        assert same_bits(alone[0], among[row])


def test_values_beyond_float16_turn_infinite_in_its_cache_only() -> None:
    q, k, v = problem(1, 20, 1, 1, 8)
    v[3] = 1e5
    assert np.isinf(SCALAR.attention(q, k, v, 0.3, 0, "f16")).any()
    assert_attention(q, k, v, kv="f32")
