"""Many prompts and many samples: the same answers as one by one; real engine, tiny model."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import slmq
from slmq.errors import BusyError, ClosedError, ContextOverflowError
from slmq.generation.model import Model
from slmq.generation.scheduler import Scheduler
from slmq.generation.window import IN_FLIGHT

PARAMS: dict[str, Any] = {
    "max_tokens": 9, "ignore_eos": True, "temperature": 1.1, "seed": 4, "logprobs": 2,
}  # fmt: skip
PROMPTS = [[(5 * i + j) % 60 + 1 for j in range(3 + 7 * i % 23)] for i in range(100)]


@pytest.fixture(scope="module")
def model(tiny_model_path: Path) -> Iterator[Model]:
    with slmq.load(tiny_model_path, n_ctx=512) as loaded:
        yield loaded


def said(result: object) -> tuple[object, ...]:
    assert isinstance(result, slmq.GenerationResult)
    return result.text, result.tokens, result.logprobs, result.finish_reason, result.seed


def alone(model: Model, prompt: Any, **params: Any) -> tuple[object, ...]:
    return said(model.generate(prompt, **params))


def idle(model: Model) -> bool:
    """Whether nothing is under way, within a while."""
    until = time.monotonic() + 20
    while model.stats().running + model.stats().waiting > 0:
        if time.monotonic() > until:
            return False
        model.generate([1], max_tokens=1)  # whatever was dropped is noticed by the next run
    return True


# ------------------------------------------------------------------ map


def test_map_gives_in_order_what_each_gets_alone(model: Model) -> None:
    found = [said(result) for result in model.map(PROMPTS, **PARAMS)]
    assert found == [alone(model, prompt, **PARAMS) for prompt in PROMPTS]


def test_map_as_they_finish_names_each(model: Model) -> None:
    found = {i: said(result) for i, result in model.map(PROMPTS, ordered=False, **PARAMS)}
    assert [found[i] for i in range(len(PROMPTS))] == [
        alone(model, prompt, **PARAMS) for prompt in PROMPTS
    ]


def test_a_short_answer_overtakes_when_order_does_not_matter(tiny_model_path: Path) -> None:
    with slmq.load(tiny_model_path, n_ctx=4096) as loaded:
        stepped = Model(loaded.engine, Scheduler(loaded.engine, drive=False))
        long = [(3 * i) % 60 + 1 for i in range(3 * loaded.engine.chunk)]
        prompts = [long, [5, 6]]
        assert [i for i, _ in stepped.map(prompts, ordered=False, max_tokens=1)] == [1, 0]
        found = list(stepped.map(prompts, max_tokens=1))
        assert [result.prompt_tokens for result in found] == [len(long), 2]


def test_map_takes_prompts_as_there_is_room(model: Model) -> None:
    taken = 0

    def endless() -> Iterator[list[int]]:
        nonlocal taken
        while True:
            taken += 1
            yield [1 + taken % 60, 7]

    results = model.map(endless(), max_tokens=2)
    assert taken == 0
    for _ in range(10):
        next(results)
    assert IN_FLIGHT <= taken <= IN_FLIGHT + 10
    del results
    assert idle(model)


@pytest.mark.parametrize("ordered", [True, False])
def test_an_error_takes_the_place_of_its_result(model: Model, ordered: bool) -> None:
    prompts: list[Any] = [[5, 6], "", [7, 8], [999_999], 17, [9]]
    found: dict[int, Any] = {}
    if ordered:
        found = dict(enumerate(model.map(prompts, errors="return", max_tokens=2)))
    else:
        found = dict(model.map(prompts, ordered=False, errors="return", max_tokens=2))
    kinds = [type(found[i]) for i in range(len(prompts))]
    good = slmq.GenerationResult
    assert kinds == [good, ValueError, good, ValueError, TypeError, good]
    assert said(found[5]) == alone(model, [9], max_tokens=2)


def test_a_raised_error_cancels_the_others(model: Model) -> None:
    prompts: list[Any] = [[5, 6], [1] * 600, *[[7, 8]] * 20]
    results = model.map(prompts, max_tokens=200, ignore_eos=True)
    next(results)
    with pytest.raises(ContextOverflowError, match="600 tokens"):
        next(results)
    assert idle(model)
    with pytest.raises(StopIteration):
        next(results)


def test_an_error_of_the_iterable_is_raised(model: Model) -> None:
    def failing() -> Iterator[list[int]]:
        yield [5]
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        list(model.map(failing(), errors="return", max_tokens=1))


def test_a_dropped_map_cancels(model: Model) -> None:
    gc.disable()  # it must not take the collector
    try:
        cancelled = model.stats().cancelled
        prompts: list[Any] = ["", *([i + 1] for i in range(30))]  # the first is refused at once
        for _ in model.map(prompts, errors="return", max_tokens=400, ignore_eos=True):
            break
        assert idle(model)
        assert model.stats().cancelled >= cancelled + 30
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ("text", {}, "expected an iterable of prompts, got str; generate answers a single one"),
        ({"role": "user"}, {}, "expected an iterable of prompts, got dict"),
        (5, {}, "expected an iterable of prompts, got int"),
        ([[1]], {"errors": "ignore"}, "errors: expected 'raise' or 'return', got 'ignore'"),
        ([[1]], {"temprature": 1}, "did you mean 'temperature'"),
    ],
)
def test_bad_arguments_are_told_at_the_call(
    model: Model, prompts: Any, params: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        model.map(prompts, **params)


@pytest.mark.parametrize("prompts", [["a", "b"], [[1, 2], [3]], ("a",)])
def test_generate_names_map(model: Model, prompts: Any) -> None:
    with pytest.raises(TypeError, match=r"expected one prompt, got \d of them.*m\.map\(prompts\)"):
        model.generate(prompts)


def test_progress_is_reported(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int | None]] = []
    list(model.map(PROMPTS[:3], max_tokens=1, progress=lambda *at: seen.append(at)))
    list(model.map(iter(PROMPTS[:1]), max_tokens=1, progress=lambda *at: seen.append(at)))
    list(model.map((p for p in PROMPTS[:1]), max_tokens=1, progress=lambda *at: seen.append(at)))
    assert seen == [(1, 3), (2, 3), (3, 3), (1, 1), (1, None)]
    list(model.map(PROMPTS[:3], max_tokens=1, progress=True))
    assert capsys.readouterr() == ("", "")  # stderr is no terminal here


def test_a_full_queue_is_waited_for(tiny_model_path: Path) -> None:
    with slmq.load(tiny_model_path, n_ctx=256) as loaded:
        small = Model(loaded.engine, Scheduler(loaded.engine, most_running=2, most_waiting=1))
        found = [said(result) for result in small.map(PROMPTS[:20], **PARAMS)]
        assert found == [alone(loaded, prompt, **PARAMS) for prompt in PROMPTS[:20]]
        assert small.stats().submitted == 20


@pytest.mark.parametrize("ordered", [True, False])
def test_without_a_driver_whoever_takes_results_steps(tiny_model_path: Path, ordered: bool) -> None:
    with slmq.load(tiny_model_path, n_ctx=256) as loaded:
        stepped = Model(loaded.engine, Scheduler(loaded.engine, drive=False))
        found = list(stepped.map(PROMPTS[:5], ordered=ordered, max_tokens=3))
        assert len(found) == 5


@pytest.mark.parametrize("ordered", [True, False])
def test_who_has_the_engine_alone_is_not_kept_waiting(model: Model, ordered: bool) -> None:
    results: Iterator[Any] = model.map(PROMPTS[:5], ordered=ordered, max_tokens=3)
    with model.exclusive(), pytest.raises(BusyError, match="this thread has the engine"):
        next(results)
    assert idle(model)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_model_closed_under_a_map(tiny_model_path: Path, ordered: bool) -> None:
    loaded = slmq.load(tiny_model_path, n_ctx=4096)
    results: Iterator[Any] = loaded.map(
        PROMPTS[:10], ordered=ordered, errors="return", max_tokens=4000, ignore_eos=True
    )
    closer = threading.Timer(0.1, loaded.close)
    closer.start()
    found = list(results)
    closer.join()
    errors = [item if ordered else item[1] for item in found]
    assert len(errors) == 10
    assert all(isinstance(error, ClosedError) for error in errors)
    with pytest.raises(ClosedError):
        loaded.map([[1]])


def test_a_model_closed_under_generate(tiny_model_path: Path) -> None:
    loaded = slmq.load(tiny_model_path, n_ctx=4096)
    closer = threading.Timer(0.1, loaded.close)
    closer.start()
    with pytest.raises(ClosedError, match="its stream or its model was closed"):
        loaded.generate([5, 6], max_tokens=4000, ignore_eos=True)
    closer.join()


# ------------------------------------------------------------------ samples


def test_samples_have_seeds_of_their_own_and_share_the_prompt(model: Model) -> None:
    prompt = [(11 * i) % 60 + 1 for i in range(200)]
    found = model.samples(prompt, n=5, **PARAMS)
    assert found[0].cached_tokens < 5
    assert [result.cached_tokens for result in found[1:]] == [199] * 4
    wanted = [alone(model, prompt, **{**PARAMS, "seed": 4 + i}) for i in range(5)]
    assert [said(result) for result in found] == wanted
    assert len({tuple(result.tokens) for result in found}) == 5


def test_seeds_of_samples_wrap_and_are_fresh_without_one(model: Model) -> None:
    last = 2**64 - 1
    found = model.samples([5, 6], 3, temperature=1.0, seed=last, max_tokens=2)
    assert [result.seed for result in found] == [last, 0, 1]
    first, second = (model.samples([5, 6], 2, temperature=1.0, max_tokens=1) for _ in range(2))
    assert first[0].seed is not None
    assert first[0].seed != second[0].seed
    assert first[1].seed == (first[0].seed + 1) % 2**64


@pytest.mark.parametrize("n", [0, -1, True, 1.0, "2"])
def test_a_number_of_samples_is_checked(model: Model, n: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="n: expected an int >= 1"):
        model.samples([5], n)


def test_generate_names_samples(model: Model) -> None:
    wrong: dict[str, Any] = {"n": 3}
    with pytest.raises(TypeError, match=r"m\.samples\(prompt, n\)"):
        model.generate([5], **wrong)
