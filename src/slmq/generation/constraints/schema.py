"""JSON schemas before they are compiled: what is too large, endless, or cannot be enforced.

The compiler refuses every keyword that it does not enforce. What is added here are limits (it takes
minutes for thousands of properties), places for its errors, and schemas that nothing fulfils.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from slmq.errors import ConstraintError, printable
from slmq.generation.constraints.joined import check_joined
from slmq.generation.constraints.regexes import check_regex

__all__ = ["JSON_STYLE", "place_of", "prepared"]

# White space is that of `json.dumps`: a model that may write any amount may write it for ever.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
MOST_BYTES = 1 << 18
MOST_PROPERTIES = 500  # of one object; compiling takes time with their square
MOST_PROPERTIES_IN_ALL = 4000
MOST_DEPTH = 64
MOST_STEPS = 20_000  # of the search for an end
VALUES = {"const", "enum", "default", "examples"}  # keywords whose values are no schemas
REFERENCE = "$ref"

Schema = dict[str, Any] | bool


def prepared(schema: object) -> dict[str, Any]:
    """A copy of a schema as the compiler wants it; see `schema_grammar` for the errors."""
    if not isinstance(schema, (Mapping, bool)):
        raise ConstraintError(
            f"schema: expected a JSON object or a type, got {type(schema).__name__}"
        )
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConstraintError(f"schema: expected JSON values only; {reason}") from None
    if len(text) > MOST_BYTES:
        raise ConstraintError(
            f"schema: expected at most {MOST_BYTES} characters of JSON, got {len(text)}"
        )
    if schema is False:
        raise ConstraintError("schema: nothing fulfils it: it is false")
    copy = {} if schema is True else json.loads(text, parse_float=_number)
    _check(copy)
    if not _ends(copy, copy, set(), [MOST_STEPS]):
        raise ConstraintError("schema: nothing fulfils it: its references never come to an end")
    check_joined(copy, lambda reference: _target(copy, reference))
    copy["x-guidance"] = JSON_STYLE
    return copy


def place_of(schema: Mapping[str, Any], keyword: str) -> str:
    """Where a keyword stands first, as a JSON pointer."""
    for place, found in _objects(schema, "", 0):
        if keyword in found:
            return f"{place}/{keyword}"
    return f"/{keyword}"


def _number(text: str) -> float | int:
    """A number of JSON, where 2.0 is an integer."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _objects(value: Any, place: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object that may be a schema, with its place."""
    if depth > MOST_DEPTH:
        raise ConstraintError(
            f"schema: expected at most {MOST_DEPTH} levels, {printable(place, 80)} lies deeper"
        )
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _objects(item, f"{place}/{i}", depth + 1)
    elif isinstance(value, dict):
        yield place, value
        for key, item in value.items():
            if key not in VALUES or place.endswith("/properties"):
                yield from _objects(item, f"{place}/{key}", depth + 1)


def _check(schema: dict[str, Any]) -> None:
    total = 0
    for place, found in _objects(schema, "", 0):
        shown = printable(place, 120) or "its root"
        if place and "$id" in found and REFERENCE in found:  # drafts disagree what that means
            raise ConstraintError(f"schema: {shown} has $id beside $ref; leave $id out")
        pattern = found.get("pattern")
        if isinstance(pattern, str):
            check_regex(f"schema: pattern at {shown}", pattern)
        properties = found.get("properties")
        count = len(properties) if isinstance(properties, dict) else 0
        total += count
        if count > MOST_PROPERTIES or total > MOST_PROPERTIES_IN_ALL:
            raise ConstraintError(
                f"schema: expected at most {MOST_PROPERTIES} properties of an object and "
                f"{MOST_PROPERTIES_IN_ALL} in all, got {count} at {shown}"
            )


def _ends(schema: Any, root: dict[str, Any], above: set[str], steps: list[int]) -> bool:
    """Whether something finite may fulfil a schema: no reference that must be taken leads back."""
    steps[0] -= 1
    if not isinstance(schema, dict) or steps[0] < 0:
        return True

    def all_end(items: Any) -> bool:
        return all(_ends(item, root, above, steps) for item in items)

    reference = schema.get(REFERENCE)
    if isinstance(reference, str):
        if reference in above:
            return False
        if not _ends(_target(root, reference), root, above | {reference}, steps):
            return False
    every, required = schema.get("allOf"), schema.get("required")
    if isinstance(every, list) and not all_end(every):
        return False
    properties = schema.get("properties")
    if isinstance(properties, dict) and isinstance(required, list):
        needed = [properties[n] for n in required if isinstance(n, str) and n in properties]
        if _may_be(schema, "object") and not all_end(needed):
            return False
    least = schema.get("minItems")
    if isinstance(least, int) and least > 0 and _may_be(schema, "array"):
        first = schema.get("prefixItems")
        first = first[:least] if isinstance(first, list) else []
        rest = [schema["items"]] if len(first) < least and "items" in schema else []
        if not all_end([*first, *rest]):
            return False
    for name in ("anyOf", "oneOf"):
        some = schema.get(name)
        if (
            isinstance(some, list)
            and some
            and not any(_ends(item, root, above, steps) for item in some)
        ):
            return False
    return True


def _may_be(schema: dict[str, Any], kind: str) -> bool:
    """Whether values are of this type and no other."""
    return schema.get("type") in (kind, [kind])


def _target(root: dict[str, Any], reference: str) -> Any:
    """What a reference of the form #/a/b leads to; None if it is of another form."""
    if not re.match(r"#(/|$)", reference):
        return None
    found: Any = root
    for part in reference.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict):
            found = found.get(name)
        else:
            return None
    return found
