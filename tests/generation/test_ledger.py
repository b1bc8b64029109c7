"""What answers cost adds up to what the engine did; what is foretold comes about."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import slmq
from slmq import Model
from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.errors import BusyError
from slmq.generation.scheduler import Scheduler

SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 12}}}


@pytest.fixture
def model(tiny_model_path: Path) -> Iterator[Model]:
    with slmq.load(tiny_model_path, n_ctx=2048) as loaded:
        yield loaded


def test_answers_add_up_to_the_time_of_the_engine(model: Model) -> None:
    """Finished, cancelled and constrained ones together, in runs that they shared."""
    streams = [
        model.submit([1] + [i + 1] * 60 * i, {"max_tokens": 30, "ignore_eos": True})
        for i in range(9)
    ]
    streams.append(model.submit("Hi", {"max_tokens": 40, "schema": SCHEMA}))
    streams[4].close()
    results = [stream.finish() for i, stream in enumerate(streams) if i != 4]
    while not all(stream.at_rest for stream in streams):
        time.sleep(0.001)
    ledgers = [stream.ledger for stream in streams]
    spent_s = sum(ledger.prompt_s + ledger.decode_s for ledger in ledgers)
    assert math.isclose(spent_s, model.stats().busy_s, rel_tol=1e-9)
    assert all(result.ledger.prompt_s > 0 for result in results)
    assert all(result.ledger.decode_s > 0 for result in results)
    assert results[-1].ledger.mask_s > 0
    assert results[0].ledger.mask_s == 0
    assert sum(ledger.cpu_s for ledger in ledgers) > 0


def test_who_has_more_rows_in_a_run_bears_more_of_it(tiny_model_path: Path) -> None:
    engine = open_engine(tiny_model_path, LoadOptions(n_ctx=2048, n_threads=1), name="tiny")
    with Model(engine, Scheduler(engine, drive=False)) as model:
        short = model.submit([7] * 4, {"max_tokens": 2})
        long = model.submit([8] * 40, {"max_tokens": 2})
        model._scheduler.step()
        assert long.ledger.prompt_s > short.ledger.prompt_s > 0
        both_s = long.ledger.prompt_s + short.ledger.prompt_s
        assert math.isclose(both_s, model.stats().busy_s, rel_tol=1e-9)


def test_longer_queues_are_foretold_longer_waits(tiny_model_path: Path) -> None:
    engine = open_engine(tiny_model_path, LoadOptions(n_ctx=2048, n_threads=1), name="tiny")
    with Model(engine, Scheduler(engine, most_running=2, most_waiting=8, drive=False)) as model:
        streams = [model.submit([i + 1, 2, 3], {"max_tokens": 50}) for i in range(2)]
        model._scheduler.step()
        streams += [model.submit([9, i + 1, 3], {"max_tokens": 50}) for i in range(8)]
        expected = [stream.expected_s for stream in streams[2:]]
        assert expected == sorted(expected)
        assert expected[-1] > 2 * expected[0] > 0
        waits = []
        for _ in range(3):
            with pytest.raises(BusyError) as caught:
                model.submit([5], {"max_tokens": 5})
            waits.append(caught.value.retry_after_s)
        # Each that is sent away is told of a place of its own.
        assert 0 < waits[0] <= waits[1] < waits[2]


def test_a_prompt_that_is_known_is_expected_sooner(model: Model) -> None:
    prompt = [i % 200 + 1 for i in range(1500)]
    cold = model.submit(prompt, {"max_tokens": 2})
    cold.finish()
    warm = model.submit(prompt, {"max_tokens": 2})
    warm.finish()
    assert warm.expected_s < cold.expected_s / 3
