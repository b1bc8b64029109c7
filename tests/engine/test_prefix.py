"""The store of prefixes against a list that is searched from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from answers import open_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq.engine.engine import Engine
from slmq.engine.prefix import PrefixStore
from slmq.engine.sequence import TokenSequence

Key = tuple[object, tuple[int, ...]]


@pytest.fixture(scope="module")
def engine(tiny_model_path: Path) -> Engine:
    return open_tiny(tiny_model_path)


def sequence_of(engine: Engine, ids: list[int]) -> TokenSequence:
    sequence = engine.sequence()
    if ids:
        engine.feed(sequence, ids, logits="none")
    return sequence


def shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


class Plain:
    """What the store should do, said without a tree."""

    def __init__(self) -> None:
        self.worth: dict[Key, float] = {}
        self.clock = 0.0

    def longest(self, salt: object, ids: tuple[int, ...]) -> int:
        return max((shared(k, ids) for s, k in self.worth if s == salt), default=0)

    def insert(self, salt: object, ids: tuple[int, ...], cost: float) -> None:
        mine = [k for s, k in self.worth if s == salt]
        if not ids or any(shared(k, ids) == len(ids) for k in mine):
            return
        for k in mine:
            if shared(k, ids) == len(k):
                del self.worth[salt, k]
        self.worth[salt, ids] = self.clock + cost

    def evict(self) -> None:
        least = min(self.worth, key=lambda key: self.worth[key])
        self.clock = max(self.clock, self.worth.pop(least))


tokens = st.lists(st.integers(1, 3), max_size=9)
long_tokens = st.builds(lambda n, ids: [1, 2] * n + ids, st.integers(0, 70), tokens)
actions = st.one_of(
    st.tuples(st.just("insert"), st.sampled_from([None, "a"]), st.one_of(tokens, long_tokens)),
    st.tuples(st.just("use"), st.sampled_from([None, "a"]), tokens),
    st.tuples(st.just("evict"), st.none(), st.just([])),
    st.tuples(st.just("clear"), st.none(), st.just([])),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(actions, max_size=40))
def test_against_a_plain_list(engine: Engine, done: list[tuple[str, object, list[int]]]) -> None:
    store, plain = PrefixStore(), Plain()
    for step, (what, salt, ids) in enumerate(done):
        key, cost = tuple(ids), 1.0 + step * 1e-3  # no two are worth the same
        if what == "insert":
            store.insert(salt, sequence_of(engine, ids), cost)
            plain.insert(salt, key, cost)
        elif what == "use":
            found, length = store.longest(salt, np.array(ids, np.int32))
            assert length == plain.longest(salt, key)
            assert (found is None) == (length == 0)
            if found is not None:
                assert tuple(found.tokens)[:length] == key[:length]
                assert (salt, tuple(found.tokens)) in plain.worth
                store.use(found, cost)
                plain.worth[salt, tuple(found.tokens)] = plain.clock + cost
        elif what == "evict":
            assert store.evict() == bool(plain.worth)
            if plain.worth:
                plain.evict()
        else:
            store.clear()
            plain.worth.clear()
        assert sorted(tuple(s.tokens) for s in store.sequences) == sorted(k for _, k in plain.worth)
        assert len(store) == len(plain.worth)
        assert store.pages == sum(-(-len(k) // 64) for _, k in plain.worth)
        assert engine.plan.cache.pages_in_use == store.pages
        assert all(s in store for s in store.sequences)
    store.clear()
    assert engine.plan.cache.pages_in_use == 0
    assert store.longest(None, np.array([1], np.int32)) == (None, 0)


def test_a_growing_conversation_leaves_one_node(engine: Engine) -> None:
    """Ten turns that each continue the one before do not make the way to the last one longer."""
    store = PrefixStore()
    for length in range(1, 11):
        store.insert(None, sequence_of(engine, list(range(1, length + 1))), 1.0)
    root = store._roots[None]
    (only,) = root.children.values()
    assert only.edge.tolist() == list(range(1, 11))
    assert not only.children
    assert store.evict()
    assert not store.evict()
    assert engine.plan.cache.pages_in_use == 0
