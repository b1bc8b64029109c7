"""Chat sessions: history, the cache of the prefix, cancelled and refused turns."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import slmq
from slmq.generation.model import Model


@pytest.fixture
def model(tiny_model_path: Path) -> Iterator[Model]:
    with slmq.load(tiny_model_path, n_ctx=512) as loaded:
        yield loaded


ARGS: dict[str, Any] = {"max_tokens": 8, "temperature": 1.2, "seed": 5}


def test_turns_equal_fresh_prompts_and_reuse_the_prefix(
    model: Model, tiny_model_path: Path
) -> None:
    chat = model.chat(system="Be brief.", **ARGS)
    with slmq.load(tiny_model_path, n_ctx=512) as fresh:
        for turn, text in enumerate(["Hello", "And then?", "Why?"]):
            history = [*chat.messages, {"role": "user", "content": text}]
            result = chat.send(text, logprobs=2)
            expected = fresh.generate(history, logprobs=2, **ARGS)
            assert result.tokens == expected.tokens
            assert result.logprobs == expected.logprobs
            assert chat.messages == [*history, {"role": "assistant", "content": result.text}]
            if turn:
                before = len(model.tokenizer.encode_chat(history[:-2]))
                assert result.cached_tokens >= before - 1
    assert [message["role"] for message in chat.messages[:3]] == ["system", "user", "assistant"]


def test_other_prompts_do_not_disturb_the_cache_of_a_chat(model: Model) -> None:
    chat, quiet = model.chat(**ARGS), model.chat(**ARGS)
    for text in ("Hello", "And then?"):
        expected = quiet.send(text)
        model.generate("Something else entirely", max_tokens=2)
        found = chat.send(text)
        assert found.tokens == expected.tokens
        # What both say is computed once.
        assert found.cached_tokens == found.prompt_tokens - 1


def test_a_turn_may_change_the_parameters_of_the_session(model: Model) -> None:
    chat = model.chat(**ARGS)
    assert chat.send("Hello", max_tokens=2, ignore_eos=True).generated_tokens == 2
    assert chat.send("More", ignore_eos=True).generated_tokens == 8


def test_streams_join_the_history_at_their_end(model: Model) -> None:
    chat = model.chat(ignore_eos=True, **ARGS)
    stream = chat.stream("Hello")
    for chunk in stream:
        if chunk.finish_reason is None:
            assert chat.messages == []
    assert stream.result is not None
    assert [message["content"] for message in chat.messages] == ["Hello", stream.result.text]


def test_a_cancelled_turn_keeps_what_it_said(model: Model) -> None:
    chat = model.chat(temperature=1.2, seed=5, ignore_eos=True)
    said = ""
    with chat.stream("Hello") as stream:
        for chunk in stream:
            said += chunk.text
            if len(said) > 5:
                break
    assert chat.messages[1:] == [{"role": "assistant", "content": said}]
    assert chat.send("Go on", max_tokens=2).cached_tokens > 0


def test_a_turn_that_said_nothing_leaves_no_trace(model: Model) -> None:
    chat = model.chat()
    chat.stream("Hello").close()
    early = chat.stream("Hello", progress=lambda done, total: early.close())
    assert [chunk.finish_reason for chunk in early] == ["cancelled"]
    chat.stream("dropped")
    with pytest.raises(slmq.ContextOverflowError):
        chat.send("x " * 3000)
    with pytest.raises(ValueError, match="temperature"):
        chat.send("Hello", temperature=-1)
    assert chat.messages == []


def test_an_answer_may_be_empty(model: Model) -> None:
    end = min(model.tokenizer.eos_ids)
    chat = model.chat(logit_bias={end: 1e4})
    assert chat.send("Hello").text == ""
    assert chat.messages[-1] == {"role": "assistant", "content": ""}


def test_undo_and_reset(model: Model) -> None:
    chat = model.chat(system="Be brief.", **ARGS)
    system = chat.messages
    assert not chat.undo()
    first = chat.send("Hello")
    after_first = chat.messages
    chat.send("More")
    assert chat.undo()
    assert chat.messages == after_first
    chat.reset()
    assert chat.messages == system
    assert chat.send("Hello").tokens == first.tokens


def test_the_history_cannot_be_changed_from_outside(model: Model) -> None:
    chat = model.chat(system="Be brief.")
    chat.messages[0]["content"] = "Rant."
    chat.messages.clear()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]


def test_one_turn_at_a_time(model: Model) -> None:
    chat = model.chat(ignore_eos=True)
    stream = chat.stream("Hello")
    next(stream)
    for call in (lambda: chat.send("More"), chat.undo, chat.reset):
        with pytest.raises(slmq.Error, match="previous answer is not finished"):
            call()
    stream.close()
    chat.reset()
    assert chat.send("More", max_tokens=1).generated_tokens == 1


def test_closing_a_session(model: Model) -> None:
    chat = model.chat(ignore_eos=True)
    stream = chat.stream("Hello")
    next(stream)
    chat.close()
    chat.close()
    assert stream.result is not None
    assert stream.result.finish_reason == "cancelled"
    with pytest.raises(ValueError, match="session is closed"):
        chat.send("More")
    with model.stream([1, 2, 3], ignore_eos=True) as other:
        next(other)
        with model.chat() as inner:  # its closing must not wait for this thread's own stream
            assert repr(inner) == "<slmq.ChatSession, 0 messages>"


def test_a_session_outlives_its_model_without_harm(tiny_model_path: Path) -> None:
    with slmq.load(tiny_model_path, n_ctx=64) as model:
        chat = model.chat()
    with pytest.raises(ValueError, match="closed"):
        chat.send("Hello")
    chat.close()


@pytest.mark.parametrize(("text", "error"), [("", ValueError), (None, TypeError), (5, TypeError)])
def test_messages_must_be_text(model: Model, text: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="text: expected"):
        model.chat().send(text)


def test_invalid_sessions_are_refused(model: Model) -> None:
    with pytest.raises(TypeError, match="system: expected a str"):
        model.chat(system=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="top_p"):
        model.chat(top_p=2)


def test_variables_of_the_template(tiny_model_path: Path, tmp_path: Path) -> None:
    """Qwen3's enable_thinking, and whatever else a template asks for."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}"
        "{{ tools | length if tools else '' }}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    messages = [{"role": "user", "content": "hi"}]
    off = {"enable_thinking": False}
    with slmq.load(folder) as model:
        plain = model.generate(messages, max_tokens=1)
        quiet = model.generate(messages, max_tokens=1, chat_template_kwargs=off)
        assert quiet.prompt_tokens == plain.prompt_tokens + len("<no>")
        with model.stream(messages, max_tokens=1, chat_template_kwargs=off) as stream:
            assert [chunk.prompt_tokens for chunk in stream][-1] == quiet.prompt_tokens
        tools = {"tools": [{"name": "f"}]}
        called = model.generate(messages, max_tokens=1, chat_template_kwargs=tools)
        assert called.prompt_tokens == plain.prompt_tokens + 1
        with model.chat(chat_template_kwargs=off, max_tokens=1) as chat:
            assert chat.send("hi").prompt_tokens == quiet.prompt_tokens
        with pytest.raises(ValueError, match="expected a prompt of messages"):
            model.generate("hi", max_tokens=1, chat_template_kwargs=off)
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(model)
