"""What the dialects that write strings without JSON's quotes ask of a schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["known_values", "plain_string", "properties", "string_limits"]

DEFINITIONS = "$defs"
LIMITS = ("minLength", "maxLength")
UNKNOWN = ("pattern", "format")


def properties(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The schema of each property, standing alone: with the definitions that it refers to."""
    shared = {DEFINITIONS: schema[DEFINITIONS]} if DEFINITIONS in schema else {}
    return {
        name: {**_resolved(inner, schema), **shared} if isinstance(inner, Mapping) else {}
        for name, inner in schema.get("properties", {}).items()
    }


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference to a definition refers to."""
    start = f"#/{DEFINITIONS}/"
    name = str(schema.get("$ref", "")).removeprefix(start)
    found = root.get(DEFINITIONS, {}).get(name)
    return found if isinstance(found, Mapping) else schema


def plain_string(schema: Mapping[str, Any]) -> bool:
    """Whether every value of the schema is a string."""
    if schema.get("type") == "string":
        return True
    values = known_values(schema)
    return bool(values) and all(isinstance(value, str) for value in values or ())


def known_values(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that a schema lists; None if it lists none."""
    if "const" in schema:
        return [schema["const"]]
    return list(schema["enum"]) if "enum" in schema else None


def string_limits(schema: Mapping[str, Any], where: str) -> tuple[int, int | None]:
    """The fewest and most characters of a string.

    Raises
    ------
    ValueError
        The schema asks for what cannot be held to where strings stand without quotes.
    """
    for keyword in UNKNOWN:
        if keyword in schema:
            raise ValueError(
                f"{where}: {keyword!r} cannot be enforced where a model writes strings without "
                f"quotes; expected {', '.join(LIMITS)} or enum"
            )
    return schema.get("minLength", 0), schema.get("maxLength")
