"""Answers of a certain form on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from shell_command import last_line, slmq

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="runs in a shell of POSIX")

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}


def test_run_takes_every_form(tiny_model_path: Path, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.gbnf"
    schema.write_text(json.dumps({**SCHEMA, "additionalProperties": False}), "utf-8")
    grammar.write_text('root ::= "g" [0-9]\n', "utf-8")
    run = slmq("run", tiny_model_path, "hi", "--schema", schema)
    assert json.loads(run.stdout)["a"] in ("x", "y")
    assert slmq("run", tiny_model_path, "hi", "--regex", "r[0-9]").stdout[:1] == b"r"
    assert slmq("run", tiny_model_path, "hi", "--grammar", grammar).stdout[:1] == b"g"
    chosen = slmq("run", tiny_model_path, "hi", "--choices", "yes, no").stdout
    assert chosen in (b"yes\n", b"no\n")
    one = slmq("run", tiny_model_path, "hi", "--choices", "a,b", "--choices", "a,c").stdout
    assert one in (b"a,b\n", b"a,c\n")
    shown = json.loads(slmq("run", tiny_model_path, "hi", "--choices", "yes,no", "--json").stdout)
    assert shown["complete"] is True
    assert "read" not in shown


def test_what_is_left_out_is_said(tiny_model_path: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "uniqueItems": true, "maxItems": 1}', "utf-8")
    refused = slmq("run", tiny_model_path, "hi", "--schema", schema)
    assert refused.returncode == 1
    assert "cannot enforce uniqueItems (at /uniqueItems)" in last_line(refused)
    taken = slmq("run", tiny_model_path, "hi", "--schema", schema, "--lenient", "--max-tokens", 9)
    assert taken.returncode == 0
    assert "not enforced of the schema: uniqueItems" in taken.stderr.decode()


def test_files_that_cannot_be_read_are_named(tiny_model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("{", "utf-8")
    for given, message in [
        (("--schema", tmp_path / "absent"), "--schema: cannot read"),
        (("--schema", tmp_path / "no.json"), "--schema: "),
        (("--regex", "(a"), "regex: "),
        (("--regex", "a", "--json-object"), "--regex: expected one constraint, got also json"),
    ]:
        run = slmq("run", tiny_model_path, "hi", *given)
        assert run.returncode == 1
        assert message in last_line(run)
