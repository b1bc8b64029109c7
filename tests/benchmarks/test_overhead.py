"""benchmarks/overhead.py and neighbour.py: they run and print what they say they measure."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import BENCHMARKS


def run(script: str, *arguments: object) -> list[str]:
    """Lines that a benchmark prints."""
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_overhead(tiny_model_path: Path) -> None:
    lines = run("overhead.py", tiny_model_path, "--threads", 1, 2, "--steps", 3, "--rounds", 3)
    assert [line.split()[0] for line in lines] == ["threads", "1", "2"]
    for line in lines[1:]:
        step, overhead = (float(cell) for cell in line.split()[1:3])
        assert step > 0
        assert overhead > 0


def test_overhead_of_answers(tiny_model_path: Path) -> None:
    words = ("--threads", 1, "--steps", 3, "--rounds", 3, "--answers", 3)
    header, line = run("overhead.py", tiny_model_path, *words)
    assert header.endswith("beside bare runs")
    _, step, overhead, share, _, _, beside = (float(cell.strip("%")) for cell in line.split())
    assert 0 < beside < share
    assert share == pytest.approx(100 * overhead / step, rel=0.02)


def test_neighbour(tiny_model_path: Path) -> None:
    lines = run("neighbour.py", tiny_model_path, "--seconds", 0.1, "--rounds", 2)
    assert len(lines) == 3
    for line in lines[:2]:
        match = re.fullmatch(r"quiet ([\d.]+)  busy ([\d.]+) tokens/s  ratio ([\d.]+)", line)
        assert match is not None, line
        quiet, busy, ratio = map(float, match.groups())
        assert abs(busy / quiet - ratio) < 0.02
    assert re.fullmatch(r"median ratio [\d.]+ \([\d.]+ to [\d.]+\), 2 threads", lines[2])
