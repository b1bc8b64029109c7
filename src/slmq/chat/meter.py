"""Bounds on what a chat template may do: seconds, characters, numbers.

jinja2's sandbox keeps a template from Python's internals, but not from running for ever or filling
the memory, for which a few characters suffice: ``'a' * 10 ** 10``. So whatever can repeat or grow
is charged here before it is made.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError

__all__ = [
    "Meter",
    "charge",
    "charge_join",
    "charge_power",
    "charge_product",
    "charge_replace",
    "charge_result",
    "charge_text",
    "check_format",
    "check_widths",
    "turns",
]

MAX_SECONDS = 10.0
MAX_LENGTH = 16 << 20  # characters of one string, elements of one list
MAX_TOTAL = 256 << 20  # characters and elements that one rendering makes
MAX_WIDTH = 1000  # of padding and indentation
MAX_NUMBER_BITS = 4096

# A width of four digits, or one that comes from the arguments.
PERCENT_WIDTH = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(?:\d{4}|\*|\d*\.(?:\d{4}|\*))")
BRACE_WIDTH = re.compile(r"\{[^{}]*(?:\d{4}|\{)")


class Meter:
    """Counts what one rendering makes, and watches the clock."""

    current: ContextVar[Meter | None] = ContextVar("current", default=None)

    def __init__(self) -> None:
        self._deadline = time.monotonic() + MAX_SECONDS
        self._left = MAX_TOTAL

    def charge(self, length: int) -> None:
        """Take note of a string or list of that length, or raise `SecurityError`."""
        if length > MAX_LENGTH:
            raise SecurityError(f"the template builds a text or list of {length} elements")
        self._left -= length
        if self._left < 0:
            raise SecurityError(f"the template builds more than {MAX_TOTAL} characters in total")
        if time.monotonic() > self._deadline:
            raise SecurityError(f"the template runs for more than {MAX_SECONDS:g} seconds")


def charge(length: int) -> None:
    """Charge the rendering that is under way. While a template is compiled, nothing counts."""
    meter = Meter.current.get()
    if meter is not None:
        meter.charge(length)


def turns(values: Iterable[Any], length: int) -> Iterator[Any]:
    """Charge every turn of a loop with the length of the text inside it."""
    for value in values:
        charge(length)
        yield value


def charge_text(value: Any) -> Any:
    """Charge a value that becomes text, containers with all that they hold; return the value."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            stack += item
        charge(len(item) if isinstance(item, str | list | tuple | dict) else 1)
    return value


def charge_result(value: Any) -> Any:
    """Charge a string or list that was made; return it."""
    charge(len(value) if isinstance(value, str | list | tuple) else 1)
    return value


def charge_product(left: Any, right: Any) -> None:
    """Charge ``left * right`` where one of them is a sequence, or both are whole numbers."""
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_NUMBER_BITS:
            raise SecurityError(f"a number with more than {MAX_NUMBER_BITS} bits")
    else:
        count, sequence = (left, right) if isinstance(left, int) else (right, left)
        if isinstance(count, int) and isinstance(sequence, str | list | tuple):
            charge(len(sequence) * max(count, 0))


def charge_power(left: Any, right: Any) -> None:
    """Refuse ``left ** right`` that is a huge whole number."""
    whole = isinstance(left, int) and isinstance(right, int)
    if whole and left.bit_length() * max(right, 0) > MAX_NUMBER_BITS:
        raise SecurityError(f"a number with more than {MAX_NUMBER_BITS} bits")


def charge_replace(text: str, old: str, new: str) -> None:
    """Charge the longest text that replacing can give."""
    charge(len(text) + (len(text) // max(len(old), 1) + 1) * len(new))


def charge_join(separator: str, items: list[Any]) -> None:
    """Charge a joined text."""
    charge_text(items)
    charge(len(separator) * len(items))


def check_widths(values: Iterable[Any]) -> None:
    """Refuse numbers that pad or repeat without measure."""
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_WIDTH:
            raise SecurityError(f"expected a width or count of at most {MAX_WIDTH}, got {value}")


def check_format(template: str, width: re.Pattern[str]) -> None:
    """Refuse format strings that pad without measure."""
    if width.search(template):
        raise SecurityError(
            f"a format with a width of {MAX_WIDTH} or more, or with a variable width"
        )
