"""Parameters of sampling: what is refused, and what the refusal says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from slmq.generation.sampling import SamplingParams


def test_defaults_are_greedy_and_of_usual_length() -> None:
    params = SamplingParams()
    assert (params.temperature, params.max_tokens, params.seed) == (0.0, "auto", None)
    assert params.stop_strings == ()
    assert params.stop_tokens == frozenset()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.0001),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", math.nan),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: math.inf}),
        ("logit_bias", {1: 1e39}),
        ("seed", -1),
        ("seed", 2**64),
        ("max_tokens", -2),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", ["a"] * 65),
        ("stop", -1),
        ("logprobs", -1),
    ],
)
def test_values_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*expected.*got"):
        SamplingParams.from_kwargs({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "1"),
        ("temperature", None),
        ("temperature", True),
        ("temperature", 1j),
        ("top_k", 1.0),
        ("top_k", True),
        ("top_p", "0.9"),
        ("min_p", None),
        ("logit_bias", [(1, 2.0)]),
        ("logit_bias", {"1": 2.0}),
        ("logit_bias", {1: "2"}),
        ("seed", 1.5),
        ("seed", True),
        ("max_tokens", "5"),
        ("stop", 1.5),
        ("stop", b"end"),
        ("stop", [b"end"]),
        ("stop", [None]),
        ("ignore_eos", 1),
        ("ignore_eos", None),
        ("logprobs", True),
        ("logprobs", 1.0),
    ],
)
def test_wrong_types_are_named(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"{name}.*expected.*got"):
        SamplingParams.from_kwargs({name: value})


def test_unknown_parameters_name_their_neighbour() -> None:
    with pytest.raises(TypeError, match="'temprature'; did you mean 'temperature'"):
        SamplingParams.from_kwargs({"temprature": 1})
    with pytest.raises(TypeError, match="unknown parameter 'xyz'"):
        SamplingParams.from_kwargs({"xyz": 1})


def test_numpy_numbers_become_plain_ones() -> None:
    params = SamplingParams(
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_k=np.int64(4),  # type: ignore[arg-type]
        logit_bias={np.int32(3): np.float64(1.5), 4: -math.inf},  # type: ignore[dict-item]
        seed=np.uint64(2**64 - 1),  # type: ignore[arg-type]
        stop=("a", np.int16(7)),  # type: ignore[arg-type]
    )
    assert type(params.temperature) is float
    assert type(params.top_k) is int
    assert params.seed == 2**64 - 1
    assert params.logit_bias == {3: 1.5, 4: -math.inf}
    assert params.stop_strings == ("a",)
    assert params.stop_tokens == {7}
