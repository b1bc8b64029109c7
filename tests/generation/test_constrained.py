"""Answers under a constraint: the same alone, together, guessed ahead, preempted."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from answers import Alone, open_tiny, request, said
from llguidance import LLMatcher

import slmq
from slmq.errors import ConstraintError, IncompleteError
from slmq.generation.answer import Request
from slmq.generation.constraints import Grammar, Vocabulary
from slmq.generation.sampling import SamplingParams
from slmq.generation.scheduler import Scheduler
from slmq.generation.shapes import Shape, shape_of
from slmq.generation.stream import TokenStream

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"enum": ["Paris", "London", "Lomé"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "city", "tags"],
    "additionalProperties": False,
}
SHAPES = [
    {"schema": PERSON},
    {"regex": "[a-z]{3,9}(, [a-z]{3,9}){2}"},
    {"grammar": 'start: "one " <|im_start|> /[0-9]{4}/ " end"'},
    {"choices": ["yes", "no", "yesterday"]},
    {"schema": {"const": "said over and over, said over and over"}},
]
DRAWS = [
    {},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 1.0, "seed": 8, "top_p": 0.5, "repetition_penalty": 1.2, "logprobs": 2},
    {"logprobs": 1, "presence_penalty": 1.0},
    {"temperature": 1.0, "seed": 3, "max_tokens": 9},
    {"stop": ["e"], "temperature": 2.0, "seed": 4},
]


def constrained(vocabulary: Vocabulary, prompt: list[int], **params: object) -> Request:
    asked = SamplingParams.from_kwargs({"max_tokens": 120, **params})
    return Request(prompt, asked, shape=shape_of(asked, vocabulary))


@pytest.fixture(scope="module")
def tiny(tiny_model_path: Path) -> Iterator[slmq.Model]:
    with slmq.load(tiny_model_path, n_ctx=512) as model:
        yield model


@pytest.mark.parametrize("pages", [None, 12])
@pytest.mark.parametrize("speculate", [False, True])
def test_the_same_as_alone(tiny_model_path: Path, speculate: bool, pages: int | None) -> None:
    """Forced tokens in one run or one by one, guesses, preemption, neighbours with and without."""
    alone_engine = open_tiny(tiny_model_path)
    vocabulary = Vocabulary(alone_engine.tokenizer)
    rng = random.Random(5)
    asked = [
        constrained(vocabulary, [rng.randrange(256) for _ in range(rng.randint(1, 90))], **one)
        for one in ({**shape, **draw} for shape in SHAPES for draw in DRAWS)
    ]
    asked += [request([5, 17, 3] * 9, max_tokens=40), request([9], max_tokens=30, seed=1)]
    alone = Alone(alone_engine)
    expected = [said(result) for one in asked if (result := alone(one)[-1].result)]
    engine = open_tiny(tiny_model_path, pages=pages)
    scheduler = Scheduler(engine, drive=False, speculate=speculate, most_running=16)
    scheduler._cost._terms[:] = [1e-2, 1e-7, 0.0, 0.0]
    scheduler._cost.learn = lambda work, seconds: None  # type: ignore[method-assign]
    streams = [TokenStream(scheduler, scheduler.submit(one)) for one in asked]
    results = [stream.finish() for stream in streams]
    assert [said(result) for result in results] == expected
    assert all(
        "".join(chunk.text for chunk in alone(one)) == result.text
        for one, result in zip(asked, results, strict=True)
    )
    stats = scheduler.stats()
    if pages is not None:
        assert stats.preemptions > 0
    warm = [TokenStream(scheduler, scheduler.submit(one)).finish() for one in asked[:8]]
    assert [said(result) for result in warm] == expected[:8]
    scheduler.close()


def test_forced_tokens_share_runs(tiny: slmq.Model) -> None:
    """What has to come is computed together, also where its log-probabilities are wanted."""
    text = "only this can be said, and nothing else"
    for params in ({}, {"logprobs": 2}):
        before = tiny.stats().runs
        result = tiny.generate("a", choices=[text], **params)
        runs = tiny.stats().runs - before
        assert result.text == text
        assert result.forced_tokens == result.generated_tokens == len(text)
        assert runs <= 2 + len(text) / 12
        assert result.drafted_tokens == 0


def test_logprobs_are_those_of_the_model(tiny: slmq.Model) -> None:
    """A constraint changes what is drawn, not what the model thinks of it."""
    result = tiny.generate("abc", schema=PERSON, temperature=1.0, seed=2, logprobs=0)
    assert result.logprobs is not None
    logits = tiny.logits([*tiny.tokenizer.encode("abc"), *result.tokens[:-1]])
    first = len(logits) - len(result.tokens)
    from slmq.generation.sampling import token_logprob

    for i, entry in enumerate(result.logprobs):
        assert entry == token_logprob(logits[first + i], entry.token, 0)


@pytest.mark.parametrize("seed", range(12))
def test_answers_are_what_was_asked(tiny: slmq.Model, seed: int) -> None:
    draw = {"temperature": 1.5, "seed": seed}
    person = tiny.generate("x", schema=PERSON, **draw)
    jsonschema.validate(person.parsed, PERSON)
    assert person.complete
    assert person.finish_reason == "stop"
    assert person.text == json.dumps(person.parsed, ensure_ascii=False) or "\\" in person.text
    found = tiny.generate("x", regex="[a-c]{2,5}[0-9]+x", **draw)
    assert re.fullmatch("[a-c]{2,5}[0-9]+x", found.parsed)
    assert tiny.generate("x", choices=["ab", "abc", "b"], **draw).parsed in {"ab", "abc", "b"}
    anything = tiny.generate("x", json=True, max_tokens=200, **draw)
    assert anything.finish_reason == "length" or isinstance(anything.parsed, dict)


def test_every_way_of_asking(tiny: slmq.Model) -> None:
    """generate, stream, chat, map, samples: one answer."""
    messages = [{"role": "user", "content": "who?"}]
    wanted = tiny.generate(messages, schema=PERSON).parsed
    with tiny.stream(messages, schema=PERSON) as stream:
        text = "".join(chunk.text for chunk in stream)
    assert json.loads(text) == wanted == stream.finish().parsed
    chat = tiny.chat(schema=PERSON)
    assert chat.send("who?").parsed == wanted
    assert tiny.chat().send("who?", schema=PERSON).parsed == wanted
    assert [r.parsed for r in tiny.map([messages] * 3, schema=PERSON)] == [wanted] * 3
    drawn = tiny.samples(messages, 4, schema=PERSON, temperature=1.0, seed=1)
    again = [tiny.generate(messages, schema=PERSON, temperature=1.0, seed=1 + i) for i in range(4)]
    assert [r.parsed for r in drawn] == [r.parsed for r in again]


def test_an_answer_that_is_cut_has_no_value(tiny: slmq.Model) -> None:
    cut = tiny.generate("x", schema=PERSON, max_tokens=12)
    assert cut.finish_reason == "length"
    assert cut.complete is False
    with pytest.raises(IncompleteError, match=r"12 tokens .*'length'.*; raise max_tokens"):
        _ = cut.parsed
    stopped = tiny.generate("x", choices=["abcdef"], stop="cd")
    assert (stopped.text, stopped.finish_reason) == ("ab", "stop")
    with pytest.raises(IncompleteError, match="stopped by 'cd'"):
        _ = stopped.parsed
    with pytest.raises(ValueError, match="expected an answer with schema="):
        _ = tiny.generate("x", max_tokens=1).parsed


def test_a_constraint_that_fails_is_nobody_elses_fault(tiny_model_path: Path) -> None:
    """A regular expression that explodes while it is matched ends its own answer only."""
    engine = open_tiny(tiny_model_path)
    vocabulary = Vocabulary(engine.tokenizer)
    plain = request([4, 5, 6], max_tokens=60)
    wanted = Alone(engine)(plain)[-1].result
    hard = Grammar(LLMatcher.grammar_from_regex("[ab]{8}(a{1000}){1000}"), "regex")
    asked = SamplingParams.from_kwargs({"max_tokens": 100})
    bad = Request([1, 2], asked, shape=Shape(vocabulary.compile(hard), str))
    scheduler = Scheduler(engine, drive=False)
    one, other = (TokenStream(scheduler, scheduler.submit(r)) for r in (plain, bad))
    with pytest.raises(ConstraintError, match="regex: "):
        other.finish()
    result = one.finish()
    assert wanted is not None
    assert said(result) == said(wanted)
    scheduler.close()


def test_wrong_arguments_are_named(tiny: slmq.Model) -> None:
    with pytest.raises(ValueError, match="regex: expected one constraint, got also choices"):
        tiny.generate("x", regex="a", choices=["b"])
    with pytest.raises(ValueError, match="ignore_eos: an answer with regex= ends"):
        tiny.generate("x", regex="a", ignore_eos=True)
    with pytest.raises(ValueError, match="lenient: expected a schema"):
        tiny.generate("x", lenient=True)
    with pytest.raises(TypeError, match="choices: expected a list of strings, got str 'yes'"):
        tiny.generate("x", choices="yes")
    with pytest.raises(ConstraintError, match=r"regex: .*unclosed group"):
        tiny.map(["x"], regex="(a")
    with pytest.raises(ConstraintError, match=r"grammar: .*unknown name"):
        tiny.stream("x", grammar="start: foo")
    for kind in (object, bytes, list[bytes], "Pet", [int]):
        with pytest.raises(ConstraintError, match=r"^schema: expected .*got .*, or a JSON schema$"):
            tiny.generate("x", schema=kind)
    banned = dict.fromkeys((ord("y"), ord("n")), float("-inf"))
    ids = {ord(c): tiny.tokenizer.encode(c)[0] for c in "yn"}
    with pytest.raises(ValueError, match="no token is left"):
        tiny.generate("x", choices=["y", "n"], logit_bias={ids[k]: v for k, v in banned.items()})
