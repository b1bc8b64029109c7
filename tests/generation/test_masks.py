"""Masks are computed beside runs, by a thread that lives no longer than there is work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from llguidance import LLMatcher

import slmq
from slmq.constraints import Grammar, Vocabulary, regex_grammar
from slmq.errors import ConstraintError
from slmq.generation.masks import Masks

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


def test_nothing_stays_behind(tiny_model_path: Path) -> None:
    """An idle model has no thread, and one that nobody holds leaves none."""
    with slmq.load(tiny_model_path, n_ctx=512) as model:
        for _ in range(3):
            assert model.generate("x", regex="[a-z]{30}").generated_tokens == 30
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
    wanted = tiny.generate("x", regex="[a-z]{30}").tokens

    def refuse(self: threading.Thread) -> None:
        if self.name == "slmq-masks":
            raise RuntimeError("can't start new thread")
        begin(self)

    begin = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert tiny.generate("x", regex="[a-z]{30}").tokens == wanted
