"""The programs in benchmarks/ as modules, for tests that run them on a small model."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from slmq import shapes

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = shapes.Shape(
    vocab=300,
    hidden=96,
    inner=160,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=24,
    tied=False,
    positions=400,
)

needs_programs = pytest.mark.skipif(not FOLDER.is_dir(), reason="reads the source tree")


def load_program(name: str, monkeypatch: pytest.MonkeyPatch, positions: int) -> ModuleType:
    """The module of benchmarks/`name`.py, for this test; `small` is the only shape it knows."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(shapes, "SHAPES", {"small": replace(SMALL, positions=positions)})
    return module
