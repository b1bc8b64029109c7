"""Answers of models that reason first: over random weights, with tokens that begin and end it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from thinking_model import BIAS, CLOSE, OPEN, thinking_folder

import slmq
from slmq import Model

USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def model(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = thinking_folder(tiny_model_path, tmp_path_factory.mktemp("thinker") / "tiny")
    with slmq.load(folder, n_ctx=2048) as m:
        assert m.tokenizer.markers["<think>"] == OPEN
        yield m


def answer(model: Model, **params: Any) -> Any:
    given = {"max_tokens": 200, "temperature": 1.0, "seed": 3, "logit_bias": BIAS, **params}
    return model.generate(USER, **given)


def test_reasoning_is_no_part_of_the_text(model: Model) -> None:
    result = answer(model, ignore_eos=True)
    assert CLOSE in result.tokens
    at = result.tokens.index(CLOSE)
    begun = model.tokenizer.decode(result.tokens[:at])
    assert result.reasoning == begun.strip("\n")
    assert result.reasoning
    assert "</think>" not in result.text + result.reasoning
    with model.stream(
        USER, max_tokens=200, temperature=1.0, seed=3, logit_bias=BIAS, ignore_eos=True
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.reasoning for chunk in chunks) == result.reasoning
    assert "".join(chunk.text for chunk in chunks) == result.text


def test_without_thinking_all_is_text(model: Model) -> None:
    result = answer(model, thinking=False, max_tokens=12, logit_bias={CLOSE: -100.0})
    assert result.reasoning == ""
    assert answer(model, chat_template_kwargs={"enable_thinking": False}, max_tokens=4).text


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ({"schema": {"enum": ["red", "green"]}}, ("red", "green")),
        ({"choices": ["red", "green"]}, ("red", "green")),
        ({"regex": "a|b"}, ("a", "b")),
        ({"grammar": 'start: "a" | "b"'}, ("a", "b")),
    ],
)
def test_a_value_comes_behind_the_reasoning(model: Model, shape: Any, values: Any) -> None:
    result = answer(model, **shape)
    assert result.reasoning
    assert result.parsed in values
    direct = answer(model, **shape, thinking=False)
    assert direct.reasoning == ""
    assert direct.parsed in values


def test_calls_come_behind_the_reasoning(model: Model) -> None:
    def stop() -> str:
        """Stop it."""
        return "stopped"

    result = answer(model, tools=[stop], tool_choice="stop", max_tokens=400)
    assert [call.name for call in result.tool_calls] == ["stop"]
    assert CLOSE in result.tokens
    assert result.text == ""
    chat = model.chat(
        tools=[stop], tool_choice="stop", max_rounds=1, max_tokens=300, logit_bias=BIAS
    )
    chat.send("hello")
    said = chat.messages[1]
    assert said["tool_calls"]
    assert said["content"] == ""


def test_plain_prompts_are_completed_as_they_are(model: Model) -> None:
    result = model.generate("<think>", max_tokens=30, temperature=1.0, seed=3, logit_bias=BIAS)
    assert result.reasoning == ""
