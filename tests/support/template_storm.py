"""Templates that multiply whatever a template can do, and what each of them takes.

A grammar makes values that are long, wide, deep, huge or hold themselves many times, and puts them
through every operator, filter, test, method and function, in loops and macros.

``python tests/support/template_storm.py 100000`` runs as many, with the slowest and the largest at
the end; a second argument is the seed. Without arguments, the templates of `template_bombs` run.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from hypothesis import strategies as st
from storm import given_cases, guard_memory, storm
from template_bombs import BOMBS

from slmq.chat.templates import ChatTemplates
from slmq.errors import TemplateError

MESSAGES = [
    {"role": "user", "content": "caf\u00e9 <b>'\"&\n\ta,b;c "},
    {"role": "assistant", "content": "x" * 3000, "tool_calls": [{"name": "f", "arguments": {}}]},
]

# Values -------------------------------------------------------------------------------------

COUNTS = ["0", "1", "2", "7", "99", "999", "4000", "99999", "3000000", "8000000", "10 ** 9", "-5"]
SMALL = ["1", "2", "60", "999"]

# What makes a value of each kind, of values of others: T a text, L a list, M a mapping, C a count,
# N a number, A anything at all.
ATOMS = {
    "T": ["''", "'a'", "'ab\\n'", "'\u4e00'", "'\U0001f600'", "'\\x00'", "' '", "\"<'&>\"", "'%s'",
          "'{}'", "'{0}{0}'", "'%(a)s%(a)s'", "'f'", "','", "'a.b'", "t", "messages[0].content"],
    "L": ["[]", "[1]", "['a', 'b']", "(1, 2)", "messages", "h", "k", "g", "n.x", "[h, k]", "(h, k)",
          "range(99)", "range(99999)", "[[1], [2]]", "[none]", "d.items()"],
    "M": ["{}", "{'a': 1}", "d", "messages[1]", "{'a': t, 'b': u}", "{1: h}", "dict(a=k)"],
    "N": ["0", "1", "-1", "2.5", "9 ** 999", "2 ** 61 - 1", "1e308", "true", "7 // 2"],
    "A": ["missing", "none", "n", "u", "n.x", "m", "range", "h", "t"],
}  # fmt: skip
MADE = {
    "T": [
        "(T * C)", "(T ~ T)", "(T + T)", "(T ~ A)", "(T % A)", "(T % M)", "(T % (A, A))", "T[C:]",
        "T[::C]", "T[::-1]", "(A | string)", "(T | upper)", "(T | lower)", "(T | capitalize)",
        "(T | center(C))", "(T | e)", "(T | forceescape)", "(T | safe)", "(T | format(A, A))",
        "(T | format(a=A))", "(T | indent(C))", "(T | indent(T))", "(T | indent(C, true))",
        "(L | join)", "(L | join(T))", "(L | join(T, 'a'))", "(A | tojson)",
        "(L | tojson(indent=C))",
        "(L | tojson(indent=T))", "(L | tojson(separators=(T, T)))", "(A | pprint)",
        "(M | tojson(true, sort_keys=true))", "(T | replace(T, T))", "(T | replace('', T))",
        "(T | replace(T, T, C))", "(T | reverse)", "(T | striptags)", "(T | title)", "(T | trim)",
        "(T | trim(T))", "(T | truncate)", "(T | truncate(C, true, T))", "(T | urlencode)",
        "(T | urlize)", "(T | urlize(C))", "(T | wordwrap(C))", "(T | wordwrap(C, true, T))",
        "(M | xmlattr)", "(N | filesizeformat)", "T.capitalize()", "T.casefold()", "T.center(C)",
        "T.center(C, 'x')", "T.format(A, A)", "T.format(*L)", "T.format(a=A)", "T.join(L)",
        "T.ljust(C)", "T.lower()", "T.lstrip(T)", "T.removeprefix(T)", "T.replace(T, T)",
        "T.replace('', T)", "T.replace(T, T, C)", "T.rstrip(T)", "T.strip(T)", "T.strip()",
        "T.swapcase()", "T.title()", "T.upper()", "T.zfill(C)", "m(A)", "m(A, *L)", "m(**M)",
        "joiner(T)()", "cycler(T, T).next()", "(L | map('string') | join)", "T.expandtabs(C)",
        "strftime_now(T)", "(T if A else T)",
    ],
    "L": [
        "(L * C)", "([A] * C)", "((A,) * C)", "(L + L)", "[L, L]", "(L, L)", "[A]", "[T, T]",
        "L[C:]",
        "L[::-1]", "range(C)", "(range(C) | list)", "(T | list)", "(L | list)", "(L | batch(C))",
        "(L | batch(C, A) | list)", "(M | dictsort)", "(M | dictsort(by='value'))",
        "(L | groupby('a'))", "(L | groupby(0))", "(L | groupby('a', default=A))", "(M | items)",
        "(L | map('upper'))", "(L | map('list') | list)", "(L | map(attribute='a'))",
        "(L | map('replace', T, T))", "(L | reject)", "(L | reject('in', L))", "(L | select)",
        "(L | rejectattr('a'))", "(L | select('eq', A))", "(L | select('lt', A))", "(L | reverse)",
        "(L | select('lower'))", "(L | selectattr('a', 'eq', A))", "(L | slice(C))", "(L | sort)",
        "(L | slice(C, A) | list)", "(L | sort(attribute='a'))", "(L | sort(true, true))",
        "(L | sum(start=[]))", "(L | sum(start=()))", "(L | sum(start=L))", "(L | unique | list)",
        "(L | unique(attribute='a'))", "T.partition(T)", "T.rpartition(T)", "T.rsplit(T)",
        "T.rsplit()", "T.rsplit(T, C)", "T.split(T)", "T.split()", "T.split(none, C)",
        "T.splitlines()", "T.splitlines(true)", "M.items()", "M.keys()", "M.values()", "L.copy()",
    ],
    "M": [
        "{'a': A, 'b': A}", "{T: A}", "{A: 1}", "dict(L)", "dict(M, a=A)", "dict.fromkeys(L, A)",
        "M.copy()", "dict(L | map('list') | map('batch', 2) | first)", "namespace(M)",
    ],
    "N": [
        "(N + N)", "(N - N)", "(N * N)", "(N / N)", "(N // N)", "(N % N)", "(N ** N)",
        "(T | length)",
        "(L | length)", "(L | sum)", "(N | abs)", "(T | float)", "(T | int)", "(T | int(0, 16))",
        "(T | int(0, 2))", "(N | round(C))", "(N | round(C, 'floor'))", "(T | wordcount)",
        "T.count(T)", "T.find(T)", "T.rfind(T)", "L.count(A)", "L.index(A)", "(A == A)", "(A != A)",
        "(L == L)", "(L < L)", "(T < T)", "(M == M)", "(A in L)", "(T in T)", "(A not in L)",
        "(T in M)", "(A is defined)", "(N is divisibleby(N))", "(A is eq(A))", "(L is lt(L))",
        "(A is in(L))", "(A is lower)", "(N is odd)", "(A is sameas(A))", "(T is upper)",
        "T.endswith(T)", "T.startswith((T, T))", "T.isalnum()", "T.isspace()", "N.bit_length()",
        "(L is iterable)", "(A and A)", "(L < L < L)", "(A is filter)", "(T is test)",
    ],
    "A": [
        "T", "L", "M", "N", "L[C]", "L[A]", "M[A]", "M[T]", "M.a", "M.get(A, A)", "A.a", "A['a']",
        "(L | first)", "(L | last)", "(L | max)", "(L | min)", "(L | max(attribute='a'))",
        "(L | random)", "(A | attr(T))", "(A | default(A, true))", "(A | T)", "A.b.c",
        "A.__class__",
        "raise_exception(A)", "r(99)", "lipsum()", "A(A)", "M.update(M)", "L.append(A)",
        "T.encode()", "T.translate(M)", "T.format_map(M)", "N.to_bytes(C, 'big')", "self.b()",
    ],
}  # fmt: skip


@st.composite
def expressions(draw: st.DrawFn, kind: str = "A", depth: int = 2) -> str:
    """An expression that has a kind, of at most so many operations in one another."""
    if draw(st.integers(0, 19)) == 0:
        kind = draw(st.sampled_from("TLMNA"))  # what should not be
    if depth == 0:
        return draw(st.sampled_from(ATOMS[kind]))
    made = draw(st.sampled_from(MADE[kind]))
    parts = []
    for sign in re.split(r"\b([TLMNAC])\b", made):
        if sign == "C":
            parts.append(draw(st.sampled_from(SMALL if draw(st.booleans()) else COUNTS)))
        elif sign in ATOMS:
            parts.append(draw(expressions(sign, draw(st.integers(0, depth - 1)))))
        else:
            parts.append(sign)
    return "".join(parts)


BEFORE = (
    "{% macro m(a, b=1) %}{{ a }}{{ caller() if caller }}{{ a }}{% endmacro %}"
    "{% macro r(i) %}{% if i %}{{ r(i - 1) }}{{ r(i - 1) }}{% endif %}{% endmacro %}"
    "{% set n = namespace(x=HELD) %}"
)
HELD = ["[]", "()", "'ab'", "1", "{}", "[1]", "['a', 'b']", "range(9)", "messages"]
STEPS = [
    "[n.x, n.x]", "(n.x, n.x)", "{'a': n.x, 'b': n.x}", "n.x + n.x", "n.x ~ n.x", "n.x * 2",
    "[n.x]",
    "(n.x,)", "n.x | list", "n.x | map('string')", "n.x | select", "[n]", "n.x * n.x",
    "n.x.items()",
]  # fmt: skip
BODIES = [
    "{{ A }}",
    "{{ (T) | length }}",
    "{{ (L) | list | length }}",
    "{% if A %}a{% elif N %}b{% endif %}",
    "{% for i in L %}{{ i }}{% endfor %}",
    "{% for i in L %}{{ loop.length }}{{ loop.changed(i, A) }}{% endfor %}",
    "{% for i in L %}{{ loop.last }}{{ loop.previtem }}{{ loop.cycle(T, T) }}{% endfor %}",
    "{% for i in L if i == A %}x{% else %}y{% endfor %}",
    "{% for i in L recursive %}{{ loop(L) }}{% endfor %}",
    "{% for i in range(9999) %}{% set n.x = A %}{% endfor %}",
    "{% for i in range(60) %}{% set n.x = L %}{% endfor %}{{ A }}",
    "{% for i in range(60) %}{% set n.x = T %}{% endfor %}{{ n.x ~ n.x }}",
    "{% for i in L %}{% for j in L %}{{ T }}{% endfor %}{% endfor %}",
    "{% set v %}{{ T }}{% endset %}{{ v ~ v }}",
    "{% set v = {T: A} %}{{ v }}",
    "{% call m(A) %}{{ T }}{% endcall %}",
    "{% filter upper %}{{ T }}{% endfilter %}",
    "{% with w = A %}{{ w == A }}{% endwith %}",
    "{% block b %}{{ T }}{% endblock %}{{ self.b() }}",
    "{% set a, b = L %}{{ a < b }}",
]


@st.composite
def templates(draw: st.DrawFn) -> str:
    """A template: values that have grown, then a statement or two."""
    parts = [BEFORE.replace("HELD", draw(st.sampled_from(HELD)))]
    if draw(st.booleans()):
        turns, step = draw(st.sampled_from(["2", "24", "60", "99"])), draw(st.sampled_from(STEPS))
        parts.append(f"{{% for i in range({turns}) %}}{{% set n.x = {step} %}}{{% endfor %}}")
    parts.append("{% set h = n.x %}{% set k = [n.x, n.x] %}{% set d = {'a': n.x, 'b': h} %}")
    parts.append("{% set t = 'ab' %}{% set u = 1 %}{% set g = [{'a': 'b', 'b': h}, {'a': 'c'}] %}")
    parts.append(f"{{% set t = {draw(expressions('T', 1))} %}}")
    parts.append(f"{{% set u = {draw(expressions('A', 2))} %}}")
    for _ in range(draw(st.integers(1, 2))):
        for sign in re.split(r"\b([TLMNA])\b", draw(st.sampled_from(BODIES))):
            parts.append(draw(expressions(sign, 2)) if sign in ATOMS else sign)
    return "".join(parts)


def rendered(source: str) -> str:
    """Render a template; every refusal is a `TemplateError`."""
    chat = ChatTemplates({"default": source}, {"bos_token": "<s>"})
    options: dict[str, Any] = {"add_generation_prompt": True, "tools": None, "extra": {}}
    try:
        chat.render(MESSAGES, **options)
    except TemplateError as e:
        return f"TemplateError: {e}"
    return "text"


if __name__ == "__main__":
    rendered("{{ messages | tojson }}")  # what is imported late is no case's
    guard_memory(4 << 30)
    if len(sys.argv) > 1:
        storm(templates(), rendered, int(sys.argv[1]), int((*sys.argv, "0")[2]))
    else:
        given_cases(BOMBS.items(), rendered)
