"""Answers with adapters: among others, from warm caches, loaded and forgotten at any time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lora_files import layer_modules, peft_folder, random_pairs
from numpy_weights import read_safetensors

import slmq
from slmq.errors import CheckpointError, ClosedError
from slmq.generation.model import Model

PROMPT = [5, 17, 3, 60, 21, 9, 44] * 12
PARAMS: dict[str, Any] = {"max_tokens": 8, "ignore_eos": True, "logprobs": 2}


@pytest.fixture(scope="module")
def folders(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    weights = read_safetensors(tiny_model_path / "model.safetensors")
    root = tmp_path_factory.mktemp("adapters")
    modules = layer_modules(weights)
    return [
        peft_folder(root / f"style-{i}", random_pairs(weights, modules, rank=4, seed=i))
        for i in range(2)
    ]


@pytest.fixture
def model(tiny_model_path: Path) -> Iterator[Model]:
    with slmq.load(tiny_model_path, n_ctx=512) as loaded:
        yield loaded


def said(result: Any) -> tuple[Any, ...]:
    return result.text, result.tokens, result.logprobs


def test_answers_with_and_without(model: Model, tiny_model_path: Path, folders: list[Path]) -> None:
    """Each is the answer that it gets alone in a fresh model, whoever else asks, cold and warm."""
    before = said(model.generate(PROMPT, **PARAMS))
    names = [model.load_adapter(folder) for folder in folders]
    assert names == list(model.adapters) == ["style-0", "style-1"]
    alone = {None: before}
    for name, folder in zip(names, folders, strict=True):
        with slmq.load(tiny_model_path, n_ctx=512) as fresh:
            fresh.load_adapter(folder, name)
            alone[name] = said(fresh.generate(PROMPT, adapter=name, **PARAMS))
    assert len({str(answer) for answer in alone.values()}) == 3
    found: list[tuple[str | None, Any]] = []

    def ask(name: str | None) -> None:
        for _ in range(3):
            found.append((name, said(model.generate(PROMPT, adapter=name, **PARAMS))))

    threads = [threading.Thread(target=ask, args=(name,)) for name in (None, *names) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 18
    for name, answer in found:
        assert answer == alone[name]


def test_what_was_computed_with_one_is_not_used_with_another(
    model: Model, folders: list[Path]
) -> None:
    for folder in folders:
        model.load_adapter(folder)
    first = model.generate(PROMPT, adapter="style-0", **PARAMS)
    assert first.cached_tokens == 0
    assert model.generate(PROMPT, adapter="style-1", **PARAMS).cached_tokens == 0
    assert model.generate(PROMPT, **PARAMS).cached_tokens == 0
    again = model.generate(PROMPT, adapter="style-0", **PARAMS)
    assert again.cached_tokens == len(PROMPT) - 1
    assert said(again) == said(first)
    # The same adapter under another name computes the same.
    model.load_adapter(folders[0], "twin")
    assert model.generate(PROMPT, adapter="twin", **PARAMS).cached_tokens == len(PROMPT) - 1


def test_one_that_is_forgotten_or_replaced_meanwhile(model: Model, folders: list[Path]) -> None:
    model.load_adapter(folders[0], "a")
    whole = said(model.generate(PROMPT, adapter="a", **PARAMS))
    stream = model.stream(PROMPT, adapter="a", **PARAMS)
    next(stream)
    model.load_adapter(folders[1], "a")
    other = said(model.generate(PROMPT, adapter="a", **PARAMS))
    model.unload_adapter("a")
    assert said(stream.finish()) == whole != other
    assert model.adapters == {}
    with pytest.raises(ValueError, match=r"adapter: expected one that is loaded \(none\), got 'a'"):
        model.generate(PROMPT, adapter="a")
    with pytest.raises(ValueError, match="expected one that is loaded"):
        model.unload_adapter("a")


def test_what_cannot_be_loaded(model: Model, folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected an adapter"):
        model.load_adapter(tmp_path)
    with pytest.raises(ValueError, match="name: expected a text"):
        model.load_adapter(folders[0], "")
    with pytest.raises(TypeError, match="adapter: expected a str"):
        model.generate(PROMPT, adapter=3)  # type: ignore[arg-type]
    assert model.generate(PROMPT, **PARAMS).finish_reason == "length"
    model.close()
    with pytest.raises(ClosedError):
        model.load_adapter(folders[0])
