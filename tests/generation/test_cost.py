"""The model of a run's time: it finds the terms of planted runs, and stays sane."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq.generation.cost import CostModel, Work

PLANTED = [
    (4e-3, 8e-4, 5e-5, 2e-4),
    (3e-4, 2e-5, 1e-6, 5e-6),
    (9e-2, 2e-2, 1e-3, 4e-3),
    (4e-3, 1e-3, 0.0, 0.0),
]


def planted(terms: tuple[float, ...], work: Work) -> float:
    step, row, position, output = terms
    return step + row * work.rows + position * work.positions / 1024 + output * work.outputs


def some_work(rng: random.Random) -> Work:
    work = Work()
    for _ in range(rng.randrange(9)):
        work.add(1, rng.randrange(2000), 1)
    if rng.random() < 0.4 or not work.rows:
        work.add(rng.randint(1, 256), rng.randrange(2000), rng.randrange(2))
    return work


@pytest.mark.parametrize("terms", PLANTED)
def test_planted_terms_are_found(terms: tuple[float, ...]) -> None:
    """To a tenth of every run's time, which is the noise in what it learns from."""
    rng, model = random.Random(2), CostModel()
    for _ in range(600):
        work = some_work(rng)
        model.learn(work, planted(terms, work) * rng.uniform(0.95, 1.05))
    for _ in range(100):
        work = some_work(rng)
        assert model.seconds(work) == pytest.approx(planted(terms, work), rel=0.1)
    assert model.step_s == pytest.approx(terms[0], rel=0.15)
    assert model.runs == 600


def test_it_follows_when_the_machine_changes() -> None:
    rng, model = random.Random(4), CostModel()
    for slower in (1.0, 3.0, 0.5):
        for _ in range(500):
            work = some_work(rng)
            model.learn(work, slower * planted(PLANTED[0], work))
        work = some_work(rng)
        expected = slower * planted(PLANTED[0], work)
        assert model.seconds(work) == pytest.approx(expected, rel=0.05)


def test_decoding_alone_does_not_spoil_the_rest() -> None:
    """Thousands of equal runs say nothing about prompts; what was known of them stays about so."""
    rng, model = random.Random(5), CostModel()
    for _ in range(500):
        work = some_work(rng)
        model.learn(work, planted(PLANTED[0], work))
    for length in range(5000):
        work = Work()
        for _ in range(4):
            work.add(1, 100 + length % 300, 1)
        model.learn(work, planted(PLANTED[0], work) * rng.uniform(0.9, 1.1))
    prompt = Work()
    prompt.add(256, 0, 1)
    assert 0.5 < model.seconds(prompt) / planted(PLANTED[0], prompt) < 2.0


seconds = st.one_of(st.just(0.0), st.floats(1e-9, 1e6), st.sampled_from([1e-12, 1e9, 1e30]))
works = st.builds(Work, st.integers(1, 4096), st.integers(1, 10**8), st.integers(0, 64))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(works, seconds), max_size=60), works, st.integers(0, 100_000))
def test_never_negative_nor_without_end(
    seen: list[tuple[Work, float]], work: Work, cached: int
) -> None:
    model = CostModel()
    for one, took_s in seen:
        model.learn(one, took_s)
        assert np.isfinite(model._terms).all()
        assert np.isfinite(model._known).all()
        assert min(model._terms) >= 0
    assert 0 <= model.seconds(work) < math.inf
    for budget_s in (0.0, 1e-3, 40e-3, 10.0):
        rows = model.rows_within(budget_s, work, cached)
        assert 0 <= rows <= 1 << 30
        if rows:
            assert cost_of(model, work, cached, rows) <= budget_s * (1 + 1e-6) + 1e-12
        if rows < 1 << 30 and model.seconds(work) <= budget_s:
            assert cost_of(model, work, cached, rows + 1) > budget_s * (1 - 1e-6)


def cost_of(model: CostModel, work: Work, cached: int, rows: int) -> float:
    more = Work(work.rows, work.positions, work.outputs)
    more.add(rows, cached, 0)
    return model.seconds(more)
