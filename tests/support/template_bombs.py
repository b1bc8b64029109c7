"""Templates that would take for ever, or all memory, if they were not stopped.

Those of the first table grew what the meter of old knew of; those of the second went around it, in
one call of C that asks no clock, or in memory that was taken before it was charged.
"""

from __future__ import annotations


def grow(expression: str, start: str = "'ab'", end: str = "") -> str:
    """A template that puts `expression` of ``n.x`` into ``n.x``, 99 times."""
    loop = "{% for i in range(99) %}{% set n.x = " + expression + " %}{% endfor %}"
    return "{% set n = namespace(x=" + start + ") %}" + loop + end


GROWING = {
    "range": "{{ range(10 ** 9) | list }}",
    "nested ranges": "{% for a in range(99999) %}" * 2 + "{% endfor %}" * 2,
    "nested strings": "{% for a in 'ab' * 50 %}" * 9 + "{% endfor %}" * 9,
    "fixed text": "{% for a in range(99999) %}" * 2 + "x" * 999 + "{% endfor %}" * 2,
    "captured text": "{% set t %}{% for a in range(99999) %}"
    + "x" * 9999
    + "{% endfor %}{% endset %}",
    "times": "{{ 'a' * 10 ** 10 }}",
    "times list": "{{ ([1] * 10 ** 9) | length }}",
    "times left": "{{ 10 ** 9 * 'ab' }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "squares": grow("n.x * n.x", "3"),
    "doubling by ~": grow("n.x ~ n.x"),
    "doubling by +": grow("n.x + n.x"),
    "doubling by join": grow("[n.x, n.x] | join"),
    "doubling by method": grow("''.join([n.x, n.x])"),
    "doubling by format": grow("'%s%s' | format(n.x, n.x)"),
    "doubling by percent": grow("'%s%s' % (n.x, n.x)"),
    "doubling by braces": grow("'{}{}'.format(n.x, n.x)"),
    "doubling by replace": grow("n.x | replace('a', n.x)"),
    "doubling by macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + grow("f(n.x)"),
    "doubling lists": grow("n.x + n.x", "[1]"),
    "laughing": grow("[n.x, n.x]", end="{{ n.x }}"),
    "laughing in JSON": grow("{'a': n.x, 'b': n.x}", end="{{ n.x | tojson }}"),
    "laughing in text": grow("[n.x, n.x]", end="{{ (n.x ~ '') | length }}"),
    "laughing in string": grow("[n.x, n.x]", end="{{ n.x | string | length }}"),
    "laughing in case": grow("[n.x, n.x]", end="{{ n.x | upper | length }}"),
    "laughing in braces": grow("[n.x, n.x]", end="{{ '{}'.format(n.x) | length }}"),
    "hoarding slices": "{% set n = namespace(x=[]) %}{% set s = 'x' * 9999999 %}"
    "{% for i in range(99999) %}{% set n.x = n.x + [s[1:]] %}{% endfor %}",
    "center": "{{ 'a' | center(10 ** 9) }}",
    "center method": "{{ 'a'.center(10 ** 9) }}",
    "zfill": "{{ '1'.zfill(10 ** 9) }}",
    "indent": "{{ ('a\n' * 99) | indent(10 ** 8) }}",
    "batch": "{{ [1] | batch(10 ** 8, 'x') | list }}",
    "json indent": "{{ [[1]] | tojson(indent=10 ** 9) }}",
    "percent width": "{{ '%999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (999999999, 1) }}",
    "percent precision": "{{ '%.999999999f' | format(1) }}",
    "brace width": "{{ '{:999999999}'.format(1) }}",
    "brace nested width": "{{ '{:{}}'.format(1, 999999999) }}",
    "expandtabs": "{{ ('\t' * 999).expandtabs(99999999) }}",
    "replace nothing": "{% set s = 'x' * 9999999 %}{{ s.replace('', s) | length }}",
    "branching macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(90) }}",
    "recursive loop": "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
}

HOLD = "{% set {0} = namespace(l={1}) %}{% for i in range(60) %}{% set {0}.l = {2} %}{% endfor %}"
LISTS = HOLD.replace("{0}", "a").replace("{1}", "[]").replace("{2}", "[a.l, a.l]")
LISTS += HOLD.replace("{0}", "b").replace("{1}", "[]").replace("{2}", "[b.l, b.l]")
TUPLES = HOLD.replace("{0}", "a").replace("{1}", "()").replace("{2}", "(a.l, a.l)")
WIDE = "('\u4e00' * 8000000)"
"""Two lists that hold themselves twice, 60 deep: a walk through one never ends."""

WALKS = {
    "==": "a.l == b.l",
    "!=": "a.l != b.l",
    "<": "a.l < b.l",
    "in": "a.l in [b.l]",
    "sort": "[a.l, b.l]|sort|length",
    "max": "[a.l,b.l]|max|length",
    "min": "[a.l,b.l]|min|length",
    "is eq": "a.l is eq(b.l)",
    "count()": "[b.l].count(a.l)",
    "index()": "[b.l].index(a.l)",
    "groupby": "[{'k':a.l},{'k':b.l}]|groupby('k')|list|length",
    "is in": "a.l is in([b.l])",
    "select eq": "[b.l]|select('eq', a.l)|list|length",
    "dictsort": "{'x':a.l,'y':b.l}|dictsort(by='value')|length",
    "raise": "raise_exception(a.l)",
    "is lower": "a.l is lower",
    "~": "(a.l ~ '')|length",
    "tojson": "a.l|tojson|length",
    "pprint": "a.l|pprint|length",
    "print": "a.l",
}
DEEP = "{% set a = namespace(l=()) %}{% for i in range(9999) %}{% set a.l = (a.l,) %}{% endfor %}"

AROUND = {
    **{f"lists: {name}": f"{LISTS}{{{{ {walk} }}}}" for name, walk in WALKS.items()},
    "lists: loop.changed": LISTS + "{% for x in [a.l, b.l] %}{{ loop.changed(x) }}{% endfor %}",
    "tuple as a key": TUPLES + "{{ {a.l: 1} | length }}",
    "tuple among keys": TUPLES + "{{ a.l in {} }}",
    "tuple to get": TUPLES + "{{ {}.get(a.l) }}",
    "tuple as a place": TUPLES + "{{ {}[a.l] }}",
    "unique tuples": TUPLES + "{{ [a.l, a.l] | unique | list | length }}",
    "hash of a deep tuple": DEEP + "{{ {a.l: 1} | length }}",
    "namespaces in circles": "".join(f"{{% set n{i} = namespace() %}}" for i in range(25))
    + "".join(f"{{% set n{i}.x = [{', '.join(f'n{j}' for j in range(25))}] %}}" for i in range(25))
    + "{{ n0 }}",
    "int //": "{% set x = ('f'*8000000)|int(0,16) %}{{ x // ((('e'*4000000)|int(0,16))) }}",
    "int %": "{% set x = ('f'*8000000)|int(0,16) %}{{ x % ((('e'*4000000)|int(0,16))) }}",
    "lstrip": "{{ ('一'*8000000).lstrip('b'*4000000~'一')|length }}",
    "trim": "{{ ('一'*8000000)|trim('b'*4000000~'一')|length }}",
    "rfind": "{{ ('a'*8000000).rfind('b'~'a'*4000000) }}",
    "rsplit": "{{ ('a'*8000000).rsplit('b'~'a'*4000000)|length }}",
    "sum ()": "{{ ([(1,)*100]*100000)|sum(start=())|length }}",
    "sum []": "{{ ([[1]*100]*100000)|sum(start=[])|length }}",
    "indent x": "{{ ('a\\n'*1000000)|indent('x'*1000000)|length }}",
    "indent 999": "{{ ('a\\n'*1000000)|indent(999)|length }}",
    "tojson separators": "{{ ([1] * 100000) | tojson(separators=('x' * 1000000, ':')) | length }}",
    "tojson indent text": "{{ ([1]*100000)|tojson(indent='x'*1000000)|length }}",
    "round": "{{ 5|round(-1000000000) }}",
    "round floor": "{{ 5|round(1000000000,'floor') }}",
    "format fields": "{% set s='x'*8000000 %}{{ ('{0}'*1000).format(s)|length }}",
    "percent mapping": "{% set s='x'*8000000 %}{{ ('%(a)s'*1000) % {'a':s} }}",
    "split": "{{ ('ab,'*5000000).split(',')|length }}",
    "list of wide text": "{{ ('一'*16000000)|list|length }}",
    "striptags": "{{ ('<!---->'*1000000)|striptags|length }}",
    "wordwrap": "{{ ('x'*2000000)|wordwrap(1)|length }}",
    "star": "{{ [1,2].index(*[1]*15000000) }}",
    "keys of one hash": "{% set n = namespace(x=[]) %}{% for i in range(8000) %}"
    "{% set n.x = n.x + [[i * 2305843009213693951, 1]] %}{% endfor %}{{ dict(n.x) | length }}",
    "a chain of filters": "{% set n = namespace(x=[1]) %}"
    "{% for i in range(99999) %}{% set n.x = n.x | select %}{% endfor %}{{ n.x | list }}",
    "filters at compile time": "{{ 'a'" + "| replace('a', 'aaaaaaaaaa')" * 9 + "| length }}",
    "long to compile": "{{ a.b + c * d - e }}" * 40000,
    "a body without calls": "{% for i in range(99999) %}"
    + "{% if i == 1 %}{% endif %}" * 900
    + "{% endfor %}",
    "escape": '{{ ("\'"*16000000)|e|length }}',
    "autoescape": '{% autoescape true %}{{ "\'"*16000000 }}{% endautoescape %}',
    "strftime": "{{ strftime_now('%c'*4000000)|length }}",
}

PIECES = [
    "{{ a + b - c * d }}", "{{ a < b < c < d }}", "{{ {a: b, c: d} }}", "{{ f(*a, **b) }}",
    "{% call f() %}x{% endcall %}", "{% set x = a %}", "{{ a[1:2] }}", "{# x #}",
]  # fmt: skip
LONG = {
    **{f"long: {piece}": piece * 9000 for piece in PIECES},
    "long: digits": "{{ " + "1" * 500_000 + " }}",
    "long: hexadecimal digits": "{{ 0x" + "f" * 500_000 + " }}",
    "long: underscores": "{{ " + "1_1" * 160_000 + " }}",
    "long: brackets": "{{ " + "(" * 4000 + "1" + ")" * 4000 + " }}",
    "long: signs": "{{ " + "-" * 8000 + "1 }}",
    "long: elif": "{% if a %}" + "{% elif b %}" * 1600 + "{% endif %}",
    "long: filters": "{{ a" + "|e" * 2500 + " }}",
}

# Comparisons that jinja2 does in Python, within one call of C.
AROUND["undefined ones"] = "{% set x = [missing] * 10000000 %}{{ 1 in x }}{{ x.count(1) }}"

MANY = {
    f"many: {name}": "{% set u = ((1, 2) * 3000000) | " + name + " %}"
    for name in ("min", "max", "sort", "join", "unique | list", "map('string') | list")
}
BOMBS = MANY | GROWING | AROUND | LONG
