"""The gated delta rule: its decays, its states, and the gate behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from golden import read_golden
from kernel_cases import ISAS, assert_within, normal, pack, same_bits
from llama_files import build, feed

from slmq import _native

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
GOLDEN = read_golden("qwen3_5_text", "shared_keys")
TOKENS = np.array(GOLDEN.tokens[1], np.int32)


class Recorded:
    """A recording whose tokens are rows of given matrices."""

    def __init__(self, isa: str, threads: int, **rows: F32) -> None:
        self.m = len(next(iter(rows.values())))
        self.native = _native.Recording(threads, self.m, 1, self.m, "f32", isa)
        self.slices = {
            name: (self.native.embed(pack(x, "f32")), 0, x.shape[1]) for name, x in rows.items()
        }

    def values(self, step: int, width: int, cuts: list[int]) -> F32:
        """What a step makes of all rows, given in runs that end at `cuts`."""
        head = pack(np.zeros((self.m, width), np.float32), "f32")
        logits = self.native.linear(self.native.select((step, 0, width)), [(head, None)])
        made = self.native.finish(logits)
        sequence, found, start = made.make_cache().sequence(), [], 0
        for end in [*cuts, self.m]:
            tokens = np.arange(start, end, dtype=np.int32)
            made.run(tokens, [(sequence, end - start)], np.zeros(1, np.int32))
            found.append(made.read(step))
            start = end
        return np.concatenate(found)


def sizes(tiled: bool, key_dim: int, value_dim: int) -> dict[str, Any]:
    return {
        "heads": 6, "key_heads": 3, "key_dim": key_dim, "value_dim": value_dim, "tiled": tiled,
    }  # fmt: skip


def inputs(shape: dict[str, Any], m: int = 70) -> dict[str, F32]:
    """Keys of about length one, decays and shares within 0 and 1."""
    keys, values = shape["key_heads"] * shape["key_dim"], shape["heads"] * shape["value_dim"]
    rng = np.random.default_rng(0)
    decays = rng.uniform(0, 1, (m, 2 * shape["heads"])).astype(np.float32)
    decays[:, : shape["heads"]] **= np.float32(0.1)
    scale = float(shape["key_dim"]) ** -0.5
    return {
        "q": normal(m, keys, seed=1),
        "k": normal(m, keys, seed=2) * np.float32(scale),
        "v": normal(m, values, seed=3),
        "decays": decays,
    }


def exact_rule(rows: dict[str, F32], shape: dict[str, Any]) -> tuple[F64, F64]:
    """The rule in float64, and the sum of magnitudes that every result is made of."""
    heads, key_heads, value_dim = shape["heads"], shape["key_heads"], shape["value_dim"]
    found, size = (np.zeros_like(rows["v"], np.float64) for _ in range(2))
    for h in range(heads):
        kh = h % key_heads if shape["tiled"] else h // (heads // key_heads)
        key = slice(kh * shape["key_dim"], (kh + 1) * shape["key_dim"])
        columns = slice(h * value_dim, (h + 1) * value_dim)
        state = np.zeros((shape["key_dim"], value_dim))
        bulk = np.zeros_like(state)
        for i in range(len(found)):
            q, k, v = (
                rows[name][i, part].astype(np.float64)
                for name, part in (("q", key), ("k", key), ("v", columns))
            )
            decay, share = (float(rows["decays"][i, j]) for j in (h, heads + h))
            state = decay * state + np.outer(k, share * (v - decay * (k @ state)))
            grown = share * (np.abs(v) + decay * (np.abs(k) @ bulk))
            bulk = decay * bulk + np.outer(np.abs(k), grown)
            found[i, columns], size[i, columns] = q @ state, np.abs(q) @ bulk
    return found, size


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(4, 1), (12, 20), (32, 16), (64, 48)])
def test_delta_rule(key_dim: int, value_dim: int, tiled: bool) -> None:
    shape = sizes(tiled, key_dim, value_dim)
    rows = inputs(shape)
    width = rows["v"].shape[1]

    def run(isa: str, threads: int, cuts: list[int]) -> F32:
        r = Recorded(isa, threads, **rows)
        return r.values(r.native.delta_rule(**r.slices, **shape), width, cuts)

    want = run("scalar", 1, [])
    for isa in ISAS:
        for threads, cuts in ((1, [1, 2, 3]), (2, [63, 64, 65]), (3, list(range(1, 70)))):
            assert same_bits(run(isa, threads, cuts), want), (isa, threads, cuts)
    exact, size = exact_rule(rows, shape)
    # A state of token i has been rounded at most 5 times a token, each error fading with it.
    rounded = 2.0**-24 * (5 * np.arange(1, 71)[:, None] + 2 * key_dim)
    assert_within(want, exact, rounded * size)


def test_decays() -> None:
    m, heads = 40, 5
    a, b = normal(m, heads, seed=1, scale=8), normal(m, heads, seed=2, scale=8)
    a[0], b[0] = [-1e30, 1e30, 0, 100, -100], [1e30, -1e30, 0, 100, -100]
    rate, step = np.float32([0.01, 1, 16, 1e-3, 100]), normal(heads, seed=3)

    def run(isa: str, threads: int) -> F32:
        r = Recorded(isa, threads, a=a, b=b)
        made = r.native.decays(**r.slices, rate=rate, bias=step)
        return r.values(made, 2 * heads, [7])

    want = run("scalar", 1)
    for isa in ISAS:
        assert same_bits(run(isa, 2), want)
    x = a.astype(np.float64) + step
    decay = np.exp(-rate.astype(np.float64) * np.logaddexp(0, x))
    share = 1 / (1 + np.exp(-np.clip(b.astype(np.float64), -700, 700)))
    exact = np.concatenate([decay, share], axis=1)
    # Within one rounding; below e^-80 nothing is told apart.
    assert_within(want, exact, 1.01 * 2.0**-24 * exact + 2e-35)


@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_gate(activation: str) -> None:
    x, gate = normal(33, 100, seed=1), normal(33, 100, seed=2, scale=4)

    def run(isa: str, threads: int) -> F32:
        r = Recorded(isa, threads, x=x, gate=gate)
        return r.values(r.native.gate(**r.slices, activation=activation), 100, [1, 17])

    want = run("scalar", 1)
    for isa in ISAS:
        assert same_bits(run(isa, 2), want)
    share = 1 / (1 + np.exp(-gate.astype(np.float64)))
    exact = x * share * (gate if activation == "silu" else 1)
    assert_within(want, exact, 1e-6 * np.abs(exact))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key_dim": 6}, "delta_rule: expected heads of 4, 8, .. 512 channels of keys"),
        ({"key_dim": 516}, "got 516 and 16"),
        ({"value_dim": 0}, "got 16 and 0"),
        ({"key_heads": 4}, "expected key heads that divide 6 heads, got 4"),
        ({"heads": 0}, "expected key heads that divide 0 heads"),
        ({"value_dim": 32}, "of width 48, 48, 192, 12, got 48, 48, 96, 12"),
        ({"decays": (0, 0, 48)}, "got 48, 48, 96, 48"),
        ({"q": (9, 0, 48)}, "expected a buffer 0..3, got 9"),
    ],
    ids=str,
)
def test_rules_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    shape = sizes(False, 16, 16)
    r = Recorded("scalar", 1, **inputs(shape))
    with pytest.raises(ValueError, match=message):
        r.native.delta_rule(**(r.slices | shape | changes))


def test_decays_and_gates_that_do_not_fit() -> None:
    r = Recorded("scalar", 1, a=normal(8, 32), b=normal(8, 64))
    x, other = r.slices["a"], r.slices["b"]
    ones = np.ones(32, np.float32)
    with pytest.raises(ValueError, match="b, rates and biases of 32 heads, got 64, 32 and 32"):
        r.native.decays(x, other, ones, ones)
    with pytest.raises(ValueError, match="of 32 heads, got 32, 32 and 31"):
        r.native.decays(x, x, ones, ones[:31])
    with pytest.raises(ValueError, match="gate: expected a gate for each of 32 values, got 64"):
        r.native.gate(x, other, "silu")
    with pytest.raises(ValueError, match="got 'mish'"):
        r.native.gate(x, x, "mish")
    chosen = (r.native.select(x), 0, 32)
    with pytest.raises(ValueError, match="decays: record them before select"):
        r.native.decays(chosen, chosen, ones, ones)
    with pytest.raises(ValueError, match="gate: expected a gate for each of 32 values"):
        r.native.gate(x, chosen, "silu")
    with pytest.raises(ValueError, match="delta_rule: record it before select"):
        r.native.delta_rule(chosen, chosen, chosen, chosen, 16, 16, 4, 2)


def test_states_go_back_to_where_they_were() -> None:
    """Cut anywhere, forked, and taken back: the logits of one run."""
    made = build(GOLDEN.folder, format=None, kv_dtype="f16")
    whole = feed(made, made.cache.sequence(), TOKENS)
    sequence = made.cache.sequence()
    assert same_bits(feed(made, sequence, TOKENS, cuts=[1, 64, 100]), whole)
    assert {sequence.kept(n) for n in range(150)} == {0, 64, 100, 128}
    fork = sequence.fork(100)
    feed(made, sequence, TOKENS[::-1].copy())
    assert same_bits(feed(made, fork, TOKENS[100:], cuts=[3]), whole[100:])
    fork.truncate(fork.kept(149))
    rest = TOKENS[fork.length :]
    assert same_bits(feed(made, fork, rest), whole[len(TOKENS) - len(rest) :])
