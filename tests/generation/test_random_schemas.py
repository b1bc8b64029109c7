"""Answers under random schemas: all of them validate, and every one ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_schemas import schemas

import slmq
from slmq.errors import ConstraintError

COUNT = 500
LOUD = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def tiny(tiny_model_path: Path) -> Iterator[slmq.Model]:
    with slmq.load(tiny_model_path, n_ctx=2048) as model:
        yield model


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[slmq.Model]:
    with slmq.load(smollm2_path, n_ctx=2048) as model:
        yield model


def check(model: slmq.Model, schema: dict[str, Any], seed: int) -> bool:
    """Whether the schema was taken; then an answer to it ends, and validates."""
    try:
        result = model.generate("Some JSON:\n", schema=schema, temperature=1.0, seed=seed)
    except ConstraintError as error:
        if "nothing fulfils" in str(error) or "Unsatisfiable" in str(error):
            return False
        raise
    assert result.finish_reason == "stop"
    assert result.complete
    jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    ).validate(result.parsed)
    return True


def check_many(model: slmq.Model) -> None:
    taken: list[bool] = []

    @settings(max_examples=COUNT, deadline=None, suppress_health_check=LOUD, derandomize=True)
    @given(schema=schemas(), seed=st.integers(0, 2**64 - 1))
    def check_one(schema: dict[str, Any], seed: int) -> None:
        taken.append(check(model, schema, seed))

    check_one()
    assert len(taken) >= COUNT
    assert sum(taken) > 0.95 * len(taken)


def test_a_random_model_validates(tiny: slmq.Model) -> None:
    check_many(tiny)


@pytest.mark.slow
def test_a_real_model_validates(smollm2: slmq.Model) -> None:
    """It ends by itself, too: what is open is closed before the context is full."""
    check_many(smollm2)
