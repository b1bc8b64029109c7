"""gpt-oss answers in channels: reasoning and answer are told apart, and <|end|> ends neither."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_tokenizer import byte_tokenizer
from gguf_writer import write_gguf
from mixture_files import mixture_folder
from tokenizers import AddedToken

import slmq
from slmq import Model
from slmq.checkpoint import open_checkpoint
from slmq.generation.constraints.grammar import made_grammar
from slmq.generation.constraints.vocabulary import Vocabulary
from slmq.generation.hearing import Hearing
from slmq.tokenizer import Tokenizer, load_tokenizer
from slmq.tools.calls import Mark, Said
from slmq.tools.channels import ChannelReader
from slmq.tools.speech import prepare
from slmq.tools.tool import tools_of
from slmq.tools.wish import Wish

MARKS = (
    "<|return|>",
    "<|start|>",
    "<|channel|>",
    "<|constrain|>",
    "<|message|>",
    "<|end|>",
    "<|call|>",
)
TEMPLATE = """{%- for m in messages -%}
<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"""
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = mixture_folder(tmp_path_factory.mktemp("channels") / "tiny", MARKS)
    config = {"eos_token": "<|return|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    with slmq.load(folder) as m:
        yield m


@pytest.fixture
def tokenizer(model: Model) -> Tokenizer:
    return model.tokenizer


ANSWERS = [
    (
        "<|channel|>analysis<|message|>He greets.\n<|end|><|start|>assistant<|channel|>final"
        "<|message|>Hello!\n\nYou?<|return|>",
        "Hello!\n\nYou?",
        "He greets.\n",
    ),
    ("<|channel|>final<|message|>Hello!<|return|>", "Hello!", ""),
    ("<|channel|>analysis<|message|>He gre", "", "He gre"),
    ("Hello!", "Hello!", ""),
    (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b"
        "<|end|><|start|>assistant<|channel|>commentary<|message|>c<|end|><|start|>assistant"
        "<|channel|>final <|constrain|>json<|message|>{}",
        "c{}",
        "ab",
    ),
    ("<|channel|>final<|message|>analysis<|end|><|start|>assistant<|message|>x", "analysisx", ""),
]


@pytest.mark.parametrize(("said", "text", "reasoning"), ANSWERS)
def test_what_is_heard(said: str, text: str, reasoning: str, tokenizer: Tokenizer) -> None:
    speech = prepare(tokenizer, USER, Wish())
    assert speech.prompt == "<|start|>user<|message|>hi<|end|><|start|>assistant"
    prompt = tokenizer.encode(speech.prompt, add_special=False, parse_special=True)
    hearing, heard = Hearing(tokenizer, prompt, speech, continues=True), Said()
    for token in tokenizer.encode(said, add_special=False, parse_special=True):
        if token in tokenizer.eos_ids:
            break
        heard.add(hearing.push(token))
    heard.add(hearing.flush())
    assert (heard.text, heard.reasoning, heard.calls) == (text, reasoning, [])


TOOLED = TEMPLATE + "{%- if tools %}{# <|channel|>commentary functions. tool_calls #}{% endif %}"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"n": 3}'
THOUGHT = "<|channel|>analysis<|message|>Add.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>Three"


def f(n: int) -> None:
    """Do."""


@pytest.fixture(scope="module")
def tooled(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """With a template that speaks of tools."""
    folder = mixture_folder(tmp_path_factory.mktemp("tooled") / "tiny", MARKS)
    config = {"eos_token": "<|return|>", "chat_template": TOOLED}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    with open_checkpoint(folder) as found:
        return load_tokenizer(found)


def hear(tokenizer: Tokenizer, said: str, **wish: Any) -> tuple[Said, bool, bool]:
    """What is heard of an answer, and whether its grammar allows it, and lets it end."""
    speech = prepare(tokenizer, USER, Wish(tools=tools_of([f]), **wish))
    ids = tokenizer.encode(said, add_special=False, parse_special=True)
    assert speech.grammar is not None
    assert not set(speech.banned) & set(ids)
    grammar = made_grammar(speech.grammar, "an answer")
    matcher = Vocabulary(tokenizer).compile(grammar).matcher()
    fits = True
    for token in ids:
        fits = fits and matcher.fitting([token]) == [token]
        if fits:
            matcher.accept(token)
    ends = fits and matcher.accepting
    hearing, heard = Hearing(tokenizer, [], speech, continues=True), Said()
    for token in ids:
        heard.add(hearing.push(token))
    heard.add(hearing.flush())
    return heard, fits, ends


@pytest.mark.parametrize("before", ["", THOUGHT])
def test_a_message_to_a_tool_is_a_call(before: str, tooled: Tokenizer) -> None:
    heard, fits, ends = hear(tooled, before + CALL)
    assert (fits, ends) == (True, True)
    assert [(call.name, call.arguments) for call in heard.calls] == [("f", {"n": 3})]
    assert (heard.text, heard.reasoning) == ("", "Add." if before else "")
    heard, fits, ends = hear(tooled, before + FINAL)
    assert (heard.text, heard.calls, fits, ends) == ("Three", [], True, True)


def test_calls_that_must_or_must_not_be(tooled: Tokenizer) -> None:
    assert hear(tooled, THOUGHT + CALL, choice="required")[1:] == (True, True)
    assert not hear(tooled, FINAL, choice="required")[1]
    assert hear(tooled, THOUGHT + FINAL, choice="none")[1:] == (True, True)
    assert not hear(tooled, CALL, choice="none")[1]
    assert not hear(tooled, CALL.replace("3", '"x"'))[1]
    assert not hear(tooled, CALL.replace(".f ", ".g "))[1]


def test_a_message_to_nobody_that_is_known_is_text(tooled: Tokenizer) -> None:
    said = CALL.replace(".f ", ".g ")
    assert hear(tooled, said)[0].text == said


def test_markers_that_are_spelled_are_text() -> None:
    reader = ChannelReader()
    assert reader.push("<|channel|>analysis<|message|>") == ("<|channel|>analysis<|message|>", "")
    assert reader.push(Mark("<|other|>")) == ("<|other|>", "")


def ends(tokenizer: Tokenizer) -> set[str]:
    ids = {i: text for text, i in tokenizer.markers.items()}
    return {ids[i] for i in tokenizer.eos_ids}


def test_the_end_of_a_message_ends_no_answer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert ends(tokenizer) == {"<|return|>", "<|call|>", "<|endoftext|>", "<|im_end|>"}
    folder = mixture_folder(tmp_path / "phi")
    plain = byte_tokenizer()
    plain.add_special_tokens([AddedToken("<|end|>", special=True)])
    plain.save(str(folder / "tokenizer.json"))
    with open_checkpoint(folder) as found:
        assert "<|end|>" in ends(load_tokenizer(found))


def test_nor_in_gguf_files_that_name_it(tmp_path: Path) -> None:
    by_text = byte_tokenizer().get_vocab()
    texts = sorted(by_text, key=lambda text: by_text[text])[:256]
    keys = {
        "general.architecture": "gpt-oss",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*texts, "ab", *MARKS],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": [1] * 257 + [3] * len(MARKS),
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.eot_token_id": 257 + MARKS.index("<|end|>"),
    }
    write_gguf(tmp_path / "m.gguf", keys, {"x": np.ones(4, np.float32)})
    with open_checkpoint(tmp_path / "m.gguf") as found:
        assert ends(load_tokenizer(found)) == {"<|return|>", "<|call|>"}


def test_a_value_comes_behind_the_reasoning(model: Model) -> None:
    marks = model.tokenizer.markers
    bias = {marks["<|channel|>"]: 50.0, marks["<|end|>"]: 2.0}
    params: dict[str, Any] = {"max_tokens": 300, "temperature": 1.0, "seed": 3}
    result = model.generate(USER, choices=["red", "green"], logit_bias=bias, **params)
    assert result.reasoning
    assert result.text in ("red", "green")
    assert [marks[m] in result.tokens for m in ("<|channel|>", "<|message|>", "<|end|>")] == [
        True
    ] * 3
    direct = model.generate(USER, choices=["red", "green"], thinking=False, **params)
    assert direct.reasoning == ""
    assert direct.text in ("red", "green")
