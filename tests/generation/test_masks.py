"""Masks are computed beside runs, by a thread that lives no longer than there is work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher

import slmq
from slmq.errors import ConstraintError
from slmq.generation.constraints import Grammar, Vocabulary, regex_grammar, schema_grammar
from slmq.generation.masks import Masks
from slmq.generation.sampling import SamplingParams, make_sampler
from slmq.generation.shapes import shape_of

SOON_S = 20.0


@pytest.fixture(scope="module")
def tiny(tiny_model_path: Path) -> Iterator[slmq.Model]:
    with slmq.load(tiny_model_path, n_ctx=512) as model:
        yield model


def soon(holds: Callable[[], bool]) -> bool:
    end_s = time.monotonic() + SOON_S
    while not holds() and time.monotonic() < end_s:
        time.sleep(0.001)
    return holds()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("slmq-")]


def test_masks_are_computed_within_the_block(tiny: slmq.Model) -> None:
    """By another thread, and the same as where they are asked for."""
    compiled = Vocabulary(tiny.tokenizer).compile(regex_grammar("[a-z]{2,9}[0-9]*"))
    token = tiny.tokenizer.encode("b")[0]
    matchers = [compiled.matcher() for _ in range(4)]
    assert not any(matcher.due for matcher in matchers)  # the first mask is the grammar's
    for matcher in matchers:
        matcher.accept(token)
    *asked, unwanted = matchers
    assert all(matcher.due for matcher in matchers)
    masks = Masks()
    with masks.computing([*asked, None]):
        assert soon(lambda: not any(matcher.due for matcher in asked))
        assert threads() == ["slmq-masks"]
    assert unwanted.due
    for matcher in asked:
        np.testing.assert_array_equal(matcher.allowed(), unwanted.allowed())
    masks.rest()
    assert soon(lambda: not threads())


def test_an_error_is_told_when_the_mask_is_asked_for(tiny: slmq.Model) -> None:
    hard = Grammar(LLMatcher.grammar_from_regex("[ab]{8}(a{1000}){1000}"), "regex")
    matcher = Vocabulary(tiny.tokenizer).compile(hard).matcher()
    token, masks = tiny.tokenizer.encode("a")[0], Masks()
    reached = []

    def go_on() -> None:
        for step in range(20):
            matcher.accept(token)
            with masks.computing([matcher]):
                pass
            assert not matcher.due
            reached.append(step)
            matcher.allowed()

    with pytest.raises(ConstraintError, match="regex: "):
        go_on()
    assert 0 < len(reached) < 20
    masks.rest()


@pytest.mark.parametrize(
    "shape",
    [
        {"regex": "([a-c]{1,3}[0-9]?){1,9}"},
        {"schema": {"type": "array", "items": {"type": ["string", "integer", "null"]}}},
        {"grammar": 'start: /[^<]{0,9}/ <|im_start|> "é"? /[0-9]*/'},
        {"choices": ["yes", "no", "yesterday"]},
    ],
)
def test_one_token_is_judged_as_the_mask_does(tiny: slmq.Model, shape: dict[str, Any]) -> None:
    """Every token of the vocabulary, end tokens included, in states of random walks."""
    rng = np.random.default_rng(4)
    made = shape_of(SamplingParams.from_kwargs(shape), Vocabulary(tiny.tokenizer))
    assert made is not None
    for _ in range(8):
        matcher = made.constraint.matcher()
        for _ in range(20):
            if matcher.complete:
                break
            token = matcher.forced[0] if matcher.forced else -1
            if token < 0:
                judged = [matcher.allows(i) for i in range(tiny.n_vocab)]
                bits = np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little")
                assert judged == bits[: tiny.n_vocab].astype(bool).tolist()
                token = int(rng.choice(np.flatnonzero(judged)))
            if token in tiny.tokenizer.eos_ids:
                break
            matcher.accept(token)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_the_likeliest_of_those_allowed_is_taken(tiny: slmq.Model, penalty: float) -> None:
    """Most masks are not computed where the likeliest token is taken; the answer is as if."""
    schema = {"type": "array", "items": {"enum": ["ab", "ba", 17, 23.5]}, "minItems": 6}
    prompt = tiny.tokenizer.encode("abc")
    result = tiny.generate("abc", schema=schema, max_tokens=60, repetition_penalty=penalty)
    asked = SamplingParams.from_kwargs({"repetition_penalty": penalty})
    sampler = make_sampler(asked, tiny.n_vocab)
    sampler.observe(prompt)
    matcher = Vocabulary(tiny.tokenizer).compile(schema_grammar(schema)).matcher()
    logits = tiny.logits([*prompt, *result.tokens[:-1]])[len(prompt) - 1 :]
    chosen = 0
    for row, token in zip(logits, result.tokens, strict=True):
        if not matcher.forced:
            chosen += 1
            assert token == sampler.sample(np.ascontiguousarray(row), matcher.allowed())
        matcher.accept(token)
        sampler.accept(token)
    assert chosen > 10


def test_nothing_stays_behind(tiny_model_path: Path) -> None:
    """An idle model has no thread, and one that nobody holds leaves none."""
    with slmq.load(tiny_model_path, n_ctx=512) as model:
        for _ in range(3):
            drawn = model.generate("x", regex="[a-z]{30}", temperature=1.0)
            assert drawn.generated_tokens == 30
            assert soon(lambda: not threads())
    masks = Masks()
    compiled = Vocabulary(model.tokenizer).compile(regex_grammar("[a-z]{9}"))
    matcher = compiled.matcher()
    matcher.accept(model.tokenizer.encode("a")[0])
    with masks.computing([matcher]):
        pass
    assert threads() == ["slmq-masks"]
    del masks
    assert soon(lambda: not threads())


def test_where_no_thread_can_be_begun_masks_wait(
    tiny: slmq.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"regex": "[a-z]{30}", "temperature": 1.0, "seed": 1}
    wanted = tiny.generate("x", **asked).tokens

    def refuse(self: threading.Thread) -> None:
        if self.name == "slmq-masks":
            raise RuntimeError("can't start new thread")
        begin(self)

    begin = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert tiny.generate("x", **asked).tokens == wanted
