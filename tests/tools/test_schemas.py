"""What a function's signature and docstring tell a model, and what its arguments become."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Optional, TypedDict

import numpy as np
import pytest

from slmq.tools.annotations import schema_of_type
from slmq.tools.docstrings import read_docstring
from slmq.tools.tool import Tool, tools_of
from slmq.tools.values import as_value


class Unit(enum.Enum):
    METRE = "m"
    MILE = "mi"


@dataclass
class Place:
    """Somewhere.

    Parameters
    ----------
    lat : float
        Degrees north.
    """

    lat: float
    lon: float
    tags: list[str] = field(default_factory=list)


class Step(TypedDict, total=False):
    to: Place


def numpydoc(a: int, b: str = "x") -> None:
    """Add things.

    They are
    added.

    Parameters
    ----------
    a : int
        How many,
        at least one.
    b : str, optional
        Of what.

    Returns
    -------
    None
        Nothing: not a parameter.
    """


def google(a: int, b: str = "x") -> None:
    """Add things.

    They are
    added.

    Args:
        a (int): How many,
            at least one.
        b: Of what.

    Returns:
        a: not a parameter.
    """


def rest(a: int, b: str = "x") -> None:
    """Add things.

    They are
    added.

    :param int a: How many,
        at least one.
    :param b: Of what.
    :returns: not a parameter
    """


@pytest.mark.parametrize("function", [numpydoc, google, rest])
def test_every_manner_of_docstrings_says_the_same(function: Any) -> None:
    found = Tool.of(function)
    assert found.name == function.__name__
    assert found.description == "Add things.\nThey are added."
    assert found.parameters == {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "description": "How many, at least one."},
            "b": {"type": "string", "description": "Of what.", "default": "x"},
        },
        "required": ["a"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "text",
    [None, "", "Only words: no sections.", "Words.\n\nMore words about Args: none."],
)
def test_a_docstring_without_parameters_is_description(text: str | None) -> None:
    described, about = read_docstring(text)
    assert about == {}
    assert described.replace("\n", " ") == " ".join((text or "").split())


TYPES: list[tuple[Any, Any]] = [
    (str, {"type": "string"}),
    (float, {"type": "number"}),
    (None, {"type": "null"}),
    (Any, {}),
    (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
    (Literal[1, "b"], {"type": ["integer", "string"], "enum": [1, "b"]}),
    (Unit, {"type": "string", "enum": ["m", "mi"]}),
    (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}]}),  # noqa: UP045
    (int | str, {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
    (list[int], {"type": "array", "items": {"type": "integer"}}),
    (Sequence[bool], {"type": "array", "items": {"type": "boolean"}}),
    (list, {"type": "array"}),
    (set[int], {"type": "array", "items": {"type": "integer"}}),
    (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
    (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
    (
        tuple[int, str],
        {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "items": False,
            "minItems": 2,
        },
    ),
    (Annotated[int, "How many."], {"type": "integer", "description": "How many."}),
    (
        Place,
        {
            "type": "object",
            "properties": {
                "lat": {"type": "number", "description": "Degrees north."},
                "lon": {"type": "number"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["lat", "lon"],
            "additionalProperties": False,
        },
    ),
]


@pytest.mark.parametrize(("hint", "schema"), TYPES, ids=str)
def test_types_have_schemas(hint: Any, schema: Any) -> None:
    assert schema_of_type(hint, "x") == schema


def test_a_typed_dict_names_what_is_required() -> None:
    schema = schema_of_type(Step, "x")
    assert (schema["required"], list(schema["properties"])) == ([], ["to"])


@dataclass
class Endless:
    inner: Endless | None = None


@pytest.mark.parametrize("hint", [bytes, set[bytes], dict[int, str], Literal[b"x"], Endless, print])
def test_types_without_json_are_refused_by_name(hint: Any) -> None:
    with pytest.raises(TypeError, match=r"^f\(x\).*: expected .*got"):
        schema_of_type(hint, "f(x)")


VALUES: list[tuple[Any, Any, Any]] = [
    (2, float, 2.0),
    (2.0, int, 2),
    ("m", Unit, Unit.METRE),
    (None, int | None, None),
    ([1, "a"], tuple[int, str], (1, "a")),
    ({"lat": 1, "lon": 2}, Place, Place(1.0, 2.0)),
    ([{"lat": 1, "lon": 2, "tags": ["x"]}], list[Place], [Place(1.0, 2.0, ["x"])]),
    ({"to": {"lat": 1, "lon": 2}}, Step, {"to": Place(1.0, 2.0)}),
    ({"a": 1}, dict[str, int], {"a": 1}),
    ([2, 1, 2], set[int], {1, 2}),
    (1, Literal[1, 2], 1),
]


@pytest.mark.parametrize(("value", "hint", "wanted"), VALUES, ids=str)
def test_json_becomes_what_the_function_takes(value: Any, hint: Any, wanted: Any) -> None:
    found = as_value(value, hint, "x")
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        ("2", int, "x: expected integer, got string '2'"),
        (True, int, "x: expected integer, got boolean True"),
        (True, Literal[1], "x: expected one of 1; got boolean True"),
        (1, Literal[True], "x: expected one of True; got integer 1"),
        ("km", Unit, "x: expected one of 'm', 'mi'; got string 'km'"),
        ({}, Place, "x: expected lat, lon, tags; got no 'lat'"),
        ({"lat": 1, "lon": 2, "up": 3}, Place, "x: expected lat, lon, tags; got unknown 'up'"),
        ([1], tuple[int, str], "x: expected 2 items, got 1"),
        ([1, "b"], list[int], r"x\[1\]: expected integer, got string 'b'"),
        ("a", int | None, "x: expected integer, got string 'a'; or x: expected null"),
        ([], dict[str, int], r"x: expected an object, got list \[\]"),
        ({}, list[int], r"x: expected an array, got dict \{\}"),
    ],
)
def test_json_of_another_type_is_an_error(value: Any, hint: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        as_value(value, hint, "x")


def area(place: Place, unit: Unit = Unit.METRE) -> dict[str, Any]:
    """Area around a place."""
    return {"unit": unit.name, "at": place, "all": {3, 1}, "array": np.arange(2), "nan": 1j}


def test_a_call_converts_arguments_and_writes_the_result() -> None:
    tool = Tool.of(area)
    assert tool.parameters["properties"]["unit"]["default"] == "m"
    text = tool.call({"place": {"lat": 1, "lon": 2}, "unit": "mi"})
    assert json.loads(text) == {
        "unit": "MILE",
        "at": {"lat": 1.0, "lon": 2.0, "tags": []},
        "all": [1, 3],
        "array": [0, 1],
        "nan": "1j",
    }
    for arguments, message in [
        ({}, "area: expected place, unit; got no 'place'"),
        ({"place": {}, "size": 1}, "area: expected place, unit; got unknown 'size'"),
        ({"place": {"lat": "x", "lon": 2}}, r"area\(place\).lat: expected number, got string 'x'"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}"):
            tool.call(arguments)


def test_schemas_of_other_libraries_are_taken() -> None:
    inner = {"name": "f", "description": "F.", "parameters": {"properties": {"a": {}}}}
    wanted = Tool("f", "F.", {"type": "object", "properties": {"a": {}}})
    assert tools_of([inner]) == tools_of([{"type": "function", "function": inner}]) == (wanted,)
    assert Tool.of(wanted.declaration) == wanted
    assert Tool.of({"name": "f"}).parameters == {"type": "object", "properties": {}}
    with pytest.raises(TypeError, match="has a schema only"):
        wanted.call({})


def test_pydantic_models_are_taken() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Person(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        name: str

    def greet(person: Person) -> str:
        return f"Hello {person.name}"

    class Couple(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        one: Person
        other: Person

    def marry(couple: Couple) -> str:
        return f"Hello {couple.one.name} and {couple.other.name}"

    marry.__annotations__ = {"couple": Couple}
    married = Tool.of(marry)
    assert "$ref" not in json.dumps(married.parameters)  # it would lead out of the parameter
    assert married.call({"couple": {"one": {"name": "A"}, "other": {"name": "B"}}})[6:] == "A and B"
    greet.__annotations__ = {"person": Person, "return": str}
    tool = Tool.of(greet)
    assert tool.parameters["properties"]["person"]["properties"]["name"]["type"] == "string"
    assert tool.call({"person": {"name": "Ada"}}) == "Hello Ada"
    with pytest.raises(ValueError, match=r"greet\(person\)"):
        tool.call({"person": {}})


async def later() -> None:
    """Not now."""


def starred(*args: int) -> None:
    """Any."""


def misspelt(a: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Of a type that is not there."""


def positional(a: int, /) -> None:
    """Only by place."""


@pytest.mark.parametrize(
    ("things", "error", "message"),
    [
        (3, TypeError, "tools: expected a list of functions or JSON schemas, got int"),
        ([3], TypeError, r"tools\[0\]: expected a function, a JSON schema or a Tool, got int"),
        ([numpydoc, numpydoc], ValueError, r"tools\[1\]: expected another name, got 'numpydoc'"),
        ([later], TypeError, r"tools\[0\]: later: expected a plain function, got a coroutine"),
        ([starred], TypeError, "expected parameters with names of their own"),
        ([misspelt], TypeError, "misspelt: expected annotations .* got name 'Nowhere' is not"),
        ([positional], TypeError, "expected parameters with names of their own"),
        ([lambda: 1], ValueError, "'<lambda>': expected a name of letters"),
        ([{"name": "a b"}], ValueError, "'a b': expected a name of letters"),
        ([{"parameters": {}}], TypeError, "expected a JSON schema with a name"),
        ([{"name": "f", "parameters": []}], TypeError, "f.parameters: expected the JSON Schema of"),
        ([{"name": "f", "parameters": {"type": "array"}}], TypeError, "JSON Schema of an object"),
        ([{"name": "f", "description": 3}], TypeError, "f.description: expected a str"),
        (({"name": f"f{i}"} for i in range(200)), ValueError, "expected at most 128 tools"),
    ],
)
def test_wrong_tools_are_named(things: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tools_of(things)
