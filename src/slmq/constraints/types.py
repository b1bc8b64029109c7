"""JSON schemas of Python types, and instances of these types from JSON.

pydantic models describe and read themselves. For others (dataclasses, TypedDicts, enums, literals,
unions and containers) it is done here.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from slmq.errors import ConstraintError, printable

__all__ = ["is_described", "reader_of", "schema_of_type"]

PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    None: {"type": "null"},
    Any: {},
    dict: {"type": "object"},
    list: {"type": "array"},
}
LISTS = (list, tuple, set, frozenset, Sequence)
Build = Callable[[Any], Any]


def is_described(schema: object) -> bool:
    """Whether this is a type, and no JSON schema."""
    return not isinstance(schema, (Mapping, bool))


def schema_of_type(kind: Any) -> dict[str, Any]:
    """The JSON schema of a type.

    Raises
    ------
    ConstraintError
        If it is no type that JSON can hold.
    """
    writer = _Writer()
    found = writer.schema(kind)
    return {**found, "$defs": writer.defs} if writer.defs else found


def reader_of(kind: Any) -> Callable[[str], Any]:
    """From JSON that fulfils `schema_of_type` to an instance."""
    if _is_pydantic(kind):
        validate: Callable[[str], Any] = kind.model_validate_json
        return validate
    return lambda text: _build(kind, json.loads(text))


def _is_pydantic(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "model_json_schema")


class _Writer:
    """Writes schemas; classes go to `defs`, so that they may contain themselves."""

    def __init__(self) -> None:
        self.defs: dict[str, Any] = {}
        self._names: dict[Any, str] = {}

    def schema(self, kind: Any) -> dict[str, Any]:
        plain = PLAIN.get(kind) if isinstance(kind, (type, types.NoneType)) or kind is Any else None
        if plain is not None:
            return dict(plain)
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return self.schema(arguments[0])
        if origin is Literal:
            return {"enum": list(arguments)}
        if origin in (Union, types.UnionType):
            return {"anyOf": [self.schema(one) for one in arguments]}
        if origin in LISTS or _is_sequence(origin):
            return self._array(origin, arguments)
        if origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
            return {"type": "object", "additionalProperties": self.schema(arguments[1])}
        if isinstance(kind, type):
            return self._class(kind)
        raise _unknown(kind)

    def _array(self, origin: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
        if origin is tuple and arguments[-1:] != (...,):
            items = [self.schema(one) for one in arguments]
            count = len(items)
            return {"type": "array", "prefixItems": items, "minItems": count, "maxItems": count}
        return {"type": "array", "items": self.schema(arguments[0])}

    def _class(self, kind: type) -> dict[str, Any]:
        if issubclass(kind, Enum):
            return {"enum": [member.value for member in kind]}
        if not (_is_pydantic(kind) or is_dataclass(kind) or is_typeddict(kind)):
            raise _unknown(kind)
        name = self._names.get(kind)
        if name is None:
            name = kind.__name__
            while name in self.defs:
                name += "_"
            self._names[kind] = name
            self.defs[name] = {}
            self.defs[name] = self._properties(kind)
        return {"$ref": f"#/$defs/{name}"}

    def _properties(self, kind: Any) -> dict[str, Any]:
        if _is_pydantic(kind):
            found: dict[str, Any] = kind.model_json_schema(ref_template="#/$defs/{model}")
            self.defs |= found.pop("$defs", {})
            for one in (found, *self.defs.values()):
                if "properties" in one:  # others would be read and thrown away
                    one.setdefault("additionalProperties", False)
            return found
        hints = _hints(kind)
        return {
            "type": "object",
            "properties": {name: self.schema(hint) for name, hint in hints.items()},
            "required": _required(kind),
            "additionalProperties": False,
        }


def _hints(kind: Any) -> dict[str, Any]:
    """The type of every field."""
    hints = _annotations(kind)
    if is_dataclass(kind):
        return {entry.name: hints[entry.name] for entry in fields(kind) if entry.init}
    return {
        name: get_args(hint)[0] if _marked(hint) is not None else hint
        for name, hint in hints.items()
    }


def _annotations(kind: Any) -> dict[str, Any]:
    try:
        return get_type_hints(kind, include_extras=True)
    except Exception as error:  # whatever evaluating a stranger's annotations raises
        raise ConstraintError(
            f"schema: the annotations of {kind.__name__} cannot be read: {printable(str(error))}"
        ) from None


def _required(kind: Any) -> list[str]:
    if is_dataclass(kind):
        return [
            entry.name
            for entry in fields(kind)
            if entry.init and entry.default is MISSING and entry.default_factory is MISSING
        ]
    marks = {name: _marked(hint) for name, hint in _annotations(kind).items()}
    return [
        name
        for name, mark in marks.items()
        if mark == "Required" or (mark is None and name in kind.__required_keys__)
    ]


def _marked(hint: Any) -> str | None:
    """How a TypedDict marks a field: Required, NotRequired or not at all."""
    name = getattr(get_origin(hint), "_name", None)
    return name if name in ("Required", "NotRequired") else None


def _is_sequence(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str


def _unknown(kind: Any) -> ConstraintError:
    shown = getattr(kind, "__name__", None) or repr(kind)
    return ConstraintError(
        f"schema: {printable(shown)} has no JSON schema; expected a JSON schema, a pydantic "
        "model, a dataclass, a TypedDict, an Enum, Literal, str, int, float, bool, None, or lists, "
        "tuples, dicts and unions of them"
    )


def _build(kind: Any, value: Any) -> Any:
    """An instance of a type from what JSON says; ValueError or TypeError if it is none."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _build(arguments[0], value)
    if origin is Literal:
        found = [one for one in arguments if one == value and type(one) is type(value)]
        if not found:
            raise ValueError(f"expected one of {arguments}, got {value!r:.80}")
        return found[0]
    if origin in (Union, types.UnionType):
        return _build_union(arguments, value)
    if origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return {key: _build(arguments[1], item) for key, item in _as(dict, value).items()}
    if origin is tuple and arguments[-1:] != (...,):
        return tuple(_build(*pair) for pair in zip(arguments, _as(list, value), strict=True))
    if origin in LISTS or _is_sequence(origin):
        make = origin if origin in (list, tuple, set, frozenset) else list
        return make(_build(arguments[0], item) for item in _as(list, value))
    if kind is float:
        return float(_as((int, float), value))
    if kind in PLAIN:
        return value if kind is Any else _as(type(None) if kind is None else kind, value)
    if issubclass(kind, Enum):
        return kind(value)
    if _is_pydantic(kind):
        return kind.model_validate(value)
    hints = _hints(kind)
    given = _as(dict, value)
    missing = [name for name in _required(kind) if name not in given]
    if missing or given.keys() - hints.keys():
        raise ValueError(f"expected {', '.join(hints)} of {kind.__name__}, got {', '.join(given)}")
    return kind(**{name: _build(hints[name], item) for name, item in given.items()})


def _build_union(members: tuple[Any, ...], value: Any) -> Any:
    """Of the first member that fits."""
    for member in members:
        try:
            return _build(member, value)
        except (ValueError, TypeError):
            continue
    raise ValueError(f"{value!r:.80} is none of {members}")


def _as(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"expected {kind}, got {value!r:.80}")
    return value
