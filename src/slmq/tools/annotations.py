"""Types of Python as JSON Schemas, and JSON values as values of these types."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from slmq.tools.docstrings import read_docstring

__all__ = ["as_value", "schema_of_type"]

Schema = dict[str, Any]

SCALARS: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
LISTS = (list, Sequence)
DICTS = (dict, Mapping)
COLLECTIONS = (*LISTS, *DICTS, tuple)
KINDS = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string"}
DEEPEST = 20  # of types within types; a dataclass that holds itself has no end
EXPECTED = (
    "str, int, float, bool, None, a Literal, an Enum, a list, tuple or dict of these, a dataclass, "
    "a TypedDict or a pydantic model"
)


def schema_of_type(hint: Any, where: str, depth: int = 0) -> Schema:
    """The JSON Schema of a type.

    Parameters
    ----------
    hint : type
        As `typing.get_type_hints` gives it; Annotated's first string is the description.
    where : str
        What has this type, for errors.

    Raises
    ------
    TypeError
        No JSON value stands for this type, or it holds itself.
    """
    if depth > DEEPEST:
        raise TypeError(f"{where}: expected types nested up to {DEEPEST} deep, got more")
    if hint is Any or hint is object:
        return {}
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        said = [note for note in args[1:] if isinstance(note, str)]
        about = {"description": said[0]} if said else {}
        return {**schema_of_type(args[0], where, depth), **about}
    if hint is None or hint in SCALARS or hint is type(None):
        return {"type": SCALARS.get(hint, "null")}
    if origin is Literal:
        return _values(args, where)
    if origin in (Union, types.UnionType):
        return _union(args, where, depth)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _values([member.value for member in hint], where)
    if hint in COLLECTIONS or origin in COLLECTIONS:
        return _collection(origin or hint, args, where, depth)
    if isinstance(hint, type) and hasattr(hint, "model_json_schema"):
        return dict(hint.model_json_schema())
    if dataclasses.is_dataclass(hint) or typing.is_typeddict(hint):
        return _record(hint, where, depth)
    raise TypeError(f"{where}: expected {EXPECTED}; got {_named(hint)}")


def _named(hint: Any) -> str:
    return getattr(hint, "__qualname__", None) or str(hint)


def _values(values: Sequence[Any], where: str) -> Schema:
    for value in values:
        if type(value) not in KINDS:
            kind = type(value).__name__
            raise TypeError(f"{where}: expected values that JSON has, such as str; got {kind}")
    kinds = sorted({KINDS[type(value)] for value in values})
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": list(values)}


def _union(args: Sequence[Any], where: str, depth: int) -> Schema:
    schemas = [schema_of_type(arg, where, depth + 1) for arg in args]
    return {"anyOf": schemas} if len(schemas) > 1 else schemas[0]


def _collection(kind: Any, args: Sequence[Any], where: str, depth: int) -> Schema:
    if kind in DICTS:
        return _mapping(args, where, depth)
    if kind is tuple:
        return _tuple(args, where, depth)
    return {"type": "array", **_items(args[:1], where, depth)}


def _items(args: Sequence[Any], where: str, depth: int) -> Schema:
    return {"items": schema_of_type(args[0], where, depth + 1)} if args else {}


def _tuple(args: Sequence[Any], where: str, depth: int) -> Schema:
    if not args or (len(args) == 2 and args[1] is Ellipsis):
        return {"type": "array", **_items(args[:1], where, depth)}
    return {
        "type": "array",
        "prefixItems": [schema_of_type(arg, where, depth + 1) for arg in args],
        "items": False,
        "minItems": len(args),
    }


def _mapping(args: Sequence[Any], where: str, depth: int) -> Schema:
    if not args:
        return {"type": "object"}
    if args[0] is not str:
        raise TypeError(f"{where}: expected a dict with keys of type str, got {_named(args[0])}")
    return {
        "type": "object",
        "additionalProperties": schema_of_type(args[1], where, depth + 1),
    }


def _record(kind: Any, where: str, depth: int) -> Schema:
    """An object whose keys are known: of a dataclass or a TypedDict."""
    about = read_docstring(kind.__doc__)[1] if not _generated(kind) else {}
    properties = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        found = schema_of_type(hint, f"{where}.{name}", depth + 1)
        properties[name] = found if name not in about else {**found, "description": about[name]}
    if dataclasses.is_dataclass(kind):
        known = {field.name: field for field in dataclasses.fields(kind) if field.init}
        properties = {name: properties[name] for name in known}
        required = [name for name, field in known.items() if not _has_default(field)]
    else:
        required = [name for name in properties if name in kind.__required_keys__]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _generated(kind: Any) -> bool:
    """Whether the docstring is the signature that `dataclass` writes where there is none."""
    return bool((kind.__doc__ or "").startswith(f"{kind.__name__}("))


# JSON values as values of a type ----------------------------------------------------------------


def as_value(value: Any, hint: Any, where: str) -> Any:
    """A JSON value as a value of a type that `schema_of_type` knows.

    Raises
    ------
    ValueError
        The value is not of this type; `where` is named, what was expected and what was found.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin is Annotated:
        return as_value(value, args[0], where)
    if origin in (Union, types.UnionType):
        return _first(value, args, where)
    if origin is Literal:
        return _among(value, {_key(arg): arg for arg in args}, where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _among(value, {_key(member.value): member for member in hint}, where)
    if hint in SCALARS or hint is None or hint is type(None):
        return _scalar(value, hint, where)
    if hint in LISTS or hint is tuple or origin in (*LISTS, tuple):
        return _listed(value, tuple if tuple in (hint, origin) else list, args, where)
    if isinstance(hint, type) and hasattr(hint, "model_validate"):
        return _modelled(value, hint, where)
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {_shown(value)}")
    if hint in DICTS or origin in DICTS:
        inner = args[1] if args else Any
        return {key: as_value(item, inner, f"{where}.{key}") for key, item in value.items()}
    return _recorded(value, hint, where)


def _shown(value: Any) -> str:
    return f"{KINDS.get(type(value), type(value).__name__)} {value!r:.60}"


def _key(value: Any) -> tuple[type, Any]:
    """Of values that JSON tells apart: 1 is not true."""
    return (float if isinstance(value, int | float) and value is not True and value is not False
            else type(value)), value  # fmt: skip


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


def _scalar(value: Any, hint: Any, where: str) -> Any:
    kind = type(None) if hint is None else hint
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
        return kind.model_validate(value)
    except ValueError as error:  # pydantic's own is one
        raise ValueError(f"{where}: {error}") from None


def _recorded(value: dict[str, Any], kind: Any, where: str) -> Any:
    hints = typing.get_type_hints(kind, include_extras=True)
    schema = _record(kind, where, 0)
    unknown = [key for key in value if key not in schema["properties"]]
    missing = [key for key in schema["required"] if key not in value]
    if unknown or missing:
        wrong = [f"no {key!r}" for key in missing] + [f"unknown {key!r}" for key in unknown]
        raise ValueError(f"{where}: expected {', '.join(schema['properties'])}; got {wrong[0]}")
    found = {key: as_value(item, hints[key], f"{where}.{key}") for key, item in value.items()}
    return kind(**found)
