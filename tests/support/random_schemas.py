"""Random JSON schemas, as hypothesis makes them: of everything that constraints enforce."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "name", "full name", "é", "x1", "kind", '"q"', "list"])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-99, 99), st.text('ab é"\\\n0', max_size=4)
)
Schema = dict[str, Any]


def leaves() -> st.SearchStrategy[Schema]:
    """Schemas of values that have no parts, and are short."""
    low = st.integers(-50, 50)
    return st.one_of(
        st.just({"type": "null"}),
        st.just({"type": "boolean"}),
        st.lists(SCALARS, min_size=1, max_size=4, unique_by=repr).map(lambda v: {"enum": v}),
        SCALARS.map(lambda value: {"const": value}),
        st.tuples(low, st.integers(0, 60)).map(
            lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
        ),
        st.tuples(low, st.integers(1, 60)).map(
            lambda pair: {
                "type": "number",
                "exclusiveMinimum": pair[0],
                "maximum": pair[0] + pair[1],
                "multipleOf": 0.25,
            }
        ),
        st.tuples(st.integers(0, 3), st.integers(0, 5)).map(
            lambda pair: {"type": "string", "minLength": pair[0], "maxLength": sum(pair)}
        ),
        st.sampled_from(
            [
                {"type": "string", "pattern": "^[a-f]{2,4}-[0-9]+x?$", "maxLength": 9},
                {"type": "string", "format": "date"},
                {"type": "string", "format": "ipv4"},
                {"type": "string", "format": "uuid"},
                {"type": ["boolean", "null"]},
            ]
        ),
    )


@st.composite
def objects(draw: st.DrawFn, parts: st.SearchStrategy[Schema]) -> Schema:
    """Objects with named properties, some of which may be left out."""
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    required = [name for name in names if draw(st.booleans())]
    return {
        "type": "object",
        "properties": {name: draw(parts) for name in names},
        "required": required,
        "additionalProperties": False,
    }


@st.composite
def arrays(draw: st.DrawFn, parts: st.SearchStrategy[Schema]) -> Schema:
    """Short arrays: of one kind, or of a kind for each place."""
    if draw(st.booleans()):
        first = draw(st.lists(parts, min_size=1, max_size=3))
        return {
            "type": "array",
            "prefixItems": first,
            "items": False,
            "minItems": draw(st.integers(0, len(first))),
        }
    low = draw(st.integers(0, 2))
    high = low + draw(st.integers(0, 2))
    return {"type": "array", "items": draw(parts), "minItems": low, "maxItems": high}


def schemas() -> st.SearchStrategy[Schema]:
    """Schemas whose values end."""
    return st.recursive(
        leaves(),
        lambda parts: st.one_of(
            objects(parts),
            arrays(parts),
            st.lists(parts, min_size=1, max_size=3).map(lambda some: {"anyOf": some}),
        ),
        max_leaves=6,
    )
