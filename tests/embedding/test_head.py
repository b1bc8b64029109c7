"""`slmq.Head`: what it learns, what it says of itself, and what it refuses."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_files import TEXT, sentence_folder

import slmq
from slmq import DataError, Head
from slmq.embedding.logistic import (
    calibration_error,
    cross_validated,
    fit_logistic,
    folds_of,
    probabilities_of,
)

WORDS = TEXT.split()
TEXTS = [f"the {a} {v} {h}" for a in WORDS[4:8] for v in WORDS[6:10] for h in WORDS[8:14]]
FITTED = "3888bfb54f03d964cc3b73e3fa3649999f5f488032f44246033577169cb79b5c"
LABELS = [WORDS[4 + i // 24] for i in range(len(TEXTS))]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slmq.Encoder]:
    with slmq.load_encoder(sentence_folder(tmp_path_factory.mktemp("e") / "m")) as opened:
        yield opened


@pytest.fixture(scope="module")
def head(encoder: slmq.Encoder) -> Head:
    return Head.fit(encoder, TEXTS, LABELS)


def test_the_fit_is_at_its_minimum() -> None:
    """Against the slope of the cost, by differences."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 7)), rng.integers(0, 3, 200)

    def cost(weights: Any, bias: Any) -> float:
        likely = probabilities_of(x @ weights.T + bias)
        return float(-np.log(likely[np.arange(200), y]).mean() + 0.01 / 2 * (weights**2).sum())

    found = fit_logistic(x, y, 3, 0.01)
    least = cost(found.weights, found.bias)
    for _ in range(50):
        step = rng.normal(size=(3, 8)) * 1e-3
        assert cost(found.weights + step[:, :7], found.bias + step[:, 7]) >= least - 1e-9


def test_the_fit_has_the_same_bits_on_every_cpu() -> None:
    """Whatever NumPy and its BLAS choose for a CPU, and what another one has found."""
    code = """
import hashlib, numpy as np
from slmq.embedding.logistic import cross_validated, fit_logistic
x = (np.arange(300 * 33) * 7919 % 1009 - 504).reshape(300, 33) / 512
y = (np.arange(300) * 31 % 97 % 3).astype(np.int64)
x[:, 0] += y
found = cross_validated(x, y, 3)
fitted = fit_logistic(x, y, 3, found.penalty)
numbers = [found.temperature, found.log_loss, found.accuracy, found.calibration_error]
whole = [fitted.weights, fitted.bias, found.probabilities, np.array(numbers)]
print(hashlib.sha256(b"".join(a.tobytes() for a in whole)).hexdigest())
"""
    core = (getattr(np, "_core", None) or np.core)._multiarray_umath  # of NumPy 2, or 1
    vectors = [name for name in core.__cpu_dispatch__ if core.__cpu_features__[name]]
    plain = {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": " ".join(vectors)}
    for changes in ({}, plain):
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, **changes}
        )
        assert done.stdout.strip() == FITTED


def test_probabilities_are_what_they_say() -> None:
    """Labels drawn from known probabilities: the temperature brings them back."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20_000, 4))
    true = probabilities_of(x @ rng.normal(size=(2, 4)).T)
    y = (rng.random(20_000) > true[:, 0]).astype(np.int64)
    found = cross_validated(x, y, 2, penalties=(1e-1, 1e-4))
    assert found.penalty == 1e-4
    assert found.calibration_error < 0.02
    np.testing.assert_allclose(found.probabilities, true, atol=0.05)
    assert calibration_error(np.array([0.9, 0.9]), np.array([True, False])) == pytest.approx(0.4)


def test_folds_mix_classes_evenly() -> None:
    y = np.array([0] * 50 + [1] * 10)
    parts = folds_of(y)
    assert [((parts == p) & (y == 1)).sum() for p in range(5)] == [2] * 5
    assert [(parts == p).sum() for p in range(5)] == [12] * 5


def test_it_learns(head: Head) -> None:
    assert head.labels == sorted(set(LABELS))
    assert head.trained.rows == len(TEXTS)
    assert head.trained.accuracy > 0.9
    assert head.trained.counts == dict.fromkeys(head.labels, 24)
    found = head.classify(TEXTS)
    assert np.mean([one.label == label for (one,), label in zip(found, LABELS, strict=True)]) > 0.95
    (first, *others) = head.classify(TEXTS[0], top_k=None)
    assert sum(one.score for one in (first, *others)) == pytest.approx(1)
    assert head.classify([]) == []


def test_it_is_the_same_after_reading(head: Head, encoder: slmq.Encoder, tmp_path: Path) -> None:
    path = tmp_path / "a.head.json"
    head.save(path)
    again = Head.open(path, encoder)
    assert again.classify(TEXTS) == head.classify(TEXTS)
    assert again.trained == head.trained
    assert Head.encoder_name(path) == encoder.name
    one = head.classify(TEXTS[5])
    assert [head.classify(TEXTS)[5], one][0] == one


def test_what_is_no_head(head: Head, encoder: slmq.Encoder, tmp_path: Path) -> None:
    path = tmp_path / "a.head.json"
    head.save(path)
    good = json.loads(path.read_text("utf-8"))
    for change, expected in (
        ({"kind": "other"}, "expected a head that slmq has trained"),
        ({"version": 9}, "expected version 1, found 9"),
        ({"weights": "AAAA"}, "damaged: ValueError"),
        ({"bias": base64.b64encode(np.full(4, np.inf, "<f4")).decode()}, "a weight is not finite"),
        ({"labels": None}, "damaged: TypeError"),
        ({"identity": "en_0"}, r"trained on 'm' \(en_0\), and 'm' as it is loaded"),
    ):
        path.write_text(json.dumps({**good, **change}), "utf-8")
        with pytest.raises(DataError, match=rf"a.head.json: .*{expected}|{expected}"):
            Head.open(path, encoder)
    path.write_text("", "utf-8")
    with pytest.raises(DataError, match="is not JSON"):
        Head.open(path, encoder)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        Head.open(tmp_path / "none", encoder)


@pytest.mark.parametrize(
    ("texts", "labels", "expected"),
    [
        (["a", "b"], ["x", "x"], "expected at least two labels, got 'x'"),
        (["a", "b", "c"], ["x", "x", "y"], "expected at least 2 examples of every label"),
        (["a", "b"], ["x", " "], "expected the name of a label for every text, got ' '"),
        (["a"], ["x", "x", "y", "y"], "expected a label for each of 1 texts, got 4"),
    ],
)
def test_too_few_examples(
    encoder: slmq.Encoder, texts: list[str], labels: list[str], expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        Head.fit(encoder, texts, labels)


def test_what_is_no_list_and_no_vector(encoder: slmq.Encoder) -> None:
    with pytest.raises(TypeError, match="texts, labels: expected several of each, got one str"):
        Head.fit(encoder, "abcd", ["x", "x", "y", "y"])
    with pytest.raises(TypeError, match="labels: expected texts, got NoneType"):
        Head.fit(encoder, ["a"], None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="expected the name of a label for every text, got None"):
        Head.fit(encoder, ["a", "b"], ["x", None])  # type: ignore[list-item]
    head = Head.fit(encoder, ["cat", "dog", "rain", "sun"], ["x", "x", "y", "y"])
    for wrong in (np.zeros(3, np.float32), np.zeros((2, 64), np.float32)):
        with pytest.raises(ValueError, match="expected a vector of 64 numbers, got"):
            head.probabilities(wrong)
    with pytest.raises(ValueError, match="expected vectors of finite numbers"):
        head.probabilities(np.full(64, np.nan, np.float32))
    with pytest.raises(ValueError, match="top_k: expected at least 1, got 0"):
        head.classify("cat", top_k=0)
