"""Conditions that have to hold together for one value: what compiling takes exponentially long for.

The compiler asks whether any text fulfils all patterns of a value at once, and follows the
remainders of every number that a value is a multiple of. Both multiply where ``allOf`` and ``$ref``
join schemas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from math import prod
from typing import Any, NamedTuple

from slmq.errors import ConstraintError

__all__ = ["check_joined"]

MOST_PATTERNS = 10  # 20 take seconds, and each further one twice as long
MOST_MULTIPLE = 10_000  # a million takes ten seconds


class _Load(NamedTuple):
    """Most patterns of a value, and the greatest product of what it is a multiple of."""

    patterns: int = 0
    multiple: int = 1


def check_joined(schema: dict[str, Any], target: Callable[[str], Any]) -> None:
    """Raise ConstraintError if compiling a schema would take too long.

    Parameters
    ----------
    schema : dict
    target : callable
        What a ``$ref`` leads to.
    """
    found = _Loads(target).of(schema)
    if found.patterns > MOST_PATTERNS:
        raise ConstraintError(
            f"schema: expected at most {MOST_PATTERNS} patterns that one value fulfils together, "
            f"allOf and $ref join up to {found.patterns}"
        )
    if found.multiple > MOST_MULTIPLE:
        raise ConstraintError(
            f"schema: multipleOf: expected at most {MOST_MULTIPLE} without zeros at its end, also "
            f"where allOf and $ref join several, got {found.multiple}"
        )


class _Loads:
    """Upper bounds: of alternatives the worst is taken, and of what values hold, too."""

    def __init__(self, target: Callable[[str], Any]) -> None:
        self._target = target
        self._known: dict[int, _Load] = {}

    def of(self, schema: Any) -> _Load:
        if not isinstance(schema, dict):
            return _Load()
        found = self._known.get(id(schema))
        if found is None:
            self._known[id(schema)] = _Load()  # what refers to itself adds nothing
            found = self._known[id(schema)] = self._look(schema)
        return found

    def _look(self, schema: dict[str, Any]) -> _Load:
        own = _Load(int(isinstance(schema.get("pattern"), str)), _digits(schema.get("multipleOf")))
        together = [own, *map(self.of, _listed(schema.get("allOf")))]
        if isinstance(reference := schema.get("$ref"), str):
            together.append(self.of(self._target(reference)))
        together += [self._worst(_listed(schema.get(name))) for name in ("anyOf", "oneOf")]
        inner = [schema.get("items"), schema.get("additionalProperties")]
        inner += _listed(schema.get("prefixItems")) + _listed(schema.get("items"))
        for name in ("properties", "patternProperties"):
            if isinstance(schemas := schema.get(name), dict):
                inner += schemas.values()
        together.append(self._worst(inner))
        return _Load(sum(one.patterns for one in together), prod(one.multiple for one in together))

    def _worst(self, schemas: Iterable[Any]) -> _Load:
        found = [self.of(schema) for schema in schemas]
        return _Load(
            max((one.patterns for one in found), default=0),
            max((one.multiple for one in found), default=1),
        )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _digits(value: Any) -> int:
    """A number without its point, and without zeros at its end."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        return 1
    return int("".join(map(str, Decimal(repr(value)).normalize().as_tuple().digits)))
