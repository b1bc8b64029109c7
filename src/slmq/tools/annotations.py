"""JSON Schemas of Python's types: of a function's arguments, and of what an answer shall be."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from slmq.errors import printable
from slmq.settings import written_hints
from slmq.tools.docstrings import read_docstring

__all__ = ["fields_of", "hints_of", "is_type", "kind_of", "schema_of_type", "whole_schema"]

Schema = dict[str, Any]

KINDS = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string"}
SPECIAL = (Any, Annotated, Union, Literal)
DEEPEST = 20  # of types within types
REF = "#/$defs/"
EXPECTED = (
    "str, int, float, bool, None, a Literal, an Enum, a list, set, tuple, dict or union of these, "
    "a dataclass, a TypedDict or a pydantic model"
)


def is_type(schema: object) -> bool:
    """Whether this is a type, and no JSON schema."""
    return not isinstance(schema, (Mapping, bool))


def schema_of_type(hint: Any, where: str) -> Schema:
    """The JSON Schema of a type, all in one piece: a model reads it as it stands.

    Parameters
    ----------
    hint : type
        As `hints_of` gives it; Annotated's first string is the description.
    where : str
        What has this type, for errors.

    Raises
    ------
    TypeError
        No JSON value stands for this type, or it holds itself.
    """
    return _Writer(apart=False).schema(hint, where, 0)


def whole_schema(hint: Any, where: str) -> Schema:
    """The JSON Schema of a type, with classes under ``$defs``: they may hold themselves.

    Parameters and errors are those of `schema_of_type`.
    """
    if hint is object:
        raise _unknown(hint, where)  # as an argument it is anything; here it is a slip
    writer = _Writer(apart=True)
    found = writer.schema(hint, where, 0)
    return {**found, "$defs": writer.defs} if writer.defs else found


def kind_of(hint: Any) -> Any:
    """What a type is a case of.

    One of the keys of `KINDS`, Any, Annotated, Union, Literal, Enum, list, set, frozenset, tuple,
    dict, "pydantic" or "record"; None if JSON has nothing like it.
    """
    origin = get_origin(hint) or hint
    if origin is object:
        return Any
    if origin is None:
        return type(None)
    if origin is types.UnionType:
        return Union
    if any(origin is kind for kind in SPECIAL):
        return origin
    if not isinstance(origin, type):
        return None
    if origin in KINDS or origin in (tuple, set, frozenset):
        return origin
    if issubclass(origin, enum.Enum):
        return enum.Enum
    if hasattr(origin, "model_json_schema"):
        return "pydantic"
    if dataclasses.is_dataclass(origin) or typing.is_typeddict(origin):
        return "record"
    if issubclass(origin, Mapping):
        return dict
    sequence = issubclass(origin, Sequence) and not issubclass(origin, (str, bytes, bytearray))
    return list if sequence and origin not in (memoryview, range) else None


def hints_of(thing: Any, where: str) -> dict[str, Any]:
    """The annotations of a function or class; TypeError if they cannot be read."""
    try:
        return written_hints(thing)
    except Exception as error:  # whatever evaluating a stranger's annotations raises
        raise TypeError(
            f"{where}: expected annotations that can be read; got {printable(str(error))}"
        ) from None


def fields_of(kind: Any, where: str) -> tuple[dict[str, Any], list[str]]:
    """The types of the fields of a dataclass or TypedDict, and the names of those it needs."""
    hints = hints_of(kind, where)
    if dataclasses.is_dataclass(kind):
        known = [field for field in dataclasses.fields(kind) if field.init]
        required = [field.name for field in known if not _has_default(field)]
        return {field.name: hints[field.name] for field in known}, required
    marks = {name: _marked(hint) for name, hint in hints.items()}
    required = [
        name
        for name, mark in marks.items()
        if mark == "Required" or (mark is None and name in kind.__required_keys__)
    ]
    bare = {name: get_args(hint)[0] if marks[name] else hint for name, hint in hints.items()}
    return bare, required


class _Writer:
    """Writes schemas; if they stand `apart`, those of classes go to `defs`."""

    def __init__(self, *, apart: bool) -> None:
        self.defs: Schema = {}
        self._apart = apart
        self._names: dict[Any, str] = {}

    def schema(self, hint: Any, where: str, depth: int) -> Schema:
        if depth > DEEPEST:
            raise TypeError(f"{where}: expected types nested up to {DEEPEST} deep, got more")
        kind, args = kind_of(hint), get_args(hint)
        if kind is Any:
            return {}
        if kind in KINDS:
            return {"type": KINDS[kind]}
        if kind is Annotated:
            said = [note for note in args[1:] if isinstance(note, str)]
            about = {"description": said[0]} if said else {}
            return {**self.schema(args[0], where, depth), **about}
        if kind is Literal:
            return _values(args, where)
        if kind is enum.Enum:
            return _values([member.value for member in hint], where)
        if kind is Union:
            return {"anyOf": [self.schema(arg, where, depth + 1) for arg in args]}
        if kind is dict:
            return self._mapping(args, where, depth)
        if kind is tuple:
            return self._tuple(args, where, depth)
        if kind in (list, set, frozenset):
            return {"type": "array", **self._items(args, where, depth)}
        if kind in ("pydantic", "record"):
            return self._class(hint, kind == "pydantic", where, depth)
        raise _unknown(hint, where)

    def _items(self, args: Sequence[Any], where: str, depth: int) -> Schema:
        return {"items": self.schema(args[0], where, depth + 1)} if args else {}

    def _tuple(self, args: Sequence[Any], where: str, depth: int) -> Schema:
        if not args or args[1:] == (Ellipsis,):
            return {"type": "array", **self._items(args, where, depth)}
        return {
            "type": "array",
            "prefixItems": [self.schema(arg, where, depth + 1) for arg in args],
            "items": False,
            "minItems": len(args),
        }

    def _mapping(self, args: Sequence[Any], where: str, depth: int) -> Schema:
        if not args:
            return {"type": "object"}
        if args[0] is not str:
            got = _named(args[0])
            raise TypeError(f"{where}: expected a dict with keys of type str, got {got}")
        return {"type": "object", "additionalProperties": self.schema(args[1], where, depth + 1)}

    def _class(self, hint: Any, pydantic: bool, where: str, depth: int) -> Schema:
        if not self._apart:
            if pydantic:
                found = _pydantic(hint, REF)
                whole: Schema = _unfolded(found, found.pop("$defs", {}), where, depth)
                return whole
            return self._record(hint, where, depth)
        name = self._names.get(hint)
        if name is None:
            name = hint.__name__
            while name in self.defs:
                name += "_"
            self._names[hint] = name
            self.defs[name] = {}
            if pydantic:
                found = _pydantic(hint, f"{REF}{name}.")
                inner = found.pop("$defs", {})
                self.defs |= {f"{name}.{other}": schema for other, schema in inner.items()}
            else:
                found = self._record(hint, where, 0)
            self.defs[name] = found
        return {"$ref": REF + name}

    def _record(self, kind: Any, where: str, depth: int) -> Schema:
        """An object whose keys are known: of a dataclass or a TypedDict."""
        about = read_docstring(kind.__doc__)[1] if not _generated(kind) else {}
        hints, required = fields_of(kind, where)
        properties = {}
        for name, hint in hints.items():
            found = self.schema(hint, f"{where}.{name}", depth + 1)
            properties[name] = found if name not in about else {**found, "description": about[name]}
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }


def _pydantic(kind: Any, refs: str) -> Schema:
    """What a pydantic model says of itself; `refs` stands before the names of other models."""
    found: Schema = kind.model_json_schema(ref_template=refs + "{model}")
    for one in (found, *found.get("$defs", {}).values()):
        if "properties" in one:  # others would be read and thrown away
            one.setdefault("additionalProperties", False)
    return found


def _unfolded(schema: Any, defs: Schema, where: str, depth: int) -> Any:
    """A schema with what it refers to in place of the references."""
    if depth > DEEPEST:
        raise TypeError(f"{where}: expected types nested up to {DEEPEST} deep, got more")
    if isinstance(schema, list):
        return [_unfolded(one, defs, where, depth) for one in schema]
    if not isinstance(schema, dict):
        return schema
    name = schema.get("$ref")
    if isinstance(name, str):
        meant = {**defs[name.removeprefix(REF)], **schema}
        del meant["$ref"]
        return _unfolded(meant, defs, where, depth + 1)
    return {key: _unfolded(one, defs, where, depth) for key, one in schema.items()}


def _values(values: Sequence[Any], where: str) -> Schema:
    for value in values:
        if type(value) not in KINDS:
            kind = type(value).__name__
            raise TypeError(f"{where}: expected values that JSON has, such as str; got {kind}")
    kinds = sorted({KINDS[type(value)] for value in values})
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": list(values)}


def _has_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _marked(hint: Any) -> str | None:
    """How a TypedDict marks a field: Required, NotRequired or not at all."""
    name = getattr(get_origin(hint), "_name", None)
    return name if name in ("Required", "NotRequired") else None


def _generated(kind: Any) -> bool:
    """Whether the docstring is the signature that `dataclass` writes where there is none."""
    return bool((kind.__doc__ or "").startswith(f"{kind.__name__}("))


def _named(hint: Any) -> str:
    return printable(getattr(hint, "__qualname__", None) or repr(hint))


def _unknown(hint: Any, where: str) -> TypeError:
    return TypeError(f"{where}: expected {EXPECTED}; got {_named(hint)}")
