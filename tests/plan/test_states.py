"""States of sequences: which are kept, and what goes back to them; and the convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from golden import read_golden
from kernel_cases import ISAS, assert_within, normal, pack, same_bits
from llama_files import build, feed
from reference import gamma

from slmq import _native

F32 = npt.NDArray[np.float32]
GOLDEN = read_golden("lfm2", "three_taps")
TOKENS = np.array(GOLDEN.tokens[1], np.int32)  # 150 of them: two whole pages and a part
PAGE = 64


def plan(**options: Any) -> Any:
    return build(GOLDEN.folder, format=None, kv_dtype="f16", **options)


@pytest.fixture(scope="module")
def whole() -> F32:
    """The logits of all tokens, in one run."""
    found: F32 = feed(made := plan(), made.cache.sequence(), TOKENS)
    return found


def grown(made: Any, cuts: list[int]) -> Any:
    """A sequence of all tokens, fed in runs that end at `cuts`."""
    sequence = made.cache.sequence()
    feed(made, sequence, TOKENS, cuts=cuts)
    return sequence


# --- what is kept -----------------------------------------------------------------------------


def test_states_are_kept_at_page_ends_and_around_the_last_run() -> None:
    made = plan()
    assert made.native.state_bytes > 0
    assert made.native.state_interval == PAGE
    sequence = grown(made, [100, 140])
    kept = {sequence.kept(n) for n in range(len(TOKENS) + 1)}
    assert kept == {0, 64, 128, 140, 150}
    feed(made, sequence, TOKENS[:1])
    assert {sequence.kept(n) for n in range(152)} == {0, 64, 128, 150, 151}


def test_a_model_without_states_keeps_every_position() -> None:
    golden = read_golden("llama", "odd_sizes")
    made = build(golden.folder)
    assert made.native.state_bytes == 0
    sequence = made.cache.sequence()
    feed(made, sequence, golden.tokens[0])
    assert [sequence.kept(n) for n in (0, 1, 33)] == [0, 1, 33]


@pytest.mark.parametrize("what", ["truncate", "fork"])
def test_positions_without_a_state(what: str) -> None:
    sequence = grown(plan(), [100])
    with pytest.raises(ValueError, match=rf"{what}: no state is kept behind position 70.* is 64"):
        getattr(sequence, what)(70)
    assert sequence.length == len(TOKENS)


@pytest.mark.parametrize("length", [0, 64, 100, 128, 150])
def test_forks_and_truncations_go_on_with_the_same_bits(length: int, whole: F32) -> None:
    made = plan()
    sequence = grown(made, [100])
    other = sequence.fork(length)
    for one in (other, sequence):
        if one is sequence:
            one.truncate(length)
        if length < len(TOKENS):
            again = feed(made, one, TOKENS[length:], cuts=[1, 7])
            assert same_bits(again, whole[length:])
    ends = [feed(made, one, TOKENS[:3]) for one in (sequence, other)]
    assert same_bits(*ends)


def test_a_fork_is_not_touched_by_what_its_source_does(whole: F32) -> None:
    made = plan()
    sequence = grown(made, [100])
    fork = sequence.fork(128)
    feed(made, sequence, TOKENS[::-1].copy())
    sequence.truncate(0)
    assert same_bits(feed(made, fork, TOKENS[128:]), whole[128:])


@pytest.mark.parametrize("stop", range(0, 30, 7))
def test_a_run_that_stops_early_can_be_repeated(stop: int, whole: F32) -> None:
    made = plan()
    sequence = grown(made, [100])
    sequence.truncate(100)
    rest = TOKENS[100:]
    made.native.run(rest, [(sequence, len(rest))], np.zeros(0, np.int32), stop)
    assert sequence.length == 100
    assert same_bits(feed(made, sequence, rest), whole[100:])


def test_sequences_side_by_side(whole: F32) -> None:
    """Rows of several sequences in one run, each with a state of its own."""
    made = plan()
    starts = [0, 30, 64]
    sequences = [made.cache.sequence() for _ in starts]
    for sequence, start in zip(sequences, starts, strict=True):
        if start:
            feed(made, sequence, TOKENS[:start])
    parts = [TOKENS[start : start + 40] for start in starts]
    rows = np.array([39, 79, 119], np.int32)
    segments = [(sequence, 40) for sequence in sequences]
    made.native.run(np.concatenate(parts), segments, rows)
    assert same_bits(made.logits(), whole[[start + 39 for start in starts]])


def test_states_count_among_the_pages() -> None:
    made = plan()
    cache = made.cache
    sequence = grown(made, [100])
    pages, states = 3, 4  # behind 64, 100, 128 and 150 positions
    each = made.native.state_bytes / made.native.page_bytes
    assert cache.pages_in_use == pages + int(np.ceil(states * each))
    assert sequence.pages_held == cache.pages_in_use
    fork = sequence.fork(128)
    assert cache.pages_in_use == sequence.pages_held
    needed, used = sequence.pages_needed(50), cache.pages_in_use
    feed(made, sequence, TOKENS[:50])
    assert used < cache.pages_in_use <= used + needed
    cache.limit = cache.pages_in_use
    with pytest.raises(_native.CacheFullError):
        feed(made, fork, TOKENS[:100])
    assert fork.length == 128
    for one in (fork, sequence):
        one.truncate(0)
    assert cache.pages_in_use == 0
    assert cache.trim() > 0
    assert cache.allocated_bytes == 0


# --- the convolution ---------------------------------------------------------------------------


def convolved(isa: str, x: F32, cuts: list[int], **operands: Any) -> F32:
    """What the step makes of the rows of x, given in runs that end at `cuts`."""
    m, k = x.shape
    weight = operands["weight"]
    r = _native.Recording(2, m, 1, m, "f32", isa)
    rows = (r.embed(pack(x, "f32")), 0, k)
    factors = {n: (r.embed(pack(operands[n], "f32")), 0, k) for n in ("before", "behind")}
    step = r.convolution(
        rows, weight.reshape(-1), operands["bias"], **factors, activation=operands["activation"]
    )
    logits = r.linear(r.select((step, 0, k)), [(pack(np.zeros((m, k), np.float32), "f32"), None)])
    made = r.finish(logits)
    sequence, found, start = made.make_cache().sequence(), [], 0
    for end in [*cuts, m]:
        tokens = np.arange(start, end, dtype=np.int32)
        made.run(tokens, [(sequence, end - start)], np.zeros(1, np.int32))
        found.append(made.read(step))
        start = end
    return np.concatenate(found)


@pytest.mark.parametrize("taps", [2, 3, 4, 8])
@pytest.mark.parametrize("k", [20, 64, 100])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_convolution(taps: int, k: int, activation: str | None) -> None:
    m = 70
    x, before, behind = (normal(m, k, seed=seed) for seed in range(3))
    weight, bias = normal(k, taps, seed=4), normal(k, seed=5)
    operands = {
        "weight": weight,
        "bias": bias,
        "before": before,
        "behind": behind,
        "activation": activation,
    }
    want = convolved("scalar", x, [], **operands)
    for isa in ISAS:
        for cuts in ([], [1, 2, 3], [63, 64, 65], list(range(1, m))):
            assert same_bits(convolved(isa, x, cuts, **operands), want), (isa, cuts)
    if activation is not None:
        return
    inputs = np.concatenate([np.zeros((taps - 1, k)), np.float64(before) * x])
    terms = [np.float64(weight[:, j]) * inputs[j : j + m] for j in range(taps)]
    exact = behind * (bias + sum(terms))
    size = np.abs(behind) * (np.abs(bias) + sum(np.abs(term) for term in terms))
    assert_within(want, exact, gamma(taps + 3) * size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": normal(64)}, "convolution: expected 2..8 taps for each of 64 channels, got 64"),
        ({"weight": normal(65)}, "expected 2..8 taps for each of 64 channels, got 65 values"),
        ({"weight": normal(64 * 9)}, "expected 2..8 taps for each of 64 channels, got 576"),
        ({"bias": normal(63)}, "convolution: expected a bias of 64 values, got 63"),
        ({"before": (0, 0, 32)}, "convolution: expected factors of width 64, got 32"),
        ({"behind": (-1, 0, 64)}, "convolution behind: expected a buffer, got -1"),
        ({"activation": "mish"}, "got 'mish'"),
    ],
    ids=str,
)
def test_convolutions_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    r = _native.Recording(1, 8, 1, 64)
    x = (r.embed(pack(normal(64, 64), "f32")), 0, 64)
    with pytest.raises(ValueError, match=message):
        r.convolution(**({"x": x, "weight": normal(128)} | change))


def test_a_convolution_behind_the_selection() -> None:
    r = _native.Recording(1, 8, 1, 64)
    chosen = (r.select((r.embed(pack(normal(64, 64), "f32")), 0, 64)), 0, 64)
    with pytest.raises(ValueError, match="convolution: record it before select"):
        r.convolution(chosen, normal(128))
