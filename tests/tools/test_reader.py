"""Answers are read the same however they are cut into pieces."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
from call_texts import MARKS, answers, pieces
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq.tools.calls import Mark, Said, call_id
from slmq.tools.dialects import DIALECTS, dialect_named
from slmq.tools.reader import CallReader
from slmq.tools.tool import Tool

SCHEMA = {"type": "object", "properties": {"s": {"type": "string"}}}
TOOLS = (Tool("f", "", SCHEMA), Tool("g", "", SCHEMA))


def reader(dialect: str, marks: tuple[str, ...] = ()) -> CallReader:
    return CallReader(
        dialect_named(dialect, TOOLS), frozenset("fg"), partial(call_id, b""), frozenset(marks)
    )


def heard(said: Said) -> tuple[str, list[Any]]:
    return said.text, [(call.name, call.arguments) for call in said.calls]


State = tuple[dict[str, Any], "dict[str, Any] | None"]


def state(found: CallReader) -> State:
    """All that a reader will ever act by: its fields, and those of the span it is in."""
    fields = dict(vars(found))
    span = fields.pop("_span")
    return fields, None if span is None else dict(vars(span))


def clone(found: CallReader) -> CallReader:
    other = object.__new__(CallReader)
    vars(other).update(vars(found))
    if found._span is not None:
        other._span = object.__new__(type(found._span))
        fields = vars(found._span)
        vars(other._span).update(fields)
        if "_stack" in fields:
            vars(other._span)["_stack"] = list(fields["_stack"])
    return other


def test_every_dialect_has_examples() -> None:
    assert MARKS.keys() == DIALECTS.keys()


@pytest.mark.parametrize("tokens", [False, True], ids=["spelled", "tokens"])
@pytest.mark.parametrize("dialect", sorted(MARKS))
def test_examples_give_their_calls(dialect: str, tokens: bool) -> None:
    marks = MARKS[dialect] if tokens else ()
    for text, words, calls in answers(dialect):
        read, said = reader(dialect, marks), Said()
        for piece, marked in pieces(text, marks):
            said.add(read.push(Mark(piece) if marked else piece))
        said.add(read.finish())
        assert heard(said) == (words, calls), text


SPELLED = {"generic", "olmo3"}  # of the others the markers are tokens, which nothing cuts


@pytest.mark.parametrize("dialect", sorted(MARKS))
def test_every_way_of_cutting_gives_the_calls_of_the_whole(dialect: str) -> None:
    """From the state after any beginning, any next piece leads to the one state after both.

    So do two pieces, three, and by induction every way of cutting the text.
    """
    marks = () if dialect in SPELLED else MARKS[dialect]
    for text, words, calls in answers(dialect):
        parts = pieces(text, marks)
        reached, saids = [reader(dialect, marks)], [Said()]
        for part, marked in parts:
            following = clone(reached[-1])
            said = copy.deepcopy(saids[-1])
            said.add(following.push(Mark(part) if marked else part))
            reached.append(following)
            saids.append(said)
        wanted = [(*state(found), *heard(said)) for found, said in zip(reached, saids, strict=True)]
        for begin in range(len(parts)):
            spoken, called = heard(saids[begin])
            piece = ""
            for end in range(begin + 1, len(parts) + 1):
                if parts[end - 1][1]:
                    break  # a piece of text ends before a token
                piece += parts[end - 1][0]
                read = clone(reached[begin])
                words_then, calls_then = heard(read.push(piece))
                got = (*state(read), spoken + words_then, called + calls_then)
                assert got == wanted[end], piece
        last = saids[-1]
        last.add(reached[-1].finish())
        assert heard(last) == (words, calls)


FRAGMENTS = [
    *{mark for marks in MARKS.values() for mark in marks},
    *"{}[]()\"'\\,:;= \n",
    '{"name": "f", "arguments": {}}',
    '{"name": "f", "parameters": {"s": "x"}}',
    "<function=f>",
    "</function>",
    "<parameter=s>",
    "</parameter>",
    "call:f{s:",
    "f(s=",
    "text",
    "-" * 300 + "1",
    "[" * 300,
]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(MARKS)),
    st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join),
    st.integers(1, 9),
)
def test_no_text_breaks_a_reader(dialect: str, text: str, size: int) -> None:
    """Whatever it is: read in pieces as the whole, and none of its words is lost."""
    whole, cut = reader(dialect), reader(dialect)
    said = whole.push(text)
    said.add(whole.finish())
    again = Said()
    for i in range(0, len(text), size):
        again.add(cut.push(text[i : i + size]))
    again.add(cut.finish())
    assert heard(again) == heard(said)
    if not said.calls:
        assert said.text == text
