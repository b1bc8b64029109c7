"""The tree of errors: what a caller can tell apart, under names that stay."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest

import slmq
from slmq import errors

CLASSES = {name: kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type)}
PACKAGE = Path(slmq.__file__).parent


def test_every_error_is_a_public_name_under_one_root() -> None:
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert CLASSES.keys() == defined
    for name, kind in CLASSES.items():
        assert getattr(slmq, name) is kind
        assert name in slmq.__all__
        assert issubclass(kind, slmq.Error)


def test_errors_that_are_also_value_errors() -> None:
    """What is closed, as of Python's files; a constraint that is wrong; a value that is not there.

    The last two come from an argument and from a result, as Python's own do.
    """
    assert issubclass(slmq.ClosedError, ValueError)
    others = {name for name, kind in CLASSES.items() if issubclass(kind, ValueError)}
    assert others == {"ClosedError", "ConstraintError", "IncompleteError"}


@pytest.mark.parametrize("name", CLASSES)
def test_errors_pass_between_processes(name: str) -> None:
    error = CLASSES[name]("what was expected")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == "what was expected"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_nothing_raises_the_root_itself(path: Path) -> None:
    calls = [
        node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)
    ]
    bare = [
        call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Error"
    ]
    assert bare == []
