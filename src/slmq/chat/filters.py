"""jinja2's filters and tests, each with a guard that charges it before it works.

The filters themselves are jinja2's, so that a template gives the text that it gives elsewhere; a
guard may turn their arguments into texts and lists first, which they would do themselves, unasked.
A filter without an entry here is closed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, cast

from jinja2 import Environment
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.filters import ignore_case as lowered
from jinja2.tests import TESTS
from jinja2.utils import pass_environment

from slmq.chat.meter import (
    ELEMENT,
    MAX_WIDTH,
    NODE,
    OPERATION,
    SIZED,
    VIEWS,
    Lazy,
    as_text,
    check_key,
    check_number,
    check_width,
    compared,
    listed,
    measure,
    need,
    size_of,
    spend,
    turns,
)
from slmq.chat.methods import (
    ESCAPED,
    charge_contains,
    charge_join,
    charge_percent,
    charge_replace,
    charge_search,
    count_lines,
    padded,
    recased,
    stripped,
)

__all__ = ["charge_in", "metered_filters", "metered_tests"]

MAX_SLOW = 1 << 16  # characters for filters that take long, and that no prompt needs for more
MAX_NUMERAL = 4096  # characters of a number
MAX_ATTRIBUTE = 100  # characters of ``attribute=``
LINE_NODE, INDENTED_NODE = 32, 512  # units of JSON for an element, in C and in Python
JSON_NODE = 64  # bytes of JSON's list of parts, for an element

Others = tuple[Any, ...]
Named = dict[str, Any]
Guard = Callable[[Any, Others, Named], tuple[Any, Others]]


# Guards: the value and the other arguments, charged --------------------------------------------


def nothing(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """The filter does something small."""
    return value, others


def text_guard(charge: Callable[[str, Others], Any]) -> Guard:
    """A filter that is a method of texts."""

    def guard(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
        text = as_text(value)
        charge(text, (*others, *named.values()))
        return text, others

    return guard


def whole_text(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """The filter makes a text of the value."""
    text = as_text(value)
    spend(size_of(text))
    return text, others


def escaping(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """The filter writes ``&#39;`` for a character."""
    text = as_text(value)
    size = size_of(text)
    need(ESCAPED * size)
    spend(size)
    return text, others


def slow_text(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """The filter works in Python, by the word, and copies what is left at every step."""
    text = as_text(value)
    given = [text, *(v for v in (*others, *named.values()) if isinstance(v, str))]
    size = sum(map(len, given))
    if size > MAX_SLOW:
        raise SecurityError(f"a text of {size} characters, expected at most {MAX_SLOW}")
    check_width(*given[1:])
    need(len(text) * sum(map(len, given[1:])))
    spend(OPERATION + size * OPERATION + (size * size >> 5))
    return text, others


def slow_mapping(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """The same of a value with all that it holds."""
    size = measure(value)
    if size > MAX_SLOW * 8:
        raise SecurityError(f"a value of {size} bytes, expected at most {MAX_SLOW * 8}")
    spend(OPERATION * size // 4)
    return value, others


def formatting(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """``format``."""
    text = as_text(value)
    charge_percent(text, named or others)
    return text, others


def replacing(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """``replace``."""
    words = dict(zip(("old", "new", "count"), others, strict=False)) | named
    text = as_text(value)
    for name in ("old", "new"):
        if name in words:
            words[name] = as_text(words[name])
    count = words.get("count")
    limit = count if isinstance(count, int) else -1
    charge_replace(text, words.get("old", ""), words.get("new", ""), limit)
    for name in named:
        named[name] = words[name]
    return text, tuple(words[name] for name in list(words)[: len(others)])


def indenting(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """``indent``: a number of spaces, or a text, before every line."""
    width = others[0] if others else named.get("width", 4)
    check_width(width)
    text = as_text(value)
    lines = count_lines(text) + 1
    step = len(width) if isinstance(width, str) else MAX_WIDTH
    step = abs(width) if isinstance(width, int) else step
    wide = not text.isascii() or (isinstance(width, str) and not width.isascii())
    size = (len(text) + lines * (step + 1)) * (4 if wide else 1)
    need(2 * size + lines * (ELEMENT + step))
    spend(lines * OPERATION // 2)
    return text, others


def numeral(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """``int`` and ``float``: a number, or a text that may be huge."""
    if isinstance(value, str) and len(value) > MAX_NUMERAL:
        raise SecurityError(f"a number of {len(value)} characters, expected {MAX_NUMERAL}")
    return check_number(value), others


def width_of_number(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """``round``: a precision raises ten to its power."""
    check_width(*others, *named.values())
    return check_number(value), others


def lazily(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """A filter that yields one by one."""
    for name in others:
        if isinstance(name, str):
            check_name(name)
            break
    return source(value, check_attribute(attribute_of(named))), others


def by_attribute(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """``selectattr`` and ``rejectattr``: an attribute, then a test."""
    if len(others) > 1:
        check_name(others[1])
    return source(value, check_attribute({"attribute": others[0] if others else None})), others


def in_groups(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """``batch`` and ``slice``: a width, and what to fill with."""
    width = others[0] if others else named.get("linecount", named.get("slices"))
    check_width(width)
    items = listed(value)
    spend(16 * len(items) + ELEMENT * (width if isinstance(width, int) else 1))
    return items, others


def sorting(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """Filters that put things in order: every comparison may be one of the largest two."""
    units = check_attribute(dict(enumerate(others)) | attribute_of(named))
    items = listed(value)
    spend(units * len(items))
    charge_order(items)
    return items, others


def sorting_mapping(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """``dictsort``."""
    if isinstance(value, dict):
        charge_order(listed(value.items()))
    return value, others


def charge_order(items: list[Any] | tuple[Any, ...]) -> None:
    """Charge sorting: ``n log n`` comparisons of two of the largest elements."""
    need(len(items) * OPERATION)  # first: looking at millions takes seconds
    largest = max((len(i) if isinstance(i, str) else measure(i) for i in items), default=0)
    comparisons = len(items) * (len(items).bit_length() + 2)
    # Texts are compared in lower case: copies of all of them.
    spend(comparisons * (16 + largest // 4) + len(items) * (OPERATION + largest))


def joining(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """``join``."""
    units = check_attribute({"": others[1] if len(others) > 1 else named.get("attribute")})
    separator = as_text(others[0] if others else named.get("d", ""))
    items = listed(value)
    spend(units * len(items))
    charge_join(separator, items)
    return items, (separator, *others[1:]) if others else others


def making_list(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """``list``."""
    items = listed(value)
    spend(OPERATION + 8 * len(items))
    return items, others


def reversing(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """``reverse``: of a text, a copy."""
    if isinstance(value, str):
        spend(size_of(value))
    return value, others


def counted_words(value: Any, others: Others, named: Named) -> tuple[Any, Others]:
    """``wordcount``, which makes a list of the words."""
    text = as_text(value)
    spend(OPERATION + len(text) * ELEMENT // 2)
    return text, others


def attribute_of(named: Named) -> Named:
    """The one argument that is an attribute."""
    return {"attribute": named.get("attribute")}


def source(value: Any, units: int = 0) -> Any:
    """What a lazy filter takes from: charged by the turn. What is empty stays as it is."""
    return Source(value, units) if value else value


class Source(Lazy):
    """The elements of a value, charged by the turn."""

    __slots__ = ()

    def __init__(self, value: Any, units: int) -> None:
        super().__init__(turns(value, units), value)


def check_name(name: Any) -> None:
    """Refuse names of filters and tests that are ours, or no names."""
    if not isinstance(name, str) or name.startswith("_") or len(name) > MAX_WIDTH:
        raise SecurityError(f"expected the name of a filter or test, got {type(name).__name__}")


def check_attribute(named: dict[Any, Any]) -> int:
    """Units of getting an attribute, as the parts of its name; refuse names that are too long."""
    parts = 0
    for value in named.values():
        if isinstance(value, str):
            if len(value) > MAX_ATTRIBUTE:
                raise SecurityError(f"an attribute of {len(value)} characters")
            parts += 1 + value.count(".") + value.count(",")
    return OPERATION * parts


def made(value: Any) -> Any:
    """Charge what a filter made; return it."""
    if isinstance(value, str):
        spend(size_of(value))
    elif isinstance(value, list):
        spend(OPERATION + 2 * ELEMENT * len(value))
    else:
        spend(OPERATION)
    return value


def guarded(name: str, function: Callable[..., Any], guard: Guard) -> Callable[..., Any]:
    """Return a filter that is charged before and after."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # the value comes after the context
    lazy = name in LAZY

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        value, others = guard(args[first], args[first + 1 :], kwargs)
        result = function(*args[:first], value, *others, **kwargs)
        return Lazy(iter(result), value) if lazy else made(result)

    return wrapper


# Filters of our own --------------------------------------------------------------------------


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; jinja2's own filter escapes HTML characters."""
    check_width(indent, *(separators if isinstance(separators, list | tuple) else ()))
    step = len(indent) if isinstance(indent, str) else indent if isinstance(indent, int) else 0
    between = sum(len(part) for part in separators or () if isinstance(part, str))
    size = measure(value, per_level=abs(step))
    if not isinstance(value, str):
        nodes = size // NODE  # or fewer
        need(2 * size + nodes * (between + JSON_NODE))
        spend(nodes * (LINE_NODE if indent is None else INDENTED_NODE))
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    spend(size_of(text))
    return text


@pass_environment
def unique(
    environment: Environment,
    value: Any,
    case_sensitive: bool = False,
    attribute: str | int | None = None,
) -> Iterator[Any]:
    """Yield every element once; as jinja2's, with every key checked."""
    key_of = make_attrgetter(environment, attribute, None if case_sensitive else folded)
    seen = set()
    for item in value:
        key = key_of(item)
        spend(ELEMENT)
        check_key(key)
        if key not in seen:
            seen.add(key)
            yield item


def folded(value: Any) -> Any:
    """A text in lower case, charged."""
    if isinstance(value, str):
        recased(value, ())
    return lowered(value)


@pass_environment
def total(
    environment: Environment, value: Any, attribute: str | int | None = None, start: Any = 0
) -> Any:
    """``sum``: of lists and tuples, every sum is a copy of the one before."""
    units = check_attribute({"attribute": attribute})
    items = listed(value)
    spend(units * len(items))
    if attribute is not None:
        items = list(map(make_attrgetter(environment, attribute), turns(items, ELEMENT)))
    length = len(start) if isinstance(start, list | tuple) else 0
    for item in items if isinstance(start, list | tuple) else ():
        length += len(item) if isinstance(item, list | tuple) else 0
        spend(OPERATION + 8 * length)
    spend(OPERATION + 16 * len(items))
    return sum(map(check_number, items), check_number(start))


def in_reverse(value: Any) -> Any:
    """``reverse``."""
    if isinstance(value, str):
        return value[::-1]
    if isinstance(value, (list, tuple, *SIZED)):
        return reversed(cast(Any, value))
    items = list(listed(value))
    items.reverse()
    return items


def checked_pair(left: Any, right: Any) -> None:
    """Two numbers."""
    check_number(left)
    check_number(right)


def charge_in(wanted: Any, values: Any) -> None:
    """Charge ``wanted in values``."""
    if isinstance(values, str):
        charge_search(values, wanted)
    elif isinstance(values, dict):
        check_key(wanted)
        spend(OPERATION)
    elif isinstance(values, list | tuple):
        charge_contains(values, wanted)
    elif isinstance(values, VIEWS):
        check_key(wanted)
        compared([wanted], values)
    elif isinstance(values, range):
        spend(OPERATION + 16 * len(values))
    else:
        spend(OPERATION + measure(wanted))


# The tables ----------------------------------------------------------------------------------

OWN: dict[str, Callable[..., Any]] = {
    "tojson": tojson, "unique": unique, "sum": total, "reverse": in_reverse,
}  # fmt: skip
LAZY = {
    "map", "select", "reject", "selectattr", "rejectattr", "unique", "batch", "slice", "items",
}  # fmt: skip

GUARDS: dict[str, Guard] = {
    **dict.fromkeys(("attr", "count", "d", "default", "first", "items", "last", "length", "random",
                     "sum", "tojson"), nothing),
    **dict.fromkeys(("capitalize", "lower", "upper"), text_guard(recased)),
    **dict.fromkeys(("abs", "filesizeformat", "float", "int"), numeral),
    **dict.fromkeys(("e", "escape", "forceescape"), escaping),
    **dict.fromkeys(("safe", "string", "truncate"), whole_text),
    **dict.fromkeys(("striptags", "title", "urlencode", "urlize", "wordwrap"), slow_text),
    **dict.fromkeys(("pprint", "xmlattr"), slow_mapping),
    **dict.fromkeys(("map", "select", "reject", "unique"), lazily),
    **dict.fromkeys(("selectattr", "rejectattr"), by_attribute),
    **dict.fromkeys(("batch", "slice"), in_groups),
    **dict.fromkeys(("groupby", "max", "min", "sort"), sorting),
    "center": text_guard(padded),
    "dictsort": sorting_mapping,
    "format": formatting,
    "indent": indenting,
    "join": joining,
    "list": making_list,
    "replace": replacing,
    "reverse": reversing,
    "round": width_of_number,
    "trim": text_guard(stripped),
    "wordcount": counted_words,
}  # fmt: skip

TEST_CHARGES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", "ge", ">=", "<",
                     "lt", "lessthan", "<=", "le"), compared),
    **dict.fromkeys(("odd", "even"), check_number),
    **dict.fromkeys(("filter", "test"), check_key),
    "divisibleby": checked_pair,
    "in": charge_in,
}  # fmt: skip


PLAIN_TESTS = (
    "boolean", "callable", "defined", "escaped", "false", "float", "integer", "iterable", "mapping",
    "none", "number", "sameas", "sequence", "string", "true", "undefined",
)  # fmt: skip
TEXT_TESTS = ("lower", "upper")


def metered_filters() -> dict[str, Callable[..., Any]]:
    """jinja2's filters, guarded."""
    return {
        name: guarded(name, OWN.get(name, FILTERS[name]), guard) for name, guard in GUARDS.items()
    }


def metered_tests() -> dict[str, Any]:
    """jinja2's tests, guarded."""
    tests = cast(dict[str, Callable[..., Any]], TESTS)
    guarded = {name: guarded_test(name, tests[name]) for name in (*TEST_CHARGES, *TEXT_TESTS)}
    return guarded | {name: tests[name] for name in PLAIN_TESTS}


def guarded_test(name: str, test: Callable[..., Any]) -> Callable[..., Any]:
    """Return a test that is charged first."""
    charge = TEST_CHARGES.get(name)
    first = 1 if hasattr(test, "jinja_pass_arg") else 0

    @functools.wraps(test)
    def wrapper(*args: Any) -> Any:
        spend(OPERATION)
        if charge is not None:
            charge(*args[first:])
            return test(*args)
        text = as_text(args[0])
        spend(size_of(text))
        return test(text)

    return wrapper
