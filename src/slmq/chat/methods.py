"""What templates may call on texts, lists, mappings and numbers, and what each call may cost.

The table is a list of what is allowed: a method that a later Python adds is closed until its cost
stands here. A rule takes the object and the arguments, and charges what the call will do at most.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import Environment
from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedEscapeFormatter, SandboxedFormatter
from markupsafe import Markup

from slmq.chat.meter import (
    ELEMENT,
    MAX_WIDTH,
    OPERATION,
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
)

__all__ = [
    "ESCAPED",
    "RULES",
    "call_method",
    "charge_contains",
    "charge_join",
    "charge_percent",
    "charge_replace",
    "charge_search",
    "count_lines",
    "formatter",
]

Arguments = Sequence[Any]
Rule = Callable[[Any, Arguments], Arguments | None]

ESCAPED = 6  # characters of ``&#39;`` and one more
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
COMPARED = 96  # units of a comparison with one element: of jinja2's undefined ones, in Python
FAR = 30_000  # characters, up to which CPython searches in the simple way, by every place
NEAR = 100  # the same of what is searched for
WIDE = f"a format of {MAX_WIDTH} or more, or with a width to be filled in"
WIDTH = re.compile(r"\d{4}")
PERCENT_WIDTH = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(?:\d{4}|\*|\d*\.(?:\d{4}|\*))")


# Texts --------------------------------------------------------------------------------------


def looked_at(text: str, args: Arguments) -> None:
    """The method reads the text once."""
    spend(OPERATION + len(text) + sum(map(starts, args)))


def starts(argument: Any) -> int:
    """Characters that ``startswith`` compares."""
    if isinstance(argument, tuple):
        spend(OPERATION * len(argument))
        return sum(len(part) for part in argument if isinstance(part, str))
    return len(argument) if isinstance(argument, str) else 0


def copied(text: str, args: Arguments) -> None:
    """The result is at most as long as the text."""
    spend(size_of(text))


def recased(text: str, args: Arguments) -> None:
    """The result may have three characters for one, and takes shape in 32 bits a character."""
    if text.isascii():
        spend(size_of(text))
    else:
        need(16 * len(text))
        spend(12 * len(text) + OPERATION)


def stripped(text: str, args: Arguments) -> None:
    """Every character of the text may be looked for in all that are stripped."""
    wanted = len(args[0]) if args and isinstance(args[0], str) else 1
    spend(size_of(text) + len(text) * wanted // 4)


def padded(text: str, args: Arguments) -> None:
    """``center`` and the like: a width, and a character to fill with."""
    check_width(*args)
    spend(size_of(text) + 4 * (len(text) + MAX_WIDTH))


def charge_search(text: str, wanted: Any, *, backwards: bool = False) -> None:
    """Charge looking for a text in another. Backwards, CPython does it the simple way."""
    length = len(wanted) if isinstance(wanted, str) else 1
    if backwards:
        spend(OPERATION + len(text) * max(length, 4) // 4)
    else:
        simple = min(len(text), FAR) * min(length, NEAR) // 4
        spend(OPERATION + len(text) + simple)


def found(text: str, args: Arguments) -> None:
    """``find`` and the like."""
    charge_search(text, args[0] if args else "")


def found_backwards(text: str, args: Arguments) -> None:
    """``rfind`` and the like."""
    charge_search(text, args[0] if args else "", backwards=True)


def cut_in_three(text: str, args: Arguments) -> None:
    """``partition``."""
    found(text, args)
    spend(size_of(text) + 3 * ELEMENT)


def cut_in_three_backwards(text: str, args: Arguments) -> None:
    """``rpartition``."""
    found_backwards(text, args)
    spend(size_of(text) + 3 * ELEMENT)


def cut(text: str, args: Arguments, *, backwards: bool = False) -> None:
    """``split``: the parts are counted before they are made."""
    separator = args[0] if args else None
    limit = args[1] if len(args) > 1 and isinstance(args[1], int) else -1
    charge_search(text, separator, backwards=backwards)
    if isinstance(separator, str) and separator:
        parts = text.count(separator) + 1
    else:
        parts = len(text) // 2 + 1
    if limit >= 0:
        parts = min(parts, limit + 1)
    spend(size_of(text) + ELEMENT * parts)


def cut_backwards(text: str, args: Arguments) -> None:
    """``rsplit``."""
    cut(text, args, backwards=True)


def count_lines(text: str) -> int:
    """How many lines a text has at most."""
    spend(OPERATION + len(text))
    return 1 + sum(map(text.count, LINE_ENDS if not text.isascii() else LINE_ENDS[:7]))


def cut_in_lines(text: str, args: Arguments) -> None:
    """``splitlines``."""
    spend(size_of(text) + ELEMENT * count_lines(text))


def charge_replace(text: str, old: str, new: str, limit: int = -1) -> None:
    """Charge replacing; what is replaced is counted first."""
    charge_search(text, old)
    places = text.count(old)
    if limit >= 0:
        places = min(places, limit)
    factor = 1 if text.isascii() and new.isascii() else 4
    grown = max(len(new) - len(old), 0) * places
    spend(size_of(text) * factor + grown * factor)


def replaced(text: str, args: Arguments) -> None:
    """``replace``."""
    if len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        limit = args[2] if len(args) > 2 and isinstance(args[2], int) else -1
        charge_replace(text, args[0], args[1], limit)


def charge_join(separator: str, items: Sequence[Any]) -> None:
    """Charge a text of all these with a separator between them."""
    need(len(items) * OPERATION // 2)  # first: looking at millions takes seconds
    texts = [item for item in items if isinstance(item, str)]
    others = sum(measure(item) for item in items if not isinstance(item, str))
    wide = not separator.isascii() or not all(map(str.isascii, texts))
    size = sum(map(len, texts)) + len(separator) * len(items)
    spend(OPERATION + len(items) * OPERATION // 2 + (4 * size if wide else size))
    if others:
        need(2 * others)
        spend(others)


def joined(text: str, args: Arguments) -> Arguments:
    """``join``: an iterator is used up first, and the list handed on."""
    if not args:
        return args
    items = listed(args[0])
    charge_join(text, items)
    return [items, *args[1:]]


TEXT: dict[str, Rule] = {
    **dict.fromkeys(
        ("isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower",
         "isnumeric", "isprintable", "isspace", "istitle", "isupper", "startswith", "endswith"),
        looked_at,
    ),
    **dict.fromkeys(("removeprefix", "removesuffix"), copied),
    **dict.fromkeys(("capitalize", "casefold", "lower", "swapcase", "title", "upper"), recased),
    **dict.fromkeys(("strip", "lstrip", "rstrip"), stripped),
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), padded),
    **dict.fromkeys(("find", "index", "count"), found),
    **dict.fromkeys(("rfind", "rindex"), found_backwards),
    "partition": cut_in_three,
    "rpartition": cut_in_three_backwards,
    "split": cut,
    "rsplit": cut_backwards,
    "splitlines": cut_in_lines,
    "replace": replaced,
    "join": joined,
    "format": lambda text, args: None,  # led through `formatter`, which charges
}  # fmt: skip


# Containers and numbers ---------------------------------------------------------------------


def charge_contains(values: list[Any] | tuple[Any, ...], wanted: Any) -> None:
    """Charge comparing all elements of a list with a value."""
    if type(wanted) is str:
        spend(OPERATION + len(values) * (COMPARED + len(wanted) // 8))
    elif wanted is None or isinstance(wanted, int | float):
        spend(OPERATION + len(values) * COMPARED)
    else:
        compared(values, [wanted])


def searched(values: list[Any] | tuple[Any, ...], args: Arguments) -> None:
    """``index`` and ``count`` of a list."""
    charge_contains(values, args[0] if args else None)


def taken(values: dict[Any, Any], args: Arguments) -> None:
    """``get``."""
    spend(OPERATION)
    if args:
        check_key(args[0])


def copied_whole(values: dict[Any, Any] | list[Any], args: Arguments) -> None:
    """``copy``."""
    spend(OPERATION + ELEMENT * len(values))


def small(value: Any, args: Arguments) -> None:
    """Of one small object, or a view."""
    spend(OPERATION)


def number(value: Any, args: Arguments) -> None:
    """Of a number, which may be huge if it came from outside."""
    check_number(value)
    spend(OPERATION)


MAPPING: dict[str, Rule] = {
    "get": taken, "copy": copied_whole, "items": small, "keys": small, "values": small,
}  # fmt: skip
SEQUENCE: dict[str, Rule] = {"index": searched, "count": searched}
LIST: dict[str, Rule] = {**SEQUENCE, "copy": copied_whole}
NUMBER: dict[str, Rule] = dict.fromkeys(
    ("as_integer_ratio", "bit_count", "bit_length", "conjugate", "hex", "is_integer"), number
)


NOTHING: dict[str, Rule] = {}
RULES: dict[type, dict[str, Rule]] = {
    str: TEXT, Markup: TEXT, dict: MAPPING, list: LIST, tuple: SEQUENCE,
    int: NUMBER, bool: NUMBER, float: NUMBER, complex: NOTHING, range: NOTHING, type(None): NOTHING,
}  # fmt: skip
"""The methods that a template may call, by type."""


NAMES = {"split": ("sep", "maxsplit"), "rsplit": ("sep", "maxsplit")}
"""Arguments that can be given by name, where it matters which is which."""


def call_method(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Charge a method of a built-in type, and call it.

    Raises
    ------
    SecurityError
        Templates may not call it, or it would do too much.
    """
    value, name = method.__self__, method.__name__  # type: ignore[attr-defined]
    kind = type(value) if type(value) in RULES or not isinstance(value, tuple) else tuple
    rules = RULES.get(kind, NOTHING)
    if name not in rules:
        raise SecurityError(f"a template may not call {name} of {type(value).__name__}")
    seen: list[Any] = list(args)
    if kwargs:
        known = NAMES.get(name, ())
        seen += [kwargs.get(known[i]) for i in range(len(args), len(known))] or kwargs.values()
    if isinstance(value, Markup):  # it escapes what it is joined with
        need(sum(ESCAPED * measure(argument) for argument in seen))
        spend((ESCAPED - 1) * size_of(value))
    args = tuple(rules[name](value, seen) or args)
    return method(*args, **kwargs)


# Formats ------------------------------------------------------------------------------------


def charge_percent(text: str, values: Any) -> None:
    """Charge ``text % values``."""
    if PERCENT_WIDTH.search(text):
        raise SecurityError(WIDE)
    places = text.count("%")
    size = size_of(text) + places * MAX_WIDTH
    if isinstance(values, dict):  # its values can be named more than once
        size += places * max((cost_of(value) for value in values.values()), default=0)
    elif isinstance(values, tuple):
        size += sum(map(cost_of, values))
    else:
        size += cost_of(values)
    need(size * (ESCAPED if isinstance(text, Markup) else 1))


def cost_of(value: Any) -> int:
    """Bytes of a value in a text that may be wide, as it is or with the quotes of ``repr``."""
    return measure(value) * (1 if isinstance(value, str) and not value.isascii() else 4)


class FormatMixin:
    """Charges every field of ``'{}'.format(...)``, before it is written."""

    def format_field(self, value: Any, spec: str) -> Any:
        """One field, with its width checked."""
        spend(2 * OPERATION)
        if WIDTH.search(spec):
            raise SecurityError(WIDE)
        if isinstance(value, str):
            spend(size_of(value) + 4 * MAX_WIDTH * bool(spec))
        else:
            check_number(value)
            value = value if spec else as_text(value)
        result = super().format_field(value, spec)  # type: ignore[misc]
        spend(4 * len(result))
        return result

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        """``!r`` and the like."""
        if conversion is not None:
            need(2 * cost_of(value))
        result = super().convert_field(value, conversion)  # type: ignore[misc]
        if isinstance(result, str) and result is not value:
            spend(size_of(result))
        return result


class PlainFormatter(FormatMixin, SandboxedFormatter):
    """``'{}'.format(...)``."""


class EscapeFormatter(FormatMixin, SandboxedEscapeFormatter):
    """The same of a text that is marked as safe: what is filled in is escaped."""


def formatter(environment: Environment, value: Any) -> Callable[..., str] | None:
    """``value`` itself if it is no ``str.format``, else a function that does the same, charged."""
    if not isinstance(value, types.MethodType | types.BuiltinMethodType):
        return None
    text = value.__self__
    if value.__name__ != "format" or not isinstance(text, str):
        return None
    kind = type(text)
    if isinstance(text, Markup):
        vformat = EscapeFormatter(environment, escape=text.escape).vformat
    else:
        vformat = PlainFormatter(environment).vformat

    def formatted(*args: Any, **kwargs: Any) -> str:
        spend(size_of(text) + len(text) * OPERATION // 4)
        result = kind(vformat(text, args, kwargs))
        spend(size_of(result))
        return result

    return formatted
