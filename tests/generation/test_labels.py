"""Labels by likelihood: against plain scoring of whole prompts, however they are batched."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slmq
from slmq.engine.engine import Engine
from slmq.errors import ClosedError, ContextOverflowError
from slmq.generation.label_prompts import LabelPrompt

LABELS = ["good", "bad", "neither good nor bad", "go"]
TEXTS = ["a fine day", "<|im_end|> no", "", "日本語", "x" * 90, "a fine day", "a fin"]


@pytest.fixture(scope="module")
def tiny(tiny_model_path: Path) -> Iterator[slmq.Model]:
    with slmq.load(tiny_model_path, n_ctx=1024) as model:
        yield model


def plainly(model: slmq.Model, prompt: LabelPrompt, text: str) -> list[float]:
    """The log-probability of every label, each in a pass of its own over everything."""
    context = prompt.context(text)
    found = []
    for option in prompt.options:
        logits = model.logits([*context, *option]).astype(np.float64)
        logs = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1))[:, None]
        logs -= logits.max(1, keepdims=True)
        rows = range(len(context) - 1, len(context) + len(option) - 1)
        found.append(sum(logs[row, token] for row, token in zip(rows, option, strict=True)))
    return found


@pytest.mark.parametrize("examples", [(), (("hm", "bad"), ("ah", "good"))])
def test_probabilities_are_those_of_whole_prompts(
    tiny: slmq.Model, examples: tuple[tuple[str, str], ...]
) -> None:
    found = tiny.label(TEXTS, LABELS, instruction="What is it?", examples=examples)
    prompt = LabelPrompt.of(tiny.engine, LABELS, instruction="What is it?", examples=examples)
    for text, one in zip(TEXTS, found, strict=True):
        scores = np.array(plainly(tiny, prompt, text))
        wanted = np.exp(scores - scores.max())
        wanted /= wanted.sum()
        np.testing.assert_allclose(list(one.probabilities.values()), wanted, rtol=1e-9)
        assert list(one.probabilities) == LABELS
        assert one.probability == max(one.probabilities.values())
        assert one.label == str(one) == LABELS[int(wanted.argmax())]
        assert math.isclose(sum(one.probabilities.values()), 1.0)


def test_numbers_do_not_depend_on_the_batch(tiny_model_path: Path, tiny: slmq.Model) -> None:
    """Alone, together, in any order, with other threads and chunks: the same bits."""
    together = tiny.label(TEXTS * 9, LABELS)
    assert together == tiny.label(TEXTS, LABELS) * 9
    assert together[: len(TEXTS)] == [tiny.label(text, LABELS) for text in TEXTS]
    with slmq.load(tiny_model_path, n_ctx=1024, n_threads=2) as other:
        other.engine.chunk = 37
        assert other.label(TEXTS[::-1], LABELS) == together[: len(TEXTS)][::-1]


def test_what_is_computed(tiny: slmq.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefix once, the rest of every text once, some in a run, and chosen logits only."""
    prompt = LabelPrompt.of(tiny.engine, ["a", "b"], instruction=None)
    contexts = [prompt.context(text) for text in TEXTS]
    runs: list[list[tuple[int, int, int]]] = []
    run = Engine.run

    def watched(engine: Engine, batch: list[Any], **how: Any) -> Any:
        runs.append([(len(p[1]), p[2], len(p[3]) if len(p) > 3 else 0) for p in batch])
        return run(engine, batch, **how)

    monkeypatch.setattr(Engine, "run", watched)
    tiny.label(TEXTS, ["a", "b"])
    (prefix,), *others = runs
    assert prefix[1:] == (0, 0)
    parts = [part for run in others for part in run]
    assert [rows for rows, _, _ in parts] == [len(ids) - prefix[0] for ids in contexts]
    assert {part[1:] for part in parts} == {(1, 2)}
    assert prefix[0] == len(tiny.tokenizer.encode("<|im_start|>user\n"))
    assert len(others) < len(TEXTS) / 2


def test_several_questions_share_a_text(tiny: slmq.Model) -> None:
    questions = {"Mood": ["good", "bad"], "Size": ["small", "large", "huge"], "Kind": LABELS}
    found = tiny.label(TEXTS, questions)
    assert tiny.label(TEXTS[3], questions) == found[3]
    for name, labels in questions.items():
        prompt = LabelPrompt.of(tiny.engine, labels, instruction=None, question=name)
        alone = tiny.label(TEXTS, labels, instruction=prompt.instruction)
        assert [one[name] for one in found] == alone
    before = tiny.engine.plan.cache.pages_in_use
    tiny.label(TEXTS, questions)
    assert tiny.engine.plan.cache.pages_in_use == before


def test_a_label_that_begins_another_ends(tiny: slmq.Model) -> None:
    """\"go\" is scored with its end, else it would always beat \"good\"."""
    prompt = LabelPrompt.of(tiny.engine, LABELS, instruction="?")
    ends = {option[-1] for option in prompt.options}
    assert ends == {tiny.tokenizer.encode("<|im_end|>")[0]}
    apart = LabelPrompt.of(tiny.engine, ["good", "bad"], instruction="?")
    assert [bytes(map(int, map(len, apart.options)))] == [b"\x04\x03"]


def test_calibration_takes_out_what_no_text_says(tiny: slmq.Model) -> None:
    plain = tiny.label(TEXTS, LABELS)
    free = tiny.label(["N/A", "[MASK]", "..."], LABELS)
    bias = [sum(one.probabilities[label] for one in free) / 3 for label in LABELS]
    calibrated = tiny.label(TEXTS, LABELS, calibrate=True)
    for before, after in zip(plain, calibrated, strict=True):
        raw = np.array(list(before.probabilities.values())) / bias
        np.testing.assert_allclose(list(after.probabilities.values()), raw / raw.sum(), rtol=1e-9)


def test_other_answers_go_on_beside_labels(tiny: slmq.Model) -> None:
    wanted = tiny.generate("abc", max_tokens=60, ignore_eos=True)
    found: list[slmq.GenerationResult] = []
    thread = threading.Thread(
        target=lambda: found.append(tiny.generate("abc", max_tokens=60, ignore_eos=True))
    )
    thread.start()
    labels = tiny.label(TEXTS * 5, LABELS)
    thread.join()
    assert labels == tiny.label(TEXTS, LABELS) * 5
    assert found[0].tokens == wanted.tokens


def test_texts_may_come_without_end(tiny: slmq.Model) -> None:
    def endless() -> Iterator[str]:
        while True:
            yield "more"

    stream = tiny.labeller(LABELS)(endless())
    assert next(stream) == next(stream) == tiny.label("more", LABELS)
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("texts", "labels", "options", "error", "message"),
    [
        ("x", ["a"], {}, ValueError, "labels: expected 2 to 1000 different labels"),
        ("x", ["a", "a"], {}, ValueError, "different labels"),
        ("x", "ab", {}, TypeError, "labels: expected a list of labels, got str"),
        ("x", ["a", ""], {}, TypeError, "labels: expected non-empty strings, got ''"),
        ("x", {}, {}, ValueError, "at least one question"),
        ("x", {"q": ["a"]}, {}, ValueError, "q: expected 2 to 1000"),
        ("x", {"q": ["a", "b"]}, {"instruction": "i"}, ValueError, "several questions"),
        (["x", 5], ["a", "b"], {}, TypeError, "texts: expected strings, got int"),
        (5, ["a", "b"], {}, TypeError, "texts: expected a str or an iterable"),
        ("x", ["a", "b"], {"examples": ["ab"]}, TypeError, "examples: expected"),
        ("x", ["a", "b"], {"examples": [("t", "c")]}, ValueError, "one of the labels"),
        ("x", ["a", "b"], {"instruction": 5}, TypeError, "instruction: expected a str"),
        ("x" * 1100, ["a", "b"], {}, ContextOverflowError, "1024"),
    ],
)
def test_wrong_arguments_are_named(
    tiny: slmq.Model, texts: Any, labels: Any, options: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        tiny.label(texts, labels, **options)


def test_a_closed_model_says_so(tiny_model_path: Path) -> None:
    model = slmq.load(tiny_model_path)
    stream = model.labeller(["a", "b"])(["x"])
    model.close()
    with pytest.raises(ClosedError):
        model.label("x", ["a", "b"])
    with pytest.raises(ClosedError):
        next(stream)
