"""No template takes more than a second and 256 MB: known ones that tried, and generated ones."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2.filters import FILTERS
from jinja2.tests import TESTS
from storm import MAX_BYTES, MAX_SECONDS, watch
from template_bombs import BOMBS

from slmq.chat.meter import BUDGET, Lazy, Meter, measure
from slmq.chat.sandbox import TemplateSandbox
from slmq.chat.templates import ChatTemplates
from slmq.errors import TemplateError

STORM = str(Path(__file__).parents[1] / "support" / "template_storm.py")
USER = [{"role": "user", "content": "hi"}]


def render(template: str, messages: Any = USER, **extra: Any) -> str:
    chat = ChatTemplates({"default": template}, {})
    return chat.render(messages, add_generation_prompt=True, tools=None, extra=extra)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """What every bomb came to, in a process that may hang or die instead."""
    return watch([STORM])[0]


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_defused(name: str, outcomes: dict[str, Any]) -> None:
    case = outcomes[name]
    assert case["outcome"].startswith("TemplateError: ")
    assert "MemoryError" not in case["outcome"]
    assert case["seconds"] < MAX_SECONDS
    assert case["peak"] < MAX_BYTES


def test_generated_templates_keep_to_their_time_and_memory() -> None:
    found = watch([STORM, "2500", "1"], [STORM, "2500", "2"])
    assert [run["over"] for run in found] == [[], []]
    for run in found:
        # Sharp enough to be of use: some are stopped, and some come through.
        assert run["cases"] >= 2500
        assert run["cases"] / 10 < run["texts"] < run["cases"] * 2 / 3


# What is bounded still works ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 3 < 2 < missing.x }}", "TrueFalseFalse"),
        (
            "{{ [1, [2]] == [1, [2]] }}{{ (1, 2) < (1, 3) }}{{ {'a': [1]} != {'a': [2]} }}",
            "TrueTrueTrue",
        ),
        (
            "{% set x = 'b' %}{{ x in ['a', 'b'] }}{{ x not in 'abc' }}{{ x in {'b': 1} }}",
            "TrueFalseTrue",
        ),
        (
            "{% set l = [[2], [1]] %}{{ l|sort }}{{ [1] in l }}{{ l.index([1]) }}{{l.count([2])}}",
            "[[1], [2]]True11",
        ),
        (
            "{% set s = 'a-b-c' %}{{ s.split('-', 1)[1] }}{{ s.split(sep='-', maxsplit=1) }}",
            "b-c['a', 'b-c']",
        ),
        ("{{ 'a\nb' | indent('> ', true) }}|{{ 'a\nb' | indent }}", "> a\n> b|a\n    b"),
        ("{{ '{:>4}|{!r}|{a[0]}'.format(7, 'x', a=[1]) }}", "   7|'x'|1"),
        (
            "{{ '%s is %d%%' % ('x', 5) }}{{ '%(a)s' % {'a': 1} }}{{ '%s' | format('y') }}",
            "x is 5%1y",
        ),
        (
            "{{ ('<b>' | safe) + '<i>' }}{{ ('<b>' | safe).upper() }}{{ '<' | e }}",
            "<b>&lt;i&gt;<B>&lt;",
        ),
        (
            "{{ [3, 1] | sum }}{{ [[1], [2]] | sum(start=[]) }}{{ [{'a': 2}] | sum('a') }}",
            "4[1, 2]2",
        ),
        ("{{ [[1, 2], [3]] | map('join', '+') | join(';') }}", "1+2;3"),
        (
            "{{ [1, 2, 3] | batch(2, 0) | list }}{{ [1, 2, 3] | slice(2) | list }}",
            "[[1, 2], [3, 0]][[1, 2], [3]]",
        ),
        ("{{ 'abc' | reverse }}{{ [1, 2] | reverse | list }}{{ 'abc'[::-1][1:] }}", "cba[2, 1]ba"),
        (
            "{% for g in [{'k': 1, 'v': 2}, {'k': 1, 'v': 3}] | groupby('k') %}"
            "{{ g.grouper }}{{ g.list | map(attribute='v') | join }}{% endfor %}",
            "123",
        ),
        (
            "{{ 'f' | int(0, 16) }}{{ '2.5' | float }}{{ 2.567 | round(1) }}{{ 9 ** 20 // 7 }}",
            "152.52.61736809351293846971",
        ),
        (
            "{{ [1, {'b': 2, 'a': [3]}] | tojson(indent=2, sort_keys=true) }}",
            '[\n  1,\n  {\n    "a": [\n      3\n    ],\n    "b": 2\n  }\n]',
        ),
        ("{{ [1, 2] | tojson(separators=('-', ':')) }}{{ 'é' | tojson(true) }}", '[1-2]"\\u00e9"'),
        (
            "{% set d = dict([['a', 1]], b=2) %}{{ d }}{{ dict.fromkeys('ab', 0) }}",
            "{'a': 1, 'b': 2}{'a': 0, 'b': 0}",
        ),
        (
            "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}"
            "{{ f(*[1, 2, 3], **{'z': 4}) }}",
            "12(3,){'z': 4}",
        ),
        (
            "{% for i in [1,[2,[3]]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
            "123",
        ),
        (
            "{% for i in 'aab' %}{{ loop.changed(i) }}{{ loop.cycle('x', 'y') }}{% endfor %}",
            "TruexFalseyTruex",
        ),
        (
            "{{ 'b' in ('a' ~ 'b') }}{{ none is none }}{{ [] is eq([]) }}{{ 'a' is in('abc') }}",
            "TrueTrueTrueTrue",
        ),
        (
            "{% generation %}a{% endgeneration %}{% call(x) f() %}{{ x }}{% endcall %}"
            "{% macro f() %}{% endmacro %}",
            None,
        ),
        (
            "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}",
            "aba",
        ),
        ("{% block b %}x{% endblock %}{{ self.b() }}{% filter upper %}y{% endfilter %}", "xxY"),
        (
            "{{ {'b': 1, 'a': 2} | dictsort }}{{ {'a': 1} | items | list }}",
            "[('a', 2), ('b', 1)][('a', 1)]",
        ),
        ("{{ ['a', 'A', 'b'] | unique | join }}{{ ['b', 'a'] | min }}{{ [1, 2] | max }}", "aba2"),
        (
            "{{ messages | selectattr('role', 'eq', 'user') | map(attribute='content') | first }}",
            "hi",
        ),
        (
            "{{ 7|filesizeformat }}{{ 'a b'|wordcount }}{{ 'a b'|title }}{{ 'a b' | urlencode }}",
            "7 Bytes2A Ba%20b",
        ),
    ],
)
def test_bounded_operations_give_what_jinja_gives(template: str, text: str | None) -> None:
    if text is None:
        with pytest.raises(TemplateError, match="undefined"):
            render(template)
    else:
        assert render(template) == text


@pytest.mark.skipif(not jinja2.__version__.startswith("3.1."), reason="the list is of jinja2 3.1")
def test_every_filter_and_test_of_jinja_is_there() -> None:
    sandbox = TemplateSandbox()
    assert {name for name in sandbox.filters if not name.startswith("_")} == set(FILTERS)
    assert set(sandbox.tests) == set(TESTS)


def test_no_name_of_ours_can_be_used() -> None:
    for template in (
        "{{ [1] | _turns(-999999999) | list }}",
        "{{ 'a' | _spent }}",
        "{{ [1] | map('_turns', -999999999) | list }}",
        "{{ [1] | select('_spent') | list }}",
    ):
        with pytest.raises(TemplateError, match="filter"):
            render(template)


def test_a_long_chat_is_no_hostile_one() -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1]"
        " + '<|im_end|>\n' }}{% endfor %}"
    )
    for text in ("word " * 800_000, "\u4e00" * 1_000_000, "\U0001f600 " * 400_000):
        assert text in render(template, [{"role": "user", "content": text}])
    many = [{"role": ("user", "assistant")[i % 2], "content": "ab" * 50} for i in range(20_000)]
    assert render(template, many).count("<|im_end|>") == 20_000


def test_what_a_template_held_in_circles_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Any]] = []

    class Watched(Lazy):
        __slots__ = ("__weakref__",)

    def watched(value: Any) -> Any:
        found = Watched(iter([value]), value)
        held.append(weakref.ref(found))
        return found

    chat = ChatTemplates(
        {"default": "{% set n = namespace() %}{% set n.x = [n, 'a' | watched] %}{% set k = n %}"},
        {},
    )
    original = TemplateSandbox.__init__

    def with_filter(self: TemplateSandbox) -> None:
        original(self)
        self.filters["watched"] = watched

    monkeypatch.setattr(TemplateSandbox, "__init__", with_filter)
    gc.disable()
    try:
        chat.render(USER, add_generation_prompt=True, tools=None, extra={})
        assert [ref() for ref in held] == [None]
    finally:
        gc.enable()


def test_values_are_weighed_once_however_often_they_are_held() -> None:
    value: list[Any] = []
    for _ in range(20):
        value = [value, value]
    token = Meter.current.set(Meter())
    try:
        before = Meter.current.get().left
        size = measure(value)
        assert size >= 64 * 2**20  # as a text, of a million lists
        assert before - Meter.current.get().left < 21 * 200  # looked at: 21
        for _ in range(20):
            value = [value, value]
        with pytest.raises(Exception, match=f"more than {BUDGET} bytes or steps"):
            measure(value)
    finally:
        Meter.current.reset(token)
