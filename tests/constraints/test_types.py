"""Python types as schemas, and their instances from JSON; pydantic beside our own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal, TypedDict

import jsonschema
import pytest
from typing_extensions import NotRequired, Required

from slmq.constraints import reader_of, schema_of_type
from slmq.errors import ConstraintError


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Pet:
    name: str
    legs: int = 4


@dataclass
class Node:
    value: float
    colour: Colour
    kind: Literal["a", 3]
    pets: list[Pet]
    pair: tuple[int, str]
    next: Node | None = None
    extra: dict[str, bool] = field(default_factory=dict)
    either: int | str | None = None
    noted: Annotated[bool, "why"] = False


class Partial(TypedDict, total=False):
    a: Required[int]
    b: str


class Whole(TypedDict):
    a: int
    b: NotRequired[list[Pet]]


LEAF = Node(2.5, Colour.BLUE, 3, [], (2, "c"))
CASES: list[tuple[Any, Any, Any]] = [
    (
        Node,
        {
            "value": 1,
            "colour": "red",
            "kind": "a",
            "pets": [{"name": "x"}, {"name": "y", "legs": 2}],
            "pair": [1, "b"],
            "next": {"value": 2.5, "colour": "blue", "kind": 3, "pets": [], "pair": [2, "c"]},
            "extra": {"k": True},
            "either": "s",
        },
        Node(
            1.0, Colour.RED, "a", [Pet("x"), Pet("y", 2)], (1, "b"), LEAF, {"k": True}, "s"
        ),
    ),
    (Partial, {"a": 1}, {"a": 1}),
    (Whole, {"a": 1, "b": [{"name": "x"}]}, {"a": 1, "b": [Pet("x")]}),
    (list[int], [1, 2], [1, 2]),
    (set[str], ["a", "b"], {"a", "b"}),
    (tuple[int, ...], [1, 2, 3], (1, 2, 3)),
    (int | None, None, None),
    (Any, {"x": [1]}, {"x": [1]}),
    (bool, True, True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "wanted"), CASES)
def test_values_become_instances(kind: Any, value: Any, wanted: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(schema_of_type(kind))
    jsonschema.validate(value, schema_of_type(kind))
    found = reader_of(kind)(json.dumps(value))
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Pet, {"legs": 4}),
        (Pet, {"name": 5}),
        (Pet, {"name": "x", "tail": 1}),
        (Partial, {"b": "x"}),
        (Whole, {"b": []}),
        (int, True),
        (Literal["a", 3], "b"),
        (tuple[int, str], [1]),
        (Colour, "green"),
    ],
)
def test_schemas_refuse_what_is_no_instance(kind: Any, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, schema_of_type(kind))
    with pytest.raises((ValueError, TypeError)):
        reader_of(kind)(json.dumps(value))


def test_pydantic_models_describe_themselves() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Person(pydantic.BaseModel):
        name: str
        age: int = pydantic.Field(ge=0, le=130)
        pet: Pet | None = None

    schema = schema_of_type(Person)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "x", "age": 131}, schema)
    with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
        jsonschema.validate({"name": "x", "age": 1, "more": 1}, schema)
    found = reader_of(Person)('{"name": "x", "age": 3, "pet": {"name": "y", "legs": 4}}')
    assert found == Person(name="x", age=3, pet=Pet("y"))
    holder = schema_of_type(list[Person])
    jsonschema.validate([{"name": "x", "age": 3}], holder)
    assert reader_of(list[Person])('[{"name": "x", "age": 3}]') == [Person(name="x", age=3)]


@pytest.mark.parametrize("kind", [object, bytes, open, 5, complex, list[bytes], "Pet"])
def test_what_json_cannot_hold_is_named(kind: Any) -> None:
    with pytest.raises(ConstraintError, match=r"schema: .* has no JSON schema; expected"):
        schema_of_type(kind)
