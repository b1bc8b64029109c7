"""The programs in benchmarks/ as modules, for tests that run them on a small model."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
from places import BENCHMARKS
from small_shapes import small_shape

from slmq.speed import shapes

FOLDER = BENCHMARKS

needs_programs = pytest.mark.skipif(not FOLDER.is_dir(), reason="reads the source tree")


def load_program(name: str, monkeypatch: pytest.MonkeyPatch, positions: int) -> ModuleType:
    """The module of benchmarks/`name`.py, for this test; `small` is the only shape it knows."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(shapes, "SHAPES", {"small": small_shape(positions)})
    return module
