"""What a newcomer meets first: limits, progress, questions, saved chats, doubtful options."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import slmq
from slmq.generation.bars import LineBar, prompt_bar, reported, visible
from slmq.generation.params import CHAT_LIMIT, TEXT_LIMIT, SamplingParams


class Screen(io.StringIO):
    """A terminal's stderr."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """Everything that stood on the line, one after the other."""
        return [line.rstrip() for line in self.getvalue().split("\r")]


def new_screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Within a test: pytest sets stderr anew between its fixtures and it."""
    found = Screen()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setattr("slmq.generation.bars.PAUSE_S", 0.0)
    return found


@pytest.fixture(scope="module")
def model(tiny_model_path: Path) -> Iterator[slmq.Model]:
    with slmq.load(tiny_model_path, n_ctx=CHAT_LIMIT + 1024, n_threads=1) as m:
        yield m


# --- limits -----------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("prompt", "limit"), [("Hi", TEXT_LIMIT), ([1, 2, 3], TEXT_LIMIT), (CHAT, CHAT_LIMIT)]
)
def test_an_answer_has_a_limit_unless_it_is_told_to_have_none(
    model: slmq.Model, prompt: Any, limit: int
) -> None:
    assert len(model.generate(prompt, ignore_eos=True).tokens) == limit
    assert len(model.generate(prompt, ignore_eos=True, max_tokens="auto").tokens) == limit
    if limit == TEXT_LIMIT:
        whole = model.generate(prompt, ignore_eos=True, max_tokens=None)
        assert whole.prompt_tokens + len(whole.tokens) == model.n_ctx
        assert model.generate(prompt, ignore_eos=True, max_tokens=-1).tokens == whole.tokens


def test_all_ways_to_ask_have_it(model: slmq.Model, tiny_model_path: Path) -> None:
    stream = model.stream("Hi", ignore_eos=True)
    assert sum(1 for _ in stream) == TEXT_LIMIT
    (mapped,) = model.map(["Hi"], ignore_eos=True)
    assert len(mapped.tokens) == TEXT_LIMIT
    (sample,) = model.samples("Hi", 1, ignore_eos=True, temperature=1.0, seed=1)
    assert len(sample.tokens) == TEXT_LIMIT
    # Where the context ends before, that is the limit, and no error.
    with slmq.load(tiny_model_path) as small:
        found = small.generate("Hi", ignore_eos=True)
        assert found.prompt_tokens + len(found.tokens) == small.n_ctx < TEXT_LIMIT


def test_samples_of_messages_are_answers_to_a_chat(model: slmq.Model) -> None:
    args: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 20, "ignore_eos": True}
    (sample,) = model.samples(CHAT, 1, **args)
    alone = model.generate(CHAT, **args)
    assert (sample.tokens, sample.text) == (alone.tokens, alone.text)


@pytest.mark.parametrize("value", [-2, 1.5, "all", True])
def test_wrong_limits_are_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="max_tokens: expected an int >= 0, -1"):
        SamplingParams(max_tokens=value)


# --- questions --------------------------------------------------------------------------------


def test_ask_is_what_slmq_run_does(model: slmq.Model) -> None:
    wanted = model.generate(CHAT, max_tokens=9)
    assert model.ask("Hi", max_tokens=9).text == wanted.text
    system = [{"role": "system", "content": "S"}, *CHAT]
    assert model.ask("Hi", system="S", max_tokens=9).tokens == (
        model.generate(system, max_tokens=9).tokens
    )
    with pytest.raises(TypeError, match="question: expected a str, got list"):
        model.ask(["Hi"])  # type: ignore[arg-type]


def test_suggestions_of_the_catalogue_are_known_to_the_model(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = slmq.hub.catalogue()["smollm2-135m-instruct"]
    found = slmq.hub.ResolvedModel(tiny_model_path, entry.name, entry)
    monkeypatch.setattr(slmq.hub, "resolve", lambda *_args, **_more: found)
    with slmq.load("SmolLM2-135M-Instruct") as m:
        assert m.suggested == dict(entry.sampling)
        sampled = m.generate(CHAT, max_tokens=9, seed=4, **entry.sampling)
        assert m.ask("Hi", max_tokens=9, seed=4).tokens == sampled.tokens


# --- chats ------------------------------------------------------------------------------------


def test_a_saved_chat_goes_on(model: slmq.Model) -> None:
    chat = model.chat("S", max_tokens=8)
    chat.send("One?")
    saved = chat.messages
    wanted = chat.send("Two?")
    again = model.chat(messages=saved, max_tokens=8)
    assert again.messages == saved
    assert again.send("Two?").tokens == wanted.tokens
    again.reset()
    assert again.messages == saved[:1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"system": "S", "messages": []}, "system or messages"),
        ({"messages": "Hi"}, "messages: expected a list of dicts, got str"),
        ({"messages": [{"content": "Hi"}]}, "messages: expected dicts with a role"),
        ({"messages": CHAT}, "expected an answer last"),
    ],
)
def test_wrong_saved_chats_are_refused(
    model: slmq.Model, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        model.chat(**arguments)


def test_a_chat_forgets_only_if_it_may(tiny_model_path: Path) -> None:
    with slmq.load(tiny_model_path) as m:
        strict = m.chat(max_tokens=8)
        strict.send("x" * 60)
        with pytest.raises(slmq.ContextOverflowError, match="the model was made for 128"):
            strict.send("x" * 60)
        # One question that is too long stays an error, and what was said stays in the memory.
        chat = m.chat(forget=True, max_tokens=8)
        chat.send("Hi")
        with pytest.raises(slmq.ContextOverflowError):
            chat.send("x" * 300)
        assert [message["content"] for message in chat.messages[:1]] == ["Hi"]
        assert chat.forgotten == 0


def test_what_a_notebook_shows_of_an_object(model: slmq.Model) -> None:
    stream = model.stream("Hi", max_tokens=2, ignore_eos=True)
    assert repr(stream) == "<slmq.TokenStream, open>"
    stream.finish()
    assert repr(stream) == "<slmq.TokenStream, length>"
    assert repr(model.tokenizer) == "<slmq.Tokenizer of 259 tokens, with a chat template>"


# --- logits -----------------------------------------------------------------------------------


def test_the_last_row_of_logits_takes_no_more_memory(model: slmq.Model) -> None:
    rows = model.logits("Once upon a time")
    last = model.logits("Once upon a time", rows="last")
    assert last.shape == (model.n_vocab,)
    assert np.array_equal(last, rows[-1])
    with pytest.raises(ValueError, match="rows: expected 'all' or 'last', got 'first'"):
        model.logits("x", rows="first")  # type: ignore[arg-type]


def test_logits_report_how_far_they_are(model: slmq.Model) -> None:
    told: list[tuple[int, int | None]] = []
    ids = [5] * 1200
    model.logits(ids, rows="last", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (1200, 1200)
    assert len(told) > 1
    assert [done for done, _ in told] == sorted(done for done, _ in told)


# --- progress ---------------------------------------------------------------------------------


def test_a_bar_is_one_line_that_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = new_screen(monkeypatch)
    bar = LineBar("bytes")
    bar.update("model.gguf", 0, 98_400_000)
    bar.update("model.gguf", 49_200_000, 98_400_000)
    bar.message("fetched from elsewhere")
    bar.update("loading", 0, None)
    bar.close()
    half = "model.gguf |##########          | 50 % 49.2 MB of 98.4 MB"
    shown = screen.lines()
    assert half in shown
    assert "loading" in shown
    assert "\nfetched" not in screen.getvalue()  # on a line that the bar has left
    assert "fetched from elsewhere\n" in screen.getvalue()
    assert shown[-1] == ""
    assert shown[-2] == ""


def test_progress_is_seen_where_it_can_be(
    model: slmq.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = new_screen(monkeypatch)
    assert visible()
    list(model.map(["a", "b"], progress=True, max_tokens=1))
    assert "answers |##########          | 50 % 1 of 2" in screen.lines()
    model.generate([7] * 1000, max_tokens=1, progress=True)
    assert any(line.startswith("reading the prompt |") for line in screen.lines())
    before = screen.getvalue()
    with reported(False, "x") as report:
        report(1, 2)
    assert screen.getvalue() == before


def test_load_shows_what_it_does(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = new_screen(monkeypatch)
    slmq.load(tiny_model_path).close()
    assert "loading tiny-llama" in screen.lines()
    assert screen.lines()[-1] == ""
    shown = screen.getvalue()
    slmq.load(tiny_model_path, progress=False).close()
    assert screen.getvalue() == shown


def test_nothing_is_drawn_where_nobody_sees_it(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert not visible()
    assert prompt_bar() is None
    with slmq.load(tiny_model_path) as m:
        list(m.map(["a"], progress=True, max_tokens=1))
    assert stderr.getvalue() == ""


def test_notebooks_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    monkeypatch.setattr(sys, "stderr", kind())
    assert visible()


# --- options that are hardly meant ------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_ctx": 100_000}, "n_ctx=100000: the model was made for 128 tokens"),
        ({"n_threads": 999}, "n_threads=999: this machine has"),
        ({"format": "int8"}, None),
        ({"n_ctx": 64, "n_threads": 1}, None),
    ],
)
def test_options_that_bring_nothing_are_doubted(
    tiny_model_path: Path, caplog: pytest.LogCaptureFixture, options: Any, said: str | None
) -> None:
    slmq.load(tiny_model_path, **options).close()
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)
