"""A tool: a function with the JSON Schema of its arguments, or such a schema alone."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from slmq.chat.messages import plain
from slmq.tools.annotations import hints_of, schema_of_type
from slmq.tools.docstrings import read_docstring
from slmq.tools.values import as_value

__all__ = ["Tool", "tools_of"]

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
NAMED = "a name of letters, digits, _ and -, at most 64, beginning with no digit"
MOST = 128
POSITIONAL = inspect.Parameter.POSITIONAL_ONLY
STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Tool:
    """What a model may call.

    Made by `Tool.of` from a Python function or a JSON schema. A tool without a function can be
    called by the model, but whoever reads the call has to run it.

    Attributes
    ----------
    name : str
    description : str
        What it does, for the model.
    parameters : dict
        JSON Schema of an object with the arguments.
    function : callable or None
        Called with the arguments by keyword.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    function: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"tool {self.name!r:.80}: expected {NAMED}")

    @classmethod
    def of(cls, thing: object) -> Tool:
        """A tool from a function, a JSON schema, or a tool.

        Parameters
        ----------
        thing : callable, mapping or Tool
            A function's name, signature and docstring (numpydoc, Google or reST) say what the model
            is told. A mapping has ``name``, ``description`` and ``parameters``, or these under
            ``"function"``, as in OpenAI's API.

        Raises
        ------
        TypeError, ValueError
            It is none of these, or a parameter has a type that JSON lacks.
        """
        if isinstance(thing, Tool):
            return thing
        if isinstance(thing, Mapping):
            return _declared(thing)
        if callable(thing):
            return _written(thing)
        raise TypeError(f"expected a function, a JSON schema or a Tool, got {type(thing).__name__}")

    @property
    def declaration(self) -> dict[str, Any]:
        """The tool as chat templates know it."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.parameters,
            },
        }

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Run the function and return its result as a text.

        Strings stand as they are; everything else becomes JSON, if it can.

        Raises
        ------
        ValueError
            The arguments are not those of the function; it was not called.
        Exception
            Whatever the function raises.
        """
        if self.function is None:
            raise TypeError(f"tool {self.name!r} has a schema only, no function to run")
        return _text(self.function(**_converted(self, arguments)))


def tools_of(things: object) -> tuple[Tool, ...]:
    """The tools of a list; raises TypeError or ValueError as `Tool.of`, naming the place.

    Raises
    ------
    ValueError
        Two have the same name, or there are more than 128.
    """
    if isinstance(things, str | bytes | Mapping) or not isinstance(things, Iterable):
        kind = type(things).__name__
        raise TypeError(f"tools: expected a list of functions or JSON schemas, got {kind}")
    found: dict[str, Tool] = {}
    for i, thing in enumerate(things):
        if i >= MOST:
            raise ValueError(f"tools: expected at most {MOST} tools, got more")
        try:
            tool = Tool.of(thing)
        except (TypeError, ValueError) as error:
            raise type(error)(f"tools[{i}]: {error}") from None
        if tool.name in found:
            raise ValueError(f"tools[{i}]: expected another name, got {tool.name!r} twice")
        found[tool.name] = tool
    return tuple(found.values())


def _declared(given: Mapping[str, Any]) -> Tool:
    body = given.get("function", given)
    if not isinstance(body, Mapping) or not isinstance(body.get("name"), str):
        raise TypeError("expected a JSON schema with a name, or with a function that has one")
    parameters = body.get("parameters", body.get("input_schema"))
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise TypeError(
            f"{body['name']}.parameters: expected the JSON Schema of an object, got "
            f"{parameters!r:.60}"
        )
    description = body.get("description") or ""
    if not isinstance(description, str):
        raise TypeError(f"{body['name']}.description: expected a str, got {description!r:.60}")
    schema = plain(parameters, f"{body['name']}.parameters")
    return Tool(body["name"], description, {"type": "object", **schema})


def _written(function: Callable[..., Any]) -> Tool:
    name = getattr(function, "__name__", type(function).__name__)
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{name}: expected a plain function, got a coroutine function")
    described, about = read_docstring(function.__doc__)
    hints = _hints(function, name)
    properties: dict[str, Any] = {}
    required = []
    for parameter in _parameters(function, name):
        hint = hints.get(parameter.name, Any)
        schema = schema_of_type(hint, f"{name}({parameter.name})")
        if parameter.name in about:
            schema["description"] = about[parameter.name]
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
        elif (default := _json(parameter.default)) is not None:
            schema["default"] = default
        properties[parameter.name] = schema
    schema = {"type": "object", "properties": properties, "required": required}
    return Tool(name, described, {**schema, "additionalProperties": False}, function)


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    plain_function = inspect.isroutine(function) or inspect.isclass(function)
    return hints_of(function if plain_function else type(function).__call__, name)


def _parameters(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # of a built-in one
        raise TypeError(f"{name}: expected a function with a signature, got none") from None
    for parameter in parameters:
        if parameter.kind in STARRED or parameter.kind is POSITIONAL:
            raise TypeError(f"{name}: expected parameters with names of their own, got {parameter}")
    return parameters


def _json(value: object) -> Any:
    """A default as JSON; None if there is nothing that JSON could say of it."""
    try:
        return json.loads(json.dumps(getattr(value, "value", value), allow_nan=False))
    except (TypeError, ValueError):
        return None


def _converted(tool: Tool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as the function's own types."""
    assert tool.function is not None
    properties = tool.parameters.get("properties", {})
    unknown = [name for name in arguments if name not in properties]
    missing = [name for name in tool.parameters.get("required", ()) if name not in arguments]
    if unknown or missing:
        got = f"no {missing[0]!r}" if missing else f"unknown {unknown[0]!r}"
        expected = ", ".join(properties) or "no arguments"
        raise ValueError(f"{tool.name}: expected {expected}; got {got}")
    hints = _hints(tool.function, tool.name)
    return {
        name: as_value(value, hints.get(name, Any), f"{tool.name}({name})")
        for name, value in arguments.items()
    }


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=_plainer)


def _plainer(value: object) -> Any:
    """What JSON lacks, as something that it has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if hasattr(value, "tolist"):  # numpy's
        return value.tolist()
    return str(value)
