"""Python types as schemas, and their instances from JSON; pydantic beside our own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal, TypedDict

import jsonschema
import pytest
from typing_extensions import NotRequired, Required

from slmq.tools.annotations import schema_of_type, whole_schema
from slmq.tools.values import reader_of


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
    jsonschema.Draft202012Validator.check_schema(whole_schema(kind, "x"))
    jsonschema.validate(value, whole_schema(kind, "x"))
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
        jsonschema.validate(value, whole_schema(kind, "x"))
    with pytest.raises((ValueError, TypeError)):
        reader_of(kind)(json.dumps(value))


def test_pydantic_models_describe_themselves() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Person(pydantic.BaseModel):
        name: str
        age: int = pydantic.Field(ge=0, le=130)
        pet: Pet | None = None

    schema = whole_schema(Person, "x")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "x", "age": 131}, schema)
    with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
        jsonschema.validate({"name": "x", "age": 1, "more": 1}, schema)
    found = reader_of(Person)('{"name": "x", "age": 3, "pet": {"name": "y", "legs": 4}}')
    assert found == Person(name="x", age=3, pet=Pet("y"))
    holder = whole_schema(list[Person], "x")
    jsonschema.validate([{"name": "x", "age": 3}], holder)
    assert reader_of(list[Person])('[{"name": "x", "age": 3}]') == [Person(name="x", age=3)]


def test_models_within_classes_keep_apart() -> None:
    """Two classes of one name, one of them within a pydantic model, and one that holds itself."""
    pydantic = pytest.importorskip("pydantic")
    theirs = pydantic.create_model("Pet", claws=(int, ...))
    keeper = pydantic.create_model("Keeper", pet=(theirs, ...), pets=(list[theirs], ...))

    @dataclass
    class Zoo:
        keeper: keeper  # type: ignore[valid-type]
        pet: Pet
        wild: theirs  # type: ignore[valid-type]

    Zoo.__annotations__ = {"keeper": keeper, "pet": Pet, "wild": theirs}
    value = {
        "keeper": {"pet": {"claws": 1}, "pets": [{"claws": 2}]},
        "pet": {"name": "x"},
        "wild": {"claws": 3},
    }
    for schema in (whole_schema(Zoo, "x"), schema_of_type(Zoo, "x")):
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(value, schema)
        for wrong in ({**value, "pet": {"claws": 1}}, {**value, "wild": {"name": "x"}}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(wrong, schema)
    assert "$ref" not in json.dumps(schema_of_type(Zoo, "x"))
    found = reader_of(Zoo)(json.dumps(value))
    assert found.keeper == keeper(pet=theirs(claws=1), pets=[theirs(claws=2)])
    assert (found.pet, found.wild) == (Pet("x"), theirs(claws=3))


def test_models_may_hold_themselves() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Tree(pydantic.BaseModel):
        kids: list[Tree] = pydantic.Field(default_factory=list)

    Tree.model_rebuild(_types_namespace={"Tree": Tree})
    value = {"kids": [{"kids": []}, {}]}
    jsonschema.validate(value, whole_schema(Tree, "x"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"kids": [{"kids": 3}]}, whole_schema(Tree, "x"))
    assert reader_of(list[Tree])(json.dumps([value]))[0].kids[1] == Tree()
    with pytest.raises(TypeError, match="x: expected types nested up to 20 deep"):
        schema_of_type(Tree, "x")


@pytest.mark.parametrize(
    "kind", [object, bytes, open, 5, complex, list[bytes], "Pet", dict[int, str], [int]]
)
def test_what_json_cannot_hold_is_named(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"^here: expected .*; got|^here: expected a dict .*, got"):
        whole_schema(kind, "here")
