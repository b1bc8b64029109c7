"""benchmarks/long_context.py on a small model: what it counts; it leaves contexts alone."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from programs import load_program, needs_programs

from slmq.engine.opening import record_plan
from slmq.engine.options import LoadOptions
from slmq.speed import bench as b

pytestmark = needs_programs


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, on a small shape and with a short probe."""
    module = load_program("long_context", monkeypatch, positions=400)
    monkeypatch.setattr(module, "SHAPE", "small")
    monkeypatch.setattr(module, "PROBE_BYTES", 1 << 20)
    return module


def test_a_line_for_each_cache_and_number_of_threads(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--positions", "390", "--short", "20", "--steps", "1", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["long_context.py", *options])
    program.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    expected = [[kv, threads] for kv in ("f16", "int8", "int4") for threads in ("1", "2")]
    assert [line[:2] for line in lines] == expected
    assert all(len(line) == 10 for line in lines)


def test_bytes_are_those_of_the_cache(program: ModuleType) -> None:
    """2 layers x 2 KV heads x (24 + 32) channels of a position, keys unpadded, two bytes each."""
    plan = record_plan(b.load_shape("small", "q4g32a").weights, LoadOptions(n_threads=1))
    context = program.fill(plan, 300)
    (found,) = program.measure(plan, context, 100, 1, 1)
    more = 200 * 2 * 2 * (24 + 32) * 2
    assert found.attention * (found.long_s - found.short_s) == pytest.approx(more)
    assert context.length == 300
