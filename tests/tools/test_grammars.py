"""What the grammar of an answer allows, its reader reads; and the values fulfil the schemas."""

from __future__ import annotations

import random
from functools import partial
from typing import Any, Literal

import jsonschema
import pytest
from call_texts import ARGUMENTS, BARE, MARKS, WRITERS, pieces
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from slmq.tools.answer import answer_grammar
from slmq.tools.calls import Mark, Said, ToolCall, call_id
from slmq.tools.dialects import dialect_named
from slmq.tools.reader import CallReader, Reader, ReasoningReader
from slmq.tools.tool import Tool, tools_of

END = "<end>"
THINK = {"<think>": "</think>"}


def f(n: int, s: str = "x", b: bool = False, c: Literal["red", "green"] = "red") -> None:
    """Do."""


def g(names: list[str], sizes: dict[str, int] | None = None) -> None:
    """Do."""


TOOLS = tools_of([f, g])


class Letters:
    """A vocabulary of bytes and markers, as llguidance takes it."""

    def __init__(self, marks: tuple[str, ...]) -> None:
        texts = [*marks, END]
        self.tokens = [bytes([i]) for i in range(256)] + [text.encode() for text in texts]
        self.ids = {text: 256 + i for i, text in enumerate(marks)}
        self.eos_token_id = len(self.tokens) - 1
        self.bos_token_id = None
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())

    def matcher(self, grammar: str) -> Any:
        found = LLMatcher(LLTokenizer(TokenizerWrapper(self)), grammar)
        assert not found.is_error(), f"{found.get_error()}\n{grammar}"
        return found

    def said(self, tokens: list[int], reader: Reader | CallReader) -> Said:
        """What a reader makes of an answer."""
        said, text = Said(), b""
        for token in tokens:
            if token < 256:
                text += bytes([token])
                continue
            said.add(reader.push(text.decode("utf-8", "replace")))
            said.add(reader.push(Mark(self.tokens[token].decode())))
            text = b""
        said.add(reader.push(text.decode("utf-8", "replace")))
        said.add(reader.finish())
        return said


def walk(letters: Letters, grammar: str, seed: int, longest: int = 500) -> list[int] | None:
    """A random answer that the grammar allows; None if it does not end soon."""
    rng, found, matcher = random.Random(seed), list[int](), letters.matcher(grammar)
    while not matcher.is_stopped() and len(found) < longest:
        mask = matcher.compute_bitmask()
        allowed = [i for i in range(len(letters.tokens)) if mask[i // 8] >> (i % 8) & 1]
        ending = [i for i in allowed if i >= 256 or chr(i) in '"}])\n<,:']
        shown = [i for i in allowed if 32 <= i < 127 or i >= 256] or allowed
        token = rng.choice(ending if ending and rng.random() < 0.6 else shown)
        if token == letters.eos_token_id:
            return found
        matcher.consume_token(token)
        found.append(token)
    return found if matcher.is_stopped() else None


def reader(dialect: str, marks: tuple[str, ...]) -> CallReader:
    kinds = frozenset(tool.name for tool in TOOLS)
    return CallReader(dialect_named(dialect, TOOLS), kinds, partial(call_id, b""), frozenset(marks))


def check(call: ToolCall) -> None:
    schema = next(tool.parameters for tool in TOOLS if tool.name == call.name)
    jsonschema.validate(call.arguments, schema)


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "spelled"])
@pytest.mark.parametrize("dialect", sorted(MARKS))
def test_a_required_call_is_one_whatever_is_drawn(dialect: str, tokens: bool) -> None:
    marks = MARKS[dialect] if tokens else ()
    letters = Letters(marks)
    grammar = answer_grammar(
        dialect_named(dialect, TOOLS), TOOLS, letters.ids, {}, None, most=3, free=False
    )
    calls = 0
    for seed in range(6):
        found = walk(letters, grammar, seed)
        if found is not None:
            said = letters.said(found, reader(dialect, marks))
            assert said.calls
            assert said.text == ""
            assert len(said.calls) <= 3
            for call in said.calls:
                check(call)
            calls += len(said.calls)
    assert calls


WORTH: dict[str, Any] = {"n": 3, "s": "a b", "b": True, "c": "green"}


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "spelled"])
@pytest.mark.parametrize("dialect", sorted(MARKS))
def test_families_may_write_calls_as_they_do(dialect: str, tokens: bool) -> None:
    """Text, then calls: the grammar takes them, and after the marker nothing else."""
    marks = MARKS[dialect] if tokens else ()
    letters = Letters(marks)
    grammar = answer_grammar(
        dialect_named(dialect, TOOLS), TOOLS, letters.ids, {}, None, most=2, free=True
    )
    by_name = dialect in ("functiongemma", "gemma4")
    arguments = dict(sorted(WORTH.items())) if by_name else WORTH
    text = WRITERS[dialect]([("f", arguments)])
    if dialect in ("pythonic", "lfm2", "olmo3"):
        text = text.replace("'", '"')
    before = "" if dialect in BARE else "Well. "
    matcher = letters.matcher(grammar)
    tokens_of = [letters.ids[p] if m else p.encode() for p, m in pieces(before + text, marks)]
    flat = [i for item in tokens_of for i in ([item] if isinstance(item, int) else list(item))]
    assert matcher.validate_tokens(flat) == len(flat)
    matcher.consume_tokens(flat)
    assert matcher.is_accepting()
    said = letters.said(flat, reader(dialect, marks))
    assert [(call.name, call.arguments) for call in said.calls] == [("f", arguments)]
    wrong = (before + text).replace("3", "x").encode() if not marks else b""
    if wrong:
        assert letters.matcher(grammar).validate_tokens(list(wrong)) < len(wrong)


@pytest.mark.parametrize("within", [None, "</think>"])
def test_reasoning_may_come_first_and_holds_no_calls(within: str | None) -> None:
    marks = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    letters = Letters(marks)
    dialect = dialect_named("hermes", TOOLS)
    grammar = answer_grammar(dialect, TOOLS, letters.ids, THINK, within, most=1, free=False)
    call = b'\n{"name": "f", "arguments": {"n": 3}}\n'
    ids = letters.ids
    thought = [] if within else [ids["<think>"]]
    thought += [*b"\n<tool_call> or ", ids["<tool_call>"], *b"?\n", ids["</think>"]]
    answer = [*thought, ids["<tool_call>"], *call, ids["</tool_call>"]]
    matcher = letters.matcher(grammar)
    assert matcher.validate_tokens(answer) == len(answer)
    marked = frozenset(marks)
    calls = CallReader(dialect, frozenset("f"), partial(call_id, b""), marked)
    said = letters.said(answer, Reader(ReasoningReader(THINK, within), calls))
    assert said.reasoning == "<tool_call> or <tool_call>?"
    assert [(found.name, found.arguments) for found in said.calls] == [("f", {"n": 3})]
    assert said.text == ""


def test_strings_without_quotes_are_bounded_or_refused() -> None:
    limited = Tool("f", "", {"properties": {"s": {"type": "string", "maxLength": 3}}})
    letters = Letters(())
    for name, text in [
        ("qwen3-coder", "<tool_call>\n<function=f>\n<parameter=s>\n{}\n</parameter>\n</function>"),
        ("functiongemma", "<start_function_call>call:f{{s:<escape>{}<escape>}}"),
        ("gemma4", '<|tool_call>call:f{{s:<|"|>{}<|"|>}}'),
    ]:
        dialect = dialect_named(name, [limited])
        grammar = answer_grammar(dialect, [limited], {}, {}, None, most=1, free=False)
        for value, fits in [("abc", True), ("abcd", False)]:
            whole = text.format(value).encode()
            assert (letters.matcher(grammar).validate_tokens(list(whole)) == len(whole)) is fits
        strict = Tool("f", "", {"properties": {"s": {"type": "string", "pattern": "a+"}}})
        with pytest.raises(ValueError, match=r"f[.(]s\)?: 'pattern' cannot be enforced"):
            answer_grammar(dialect, [strict], {}, {}, None, most=1, free=False)


def test_names_that_python_cannot_call_are_refused_there() -> None:
    tool = Tool("get-time", "", {"properties": {}})
    with pytest.raises(ValueError, match="'get-time': expected a name that Python can call"):
        answer_grammar(dialect_named("pythonic", [tool]), [tool], {}, {}, None, most=1, free=True)


def test_examples_have_arguments_of_every_kind() -> None:
    kinds = {type(value) for arguments in ARGUMENTS for value in arguments.values()}
    assert kinds == {int, str, float, bool, list, dict}
