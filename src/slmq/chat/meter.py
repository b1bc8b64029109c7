"""Bounds on what a chat template may do: memory and work, known before they are taken.

jinja2's sandbox keeps a template from Python's internals, but not from running for ever or filling
the memory, for which a few characters suffice: ``'a' * 10 ** 10``. A clock alone does not help: one
call of C, such as the comparison of lists that hold themselves twice, 60 deep, asks no clock, and
keeps every other thread waiting. So whatever can repeat or grow is charged here before it is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from itertools import chain
from typing import Any, NamedTuple

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

__all__ = [
    "BUDGET",
    "ELEMENT",
    "MAX_DEPTH",
    "MAX_LENGTH",
    "MAX_NUMBER_BITS",
    "MAX_WIDTH",
    "NODE",
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
"""What one rendering may spend. A unit is a byte of memory that is made, or about two nanoseconds
of work; nothing is given back when memory is freed, so this bounds the memory in use, too."""
MAX_SECONDS = 0.6
"""Of processor time, should a machine be slower than the units of work suppose. The clock is looked
at now and then, and a template is compiled before: together they stay within a second."""
LOOK = 1 << 19  # units between two looks at the clock
MAX_LENGTH = 16 << 20  # characters of one string
MAX_DEPTH = 100  # of containers in containers
MAX_WIDTH = 1000  # of padding and indentation
MAX_NUMBER_BITS = 4096
MAX_KEY_BITS = 60  # above, numbers can be chosen that all have one hash

OPERATION = 256
"""Units of anything that is called: the least that a filter, a method or a turn costs."""
NODE = 64  # of one element that is looked at in Python, and bytes of it in a text
ELEMENT = 80  # bytes of a list's place and of the small object in it

SCALARS = frozenset({str, int, float, bool, type(None)})
VIEWS: tuple[Any, ...] = (type({}.keys()), type({}.items()), type({}.values()))
CONTAINERS = (list, tuple, dict, *VIEWS)
SIZED: tuple[Any, ...] = (str, dict, range, *VIEWS)


class Meter:
    """What one rendering, or one compilation, has left to spend."""

    __slots__ = ("_deadline", "_look", "_started", "left", "namespaces")
    current: ContextVar[Meter] = ContextVar("current")

    def __init__(self) -> None:
        self.left = BUDGET
        self.namespaces: list[Namespace] = []
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
    """Bytes that the text of a value has at most, with all that it holds.

    Whatever walks a value, in C and without asking us, walks as far as this says: a comparison,
    ``str``, JSON. What a list holds twice is counted twice, but looked at once.

    Parameters
    ----------
    value : object
    per_level : int
        Bytes that every element takes for each container that it lies in: indentation.

    Raises
    ------
    SecurityError
        Containers lie more than `MAX_DEPTH` deep, or there is more than may still be spent.
    """
    if isinstance(value, str):
        return NODE + text_size(value)
    if not isinstance(value, CONTAINERS):
        return leaf_size(value)
    found = Weigher(Meter.current.get()).weigh(value)
    size = found.size + found.levels * per_level
    need(size)
    return size


def text_size(text: str) -> int:
    """Bytes of a text within another, escaped: ``\\u0000`` in JSON, ``'\\U000e0001'`` in Python."""
    return len(text) * (6 if text.isascii() else 40)


def leaf_size(value: Any) -> int:
    """Bytes of the text of what is neither a text nor a container."""
    if isinstance(value, int):
        return NODE + value.bit_length() // 3
    if isinstance(value, Namespace):  # it may hold itself, in any number of ways
        raise SecurityError("a namespace is no value to compare or to write")
    return NODE


class Weight(NamedTuple):
    """What a container holds, all the way down."""

    size: int  # bytes
    nodes: int
    levels: int  # the depths of all nodes, added up
    height: int


class Weigher:
    """Weighs values; every container once, however often it is held."""

    __slots__ = ("_known", "_meter")

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._known: dict[int, Weight] = {}

    def weigh(self, container: Any) -> Weight:
        """Return the weight of a container; what is in it is charged by the element."""
        known = self._known.get(id(container))
        if known is not None:
            return known
        self._meter.spend(NODE + NODE * len(container))
        size, nodes, levels, height = NODE, 1, 0, 0
        items: Iterable[Any] = container
        if isinstance(container, dict):
            self._meter.spend(NODE * len(container))
            items = chain(container, container.values())
        for item in items:
            if isinstance(item, str):
                size += NODE + text_size(item)
            elif isinstance(item, CONTAINERS):
                found = self.weigh(item)
                size += found.size
                nodes += found.nodes
                levels += found.levels + found.nodes
                height = max(height, found.height)
                continue
            else:
                size += leaf_size(item)
            nodes += 1
            levels += 1
        if height >= MAX_DEPTH:
            raise SecurityError(f"a value of more than {MAX_DEPTH} containers in containers")
        self._meter.need(size)
        weight = self._known[id(container)] = Weight(size, nodes, levels, height + 1)
        return weight


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
    """What a filter yields one by one. A chain of such filters has a bounded length."""

    __slots__ = ("_depth", "_values")

    def __init__(self, values: Iterator[Any], source: Any) -> None:
        self._values = values
        self._depth: int = source._depth + 1 if isinstance(source, Lazy) else 1
        if self._depth > MAX_DEPTH:
            raise SecurityError(f"more than {MAX_DEPTH} filters that wait for one another")

    def __iter__(self) -> Iterator[Any]:
        return self._values
