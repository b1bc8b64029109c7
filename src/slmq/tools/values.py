"""JSON values as values of Python's types, where `annotations` has the schemas of these."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args

from slmq.tools.annotations import KINDS, fields_of, kind_of

__all__ = ["as_value", "reader_of"]


def reader_of(hint: Any) -> Callable[[str], Any]:
    """From JSON that fulfils the schema of a type to a value of it."""
    if kind_of(hint) == "pydantic":
        validate: Callable[[str], Any] = hint.model_validate_json
        return validate
    return lambda text: as_value(json.loads(text), hint, "answer")


def as_value(value: Any, hint: Any, where: str) -> Any:
    """A JSON value as a value of a type that has a schema.

    Raises
    ------
    ValueError
        The value is not of this type; `where` is named, what was expected and what was found.
    """
    kind, args = kind_of(hint), get_args(hint)
    if kind is Any:
        return value
    if kind is Annotated:
        return as_value(value, args[0], where)
    if kind is Union:
        return _first(value, args, where)
    if kind is Literal:
        return _among(value, {_key(arg): arg for arg in args}, where)
    if kind is enum.Enum:
        return _among(value, {_key(member.value): member for member in hint}, where)
    if kind in KINDS:
        return _scalar(value, kind, where)
    if kind in (list, set, frozenset, tuple):
        return _listed(value, kind, args, where)
    if kind == "pydantic":
        return _modelled(value, hint, where)
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {_shown(value)}")
    if kind is dict:
        inner = args[1] if args else Any
        return {key: as_value(item, inner, f"{where}.{key}") for key, item in value.items()}
    return _recorded(value, hint, where)


def _shown(value: Any) -> str:
    return f"{KINDS.get(type(value), type(value).__name__)} {value!r:.60}"


def _key(value: Any) -> tuple[type, Any]:
    """Of values that JSON tells apart: 1 is not true."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float if number else type(value), value


def _among(value: Any, known: Mapping[tuple[type, Any], Any], where: str) -> Any:
    if isinstance(value, dict | list) or _key(value) not in known:
        names = ", ".join(repr(key[1]) for key in known)
        raise ValueError(f"{where}: expected one of {names}; got {_shown(value)}")
    return known[_key(value)]


def _first(value: Any, hints: Sequence[Any], where: str) -> Any:
    problems = []
    for hint in hints:
        try:
            return as_value(value, hint, where)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError("; or ".join(problems))


def _scalar(value: Any, kind: type, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # JSON Schema takes 2.0 for an integer
    if type(value) is not kind:
        raise ValueError(f"{where}: expected {KINDS[kind]}, got {_shown(value)}")
    return value


def _listed(value: Any, kind: type, args: Sequence[Any], where: str) -> Any:
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected an array, got {_shown(value)}")
    fixed = kind is tuple and args and args[-1] is not Ellipsis
    hints = args if fixed else [args[0] if args else Any] * len(value)
    if len(hints) != len(value):
        raise ValueError(f"{where}: expected {len(hints)} items, got {len(value)}")
    return kind(
        as_value(item, hint, f"{where}[{i}]")
        for i, (item, hint) in enumerate(zip(value, hints, strict=True))
    )


def _modelled(value: Any, kind: Any, where: str) -> Any:
    try:
        return kind.model_validate_json(json.dumps(value))
    except ValueError as error:  # pydantic's own is one
        raise ValueError(f"{where}: {error}") from None


def _recorded(value: dict[str, Any], kind: Any, where: str) -> Any:
    hints, required = fields_of(kind, where)
    unknown = [key for key in value if key not in hints]
    missing = [key for key in required if key not in value]
    if unknown or missing:
        wrong = [f"no {key!r}" for key in missing] + [f"unknown {key!r}" for key in unknown]
        raise ValueError(f"{where}: expected {', '.join(hints)}; got {wrong[0]}")
    found = {key: as_value(item, hints[key], f"{where}.{key}") for key, item in value.items()}
    return kind(**found)
