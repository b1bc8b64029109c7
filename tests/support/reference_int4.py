"""The int4 cache in NumPy: what it holds, what queries become, and what that leaves open."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from reference import F64, SLACK, attention_scores, f64, gamma, softmax

F32 = npt.NDArray[np.float32]
GROUP = 32
PARITY = np.array([[bin(i & j).count("1") % 2 for j in range(16)] for i in range(16)])
SIXTEEN = np.where(PARITY == 0, 0.25, -0.25)


def turned(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[..., d] times the Hadamard matrix of the cache, in the type and order of the kernel: sixteen
    channels, then as many neighbours of those as a power of two allows."""
    d = x.shape[-1]
    if d % 16:
        return x
    vectors = x.reshape(*x.shape[:-1], d // 16, 16)
    found = vectors[..., :1] * SIXTEEN[0].astype(x.dtype)
    for i in range(1, 16):
        found = found + vectors[..., i : i + 1] * SIXTEEN[i].astype(x.dtype)
    step = 1
    while (d // 16) % (2 * step) == 0:
        pairs = found.reshape(*x.shape[:-1], -1, 2, step, 16)
        left, right = pairs[..., 0, :, :], pairs[..., 1, :, :]
        found = np.stack([left + right, left - right], axis=-3).reshape(vectors.shape)
        step *= 2
    return (found * x.dtype.type(1 / np.sqrt(step))).reshape(x.shape)


def groups_of(x: F32) -> F32:
    """[..., d] as [..., groups, 32], zeros behind the last."""
    d = x.shape[-1]
    padded = np.zeros((*x.shape[:-1], -(-d // GROUP) * GROUP), np.float32)
    padded[..., :d] = x
    return padded.reshape(*x.shape[:-1], -1, GROUP)


def rounded(x: F32, half: bool) -> F64:
    """[..., n] in sixteen steps, of which what is farthest from zero has the lowest."""
    above, below = x.max(axis=-1, initial=0), (-x).max(axis=-1, initial=0)
    scale = (np.where(above > below, -above, below) * np.float32(0.125)).astype(np.float32)
    if half:
        scale = scale.astype(np.float16).astype(np.float32)
    some = np.abs(scale) > 1e-30
    inverse = np.where(some, np.float32(1) / np.where(some, scale, 1), 0).astype(np.float32)
    codes = np.clip(np.rint(x * inverse[..., None]), -8, 7)
    return f64(codes) * f64(scale)[..., None]


def held(x: F32, keys: bool) -> F64:
    """Keys or values [t, kv_heads, d] as the cache holds them, turned back."""
    d, there = x.shape[-1], turned(x)
    if keys:
        there = rounded(groups_of(there), half=True).reshape(*x.shape[:-1], -1)[..., :d]
    else:
        there = rounded(there, half=False)
    return f64(turned(there))


def asked(q: F32) -> F64:
    """Queries [m, heads, d] in eight bits for each 32 channels, turned back."""
    there = groups_of(turned(q))
    largest = np.abs(there).max(axis=-1, keepdims=True)
    some = largest >= np.float32(1e-30)
    inverse = np.where(some, np.float32(127) / np.where(some, largest, 1), 0).astype(np.float32)
    codes = np.clip(np.rint(there * inverse), -127, 127)
    found = f64(codes) * f64(largest) / 127
    return f64(turned(found.reshape(*q.shape[:-1], -1)[..., : q.shape[-1]]))


def int4_bound(
    q: npt.ArrayLike, k: npt.ArrayLike, v: npt.ArrayLike, positions: npt.ArrayLike, **options: Any
) -> F64:
    """What fifteen-bit probabilities and turning back add to `attention_bound`, all as rounded.

    Probabilities, times the scales of their values, are rounded in steps of the largest of a part
    / 32512, and then meet codes of 8 at most: with the largest of all, half a step for every
    position that is seen. Turning adds up to the root of d of such channels, with about 24
    roundings of its own, and scores are sums of turned products.
    """
    q, k, v = f64(q), f64(k), f64(v)
    d, group = q.shape[2], q.shape[1] // k.shape[1]
    p = softmax(attention_scores(q, k, positions, **options).value)  # [h, m, t]
    there = np.repeat(np.abs(turned(v)), group, axis=1)  # [t, h, d]
    largest = there.max(axis=-1).T[:, None]  # [h, 1, t]
    steps = 0.5 / 32512 * (p > 0).sum(axis=-1) * (p * largest).max(axis=-1)  # [h, m]
    size = np.einsum("hmt,thd->mhd", p, there).sum(axis=-1)  # [m, h]
    length = np.sqrt(np.square(turned(q)).sum(axis=-1))  # [m, h]
    keys = np.repeat(np.sqrt(np.square(k).sum(axis=-1)).max(axis=0), group)
    scores = 2 * gamma(32) * abs(options["scale"]) * length * keys * np.sqrt(d)
    found = np.sqrt(d) * steps.T + (gamma(32) + np.expm1(scores)) * size
    return np.asarray(SLACK * np.repeat(found[..., None], d, axis=-1))
