"""Schemas, regular expressions and grammars: what they accept, what is refused and why."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from schema_suite import BYTES, Verdict, accepts, run_suite

from slmq.errors import ConstraintError
from slmq.generation.constraints import (
    any_json,
    choice_grammar,
    lark_grammar,
    regex_grammar,
    schema_grammar,
)


@pytest.mark.parametrize("draft", ["draft2020-12", "draft7"])
def test_nothing_invalid_is_accepted(shared_data: Path, draft: str) -> None:
    """JSON-Schema-Test-Suite, byte by byte; docs/design/constraints.md has the table."""
    found = run_suite(shared_data / "json-schema" / draft)
    assert found.invalid_accepted == []
    assert found.taken > 150
    assert found.counts[Verdict.VALID_ACCEPTED] > 300
    assert found.counts[Verdict.INVALID_REFUSED] > 220
    # What is valid and refused: another order of properties, or another spelling.
    assert found.counts[Verdict.VALID_REFUSED] < 30
    page = Path(__file__).resolve().parents[3] / "docs" / "design" / "constraints.md"
    assert found.row(draft) in page.read_text("utf-8").splitlines()


def made(schema: Any, **options: bool) -> Any:
    return BYTES.compile(schema_grammar(schema, **options))


def test_white_space_is_bounded() -> None:
    person = made({"type": "object", "properties": {"a": {"type": "array"}}, "required": ["a"]})
    for text, wanted in [
        ('{"a": [1, {"b": 2}]}', True),
        ('{"a":[1]}', False),
        ('{ "a": [1]}', False),
        ('{"a": [1 ,2]}', False),
        ('{"a": []} ', False),
        ("[1]", False),
    ]:
        assert accepts(person, text.encode()) is wanted
    assert accepts(BYTES.compile(any_json()), b'{"x": [null, 1.5e3, "\xc3\xa9"]}')


def joined(count: int) -> dict[str, Any]:
    """A string that has to match so many patterns."""
    return {"type": "string", "allOf": [{"pattern": f"a.{{{i}}}b"} for i in range(count)]}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "uniqueItems": True}, r"uniqueItems \(at /uniqueItems\); lenient=True"),
        (
            {"properties": {"a": {"type": "object", "propertyNames": {"pattern": "x"}}}},
            r"propertyNames \(at /properties/a/propertyNames\)",
        ),
        ({"type": "string", "format": "iri"}, r"cannot enforce format: iri \(at /format\)"),
        ({"oneOf": [{"minimum": 2}, {"maximum": 3}]}, r"cannot enforce oneOf \(at /oneOf\)"),
        ({"$ref": "https://example.com/schema"}, "nothing is fetched, write it under"),
        ({"$ref": "#"}, "references never come to an end"),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}},
            "references never come to an end",
        ),
        (
            {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
            "references never come to an end",
        ),
        (
            {"type": "array", "minItems": 1, "items": {"anyOf": [{"$ref": "#"}]}},
            "references never come to an end",
        ),
        (False, "nothing fulfils it"),
        ({"type": "string", "pattern": "(a{1000}){1000}"}, "pattern at .*: repetitions .* 20000"),
        ({"type": "string", "pattern": "a(?=b)"}, "look-around"),
        ({"properties": {f"p{i}": {} for i in range(501)}}, "at most 500 properties"),
        ({"enum": ["x" * 100] * 100_000}, "at most 262144 characters of JSON, got 1040001[02]"),
        ({"const": float("nan")}, "expected JSON values only"),
        ({"const": {1, 2}}, "expected JSON values only"),
        ({"items": {"$ref": "#/$defs/a", "$id": "b"}}, r"has \$id beside \$ref"),
        (joined(8), "patterns that have to hold together, as of allOf, are too complex"),
        (joined(30), "at most 10 patterns that one value fulfils together, .* up to 30"),
        (
            {"$defs": {"a": joined(6)}, "allOf": [{"$ref": "#/$defs/a"}] * 2},
            "at most 10 patterns .* up to 12",
        ),
        ({"type": "integer", "multipleOf": 999_983}, "multipleOf: expected at most 10000"),
        ({"allOf": [{"multipleOf": n} for n in (97, 101, 103, 107)]}, "got 107972737"),
        ({"type": "strin"}, "strin"),
        ({"type": "object", "properties": 5}, "schema: "),
        ({"minLength": -1}, "minLength"),
    ],
)
def test_what_cannot_be_enforced_is_named(schema: Any, message: str) -> None:
    began_s = time.perf_counter()
    with pytest.raises(ConstraintError, match=message):
        made(schema)
    assert time.perf_counter() - began_s < 10  # milliseconds, where nobody else needs the machine


def test_recursion_that_ends_is_taken() -> None:
    tree = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "kids": {"type": "array", "items": {"$ref": "#"}},
        },
        "required": ["name", "kids"],
    }
    text = '{"name": "a", "kids": [{"name": "b", "kids": []}]}'
    assert accepts(made(tree), text.encode())
    chain = {"anyOf": [{"type": "null"}, {"type": "array", "minItems": 1, "items": {"$ref": "#"}}]}
    assert accepts(made(chain), b"[[null], null]")


@pytest.mark.parametrize("depth", [70, 100_000])
def test_depth_is_limited(depth: int) -> None:
    assert made(nested(40))
    with pytest.raises(ConstraintError, match=r"nested too deeply|at most 64 levels"):
        made(nested(depth))


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {"items": found}
    return found


def test_lenient_says_what_is_left_out() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "uniqueItems": True, "items": {"format": "iri"}}},
        "propertyNames": {"pattern": "a"},
        "oneOf": [{"required": ["a"]}, {"properties": {"a": {"maxItems": 1}}}],
    }
    with pytest.raises(ConstraintError):
        made(schema)
    found = made(schema, lenient=True)
    assert set(found.left_out) == {"uniqueItems", "format: iri", "propertyNames", "oneOf"}
    assert made({"type": "integer"}, lenient=True).left_out == ()


@pytest.mark.parametrize("regex", ["(a", "a{2000}{20}", "[z-a]", "(?<=a)b", r"\p{Nothing}", ""])
def test_wrong_regular_expressions(regex: str) -> None:
    with pytest.raises(ConstraintError, match="regex: "):
        BYTES.compile(regex_grammar(regex))


def test_regular_expressions_match_as_a_whole() -> None:
    found = BYTES.compile(regex_grammar(r"[a-f\d]{2}([\]{},]|é)+"))
    for text, wanted in [("a1]é", True), ("a1", False), ("xa1]", False), ("a1]x", False)]:
        assert accepts(found, text.encode()) is wanted


def test_both_kinds_of_grammars() -> None:
    lark = BYTES.compile(lark_grammar('start: "a" num ("," num)*\nnum: /[0-9]+/'))
    gbnf = BYTES.compile(lark_grammar('root ::= "a" num ("," num)*\nnum ::= [0-9]+'))
    for text, wanted in [("a1,22", True), ("a", False), ("a1,", False)]:
        assert accepts(lark, text.encode()) is accepts(gbnf, text.encode()) is wanted
    for wrong in ("start: foo", "root ::= [", 'start: "a', "((((" * 5000, "x" * 300_000, "\ud800"):
        with pytest.raises(ConstraintError, match="grammar: "):
            BYTES.compile(lark_grammar(wrong))


def test_grammars_hold_schemas_and_patterns_to_the_same_limits() -> None:
    """Behind %json white space is bounded, too; what stands in texts and comments is not meant."""
    found = BYTES.compile(
        lark_grammar(
            'start: "%json {" A b // & & & %json\nA: /[a&]+/ & /a+/\nb: %json {"items": {}}'
        )
    )
    assert accepts(found, b"%json {aa[1, 2]")
    assert not accepts(found, b"%json {aa[1,2]")
    both = " & ".join(f"/(.*)a.{{{i}}}b(.*)/" for i in range(30))
    for wrong, message in [
        (f"start: A\nA: {both}", "at most 8 times '&' between patterns, got 29"),
        ("start: /(a{1000}){1000}/", "repetitions"),
        ('start: %json {"multipleOf": 999983}', "multipleOf"),
        ('start: %json {"$ref": "http://x"}', "nothing is fetched"),
        ("start: %json {", "expected a JSON schema behind %json, got '{'"),
    ]:
        with pytest.raises(ConstraintError, match=message):
            BYTES.compile(lark_grammar(wrong))


def test_many_patterns_of_different_values_are_taken() -> None:
    some = {f"p{i}": {"type": "string", "pattern": f"^a{{{i}}}$"} for i in range(40)}
    assert made({"type": "object", "properties": some})
    assert made({"anyOf": [*some.values()]})
    assert made({"type": "number", "multipleOf": 0.01})
    assert made({"type": "integer", "multipleOf": 5_000_000})


def test_choices_are_texts_of_any_kind() -> None:
    texts = ['say "yes"', "no\\n", "\n", "日本", "no", "<|end|>", "a" * 500]
    found = BYTES.compile(choice_grammar(texts))
    for text in texts:
        assert accepts(found, text.encode())
    assert not accepts(found, b"n")
    with pytest.raises(ConstraintError, match="at most 10000"):
        choice_grammar(map(str, range(10_001)))


def test_compiled_grammars_are_kept() -> None:
    grammar = schema_grammar({"type": "integer"})
    assert BYTES.compile(grammar) is BYTES.compile(schema_grammar(json.loads('{"type":"integer"}')))
