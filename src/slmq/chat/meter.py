"""Bounds on what a chat template may do: memory and work, known before they are taken.

jinja2's sandbox keeps a template from Python's internals, but not from running for ever or filling
the memory, for which a few characters suffice: ``'a' * 10 ** 10``. A clock alone does not help: one
call of C, such as the comparison of lists that hold themselves twice, 60 deep, asks no clock, and
keeps every other thread waiting. So whatever can repeat or grow is charged here before it is done.
"""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

__all__ = [
    "ELEMENT",
    "MAX_DEPTH",
    "MAX_LENGTH",
    "MAX_NUMBER_BITS",
    "MAX_WIDTH",
    "OPERATION",
    "SCALARS",
    "SIZED",
    "VIEWS",
    "Lazy",
    "Meter",
    "as_text",
    "check_key",
    "check_number",
    "check_width",
    "compared",
    "listed",
    "measure",
    "need",
    "size_of",
    "spend",
    "turns",
]

BUDGET = 160 << 20
"""What one rendering may spend. A unit is a byte of memory that is made, or about four nanoseconds
of work; nothing is given back when memory is freed, so this bounds the memory in use, too."""
MAX_SECONDS = 1.0
"""Of processor time, should a machine be slower than the units of work suppose."""
LOOK = 1 << 20  # units between two looks at the clock
MAX_LENGTH = 16 << 20  # characters of one string
MAX_DEPTH = 100  # of containers in containers
MAX_WIDTH = 1000  # of padding and indentation
MAX_NUMBER_BITS = 4096
MAX_KEY_BITS = 60  # above, numbers can be chosen that all have one hash

OPERATION = 128
"""Units of anything that is called: the least that a filter, a method or a turn costs."""
NODE = 32  # of one element that is looked at in Python
WALKED = 16  # bytes per element that walking a container holds at a time
ELEMENT = 80  # bytes of a list's place and of the small object in it

SCALARS = frozenset({str, int, float, bool, type(None)})
VIEWS = (KeysView, ItemsView, ValuesView)
SIZED = (str, Mapping, range, *VIEWS)


class Meter:
    """What one rendering, or one compilation, has left to spend."""

    __slots__ = ("_deadline", "_look", "_started", "left")
    current: ContextVar[Meter] = ContextVar("current")

    def __init__(self) -> None:
        self.left = BUDGET
        self._look = BUDGET - LOOK
        self._started = time.thread_time()
        self._deadline = time.monotonic() + MAX_SECONDS

    def spend(self, units: int) -> None:
        """Take units off, or raise `SecurityError` if there are not so many left."""
        self.left -= units
        if self.left < self._look:
            self._check()

    def need(self, units: int) -> None:
        """Raise `SecurityError` unless so many are left: for memory that is given back at once."""
        if units > self.left:
            raise SecurityError(f"the template does too much: more than {BUDGET} bytes or steps")

    def _check(self) -> None:
        self.need(0)
        self._look = self.left - LOOK
        if time.monotonic() > self._deadline:
            # The processor may have been with others meanwhile, which is not the template's fault.
            used = time.thread_time() - self._started
            if used > MAX_SECONDS:
                raise SecurityError(f"the template runs for more than {MAX_SECONDS:g} seconds")
            self._deadline = time.monotonic() + MAX_SECONDS - used


def spend(units: int) -> None:
    """Take units off the budget of the rendering that is under way."""
    Meter.current.get().spend(units)


def need(units: int) -> None:
    """Raise unless the rendering that is under way has so many units left."""
    Meter.current.get().need(units)


def size_of(*texts: str) -> int:
    """Bytes of a text that is made of all these, whatever is in it."""
    size = 0
    wide = False
    for text in texts:
        size += len(text)
        wide = wide or not text.isascii()
    if size > MAX_LENGTH:
        raise SecurityError(f"a text of {size} characters, expected at most {MAX_LENGTH}")
    return 4 * size + OPERATION if wide else size + OPERATION


def measure(value: Any, *, per_level: int = 0) -> int:
    """Bytes that the text of a value has at most, with all that it holds; charged by the element.

    Whatever walks a value, in C and without asking us, walks as far as this does: a comparison,
    a hash, ``str``, JSON. What a list holds twice is counted twice.

    Parameters
    ----------
    value : object
    per_level : int
        Bytes that every element takes for each container that it lies in: indentation.

    Raises
    ------
    SecurityError
        Containers lie more than `MAX_DEPTH` deep, or the walk costs more than there is left.
    """
    meter = Meter.current.get()
    size = depth = 0
    level = [value]
    while level:
        if depth > MAX_DEPTH:
            raise SecurityError(f"a value of more than {MAX_DEPTH} containers in containers")
        below: list[Any] = []
        size += len(level) * (NODE + depth * per_level)
        for item in level:
            if isinstance(item, str):
                # Escaped: "\u0000" in JSON, and '\U000e0001' in Python, of four bytes a character.
                size += len(item) * (6 if item.isascii() else 40)
            elif isinstance(item, list | tuple):
                meter.need(WALKED * (len(below) + len(item)))
                below += item
            elif isinstance(item, dict):
                meter.need(WALKED * (len(below) + 2 * len(item)))
                below += item
                below += item.values()
            elif isinstance(item, int):
                size += item.bit_length() // 3
            elif isinstance(item, float) or item is None:
                pass
            elif isinstance(item, VIEWS):
                meter.need(WALKED * (len(below) + len(item)))
                below += item
            elif isinstance(item, Namespace):  # it may hold itself, in any number of ways
                raise SecurityError("a namespace is no value to compare or to write")
        meter.spend(NODE * len(level))
        level = below
        depth += 1
    return size


def as_text(value: Any) -> str:
    """``str(value)``, charged; a string comes back as it is."""
    if isinstance(value, str):
        return value
    need(2 * measure(value))
    text = str(value)
    spend(size_of(text))
    return text


def compared(left: Any, right: Any) -> None:
    """Charge a comparison of two values. It ends where the smaller of the two ends."""
    if type(left) in SCALARS or type(right) in SCALARS:
        units = min(
            len(left) if isinstance(left, str) else 64,
            len(right) if isinstance(right, str) else 64,
        )
        spend(OPERATION + units // 4)
    else:
        spend(OPERATION + measure(left) + measure(right))


def check_key(key: Any) -> None:
    """Refuse keys of which many can be made that have one hash, or whose hash is work."""
    if isinstance(key, int) and key.bit_length() > MAX_KEY_BITS:
        raise SecurityError(f"a number of {key.bit_length()} bits as a key")
    if isinstance(key, tuple):
        raise SecurityError("a tuple as a key, expected a text or a number")


def check_number(value: Any) -> Any:
    """Return a value, unless it is a whole number that is huge."""
    if isinstance(value, int) and value.bit_length() > MAX_NUMBER_BITS:
        raise SecurityError(f"a number of more than {MAX_NUMBER_BITS} bits")
    return value


def check_width(*values: Any) -> None:
    """Refuse numbers and texts that pad or repeat without measure."""
    for value in values:
        width = len(value) if isinstance(value, str) else value
        if isinstance(width, int) and abs(width) > MAX_WIDTH:
            raise SecurityError(f"a width or count of {width}, expected at most {MAX_WIDTH}")


def turns(values: Iterable[Any], units: int = 0) -> Iterator[Any]:
    """Charge every turn of a loop, with what its body costs."""
    charge = Meter.current.get().spend
    units += OPERATION
    for value in values:
        charge(units)
        yield value


def listed(values: Any) -> list[Any] | tuple[Any, ...]:
    """All elements of something iterable, charged; a list or tuple comes back as it is."""
    if isinstance(values, list | tuple):
        return values
    if isinstance(values, SIZED):
        spend(OPERATION + ELEMENT * len(values))
        return list(values)
    return list(turns(values, ELEMENT))


class Lazy:
    """An iterator of a filter that works as it is asked. A chain of them has a bounded length."""

    __slots__ = ("_depth", "_values")

    def __init__(self, values: Iterator[Any], source: Any) -> None:
        self._values = values
        self._depth = source._depth + 1 if isinstance(source, Lazy) else 1
        if self._depth > MAX_DEPTH:
            raise SecurityError(f"more than {MAX_DEPTH} filters that wait for one another")

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        spend(OPERATION)
        return next(self._values)
