"""Scripts that measure the scheduler: they run and print what they say they measure."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import BENCHMARKS

if not BENCHMARKS.is_dir():
    pytest.skip("reads the source tree, which is not here", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import random_gguf

SMALL = random_gguf.Shape(
    vocab=300,
    hidden=96,
    inner=160,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=24,
    tied=False,
    positions=512,
)


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serving") / "small.gguf"
    return random_gguf.write_random_gguf(path, SMALL, "q4_0")


def run(script: str, *words: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_concurrency(small_gguf: Path) -> None:
    """slmq is its own peer here."""
    words = ("--at-once", "1,3", "--rounds", 1, "--prompt", 9, "--gen", 5, "--threads", 1)
    lines = run("concurrency.py", "--model", small_gguf, "--peer", "slmq", *words)
    rows = [line for line in lines if re.match(r"\| \d", line)]
    assert [row.split("|")[1].strip() for row in rows] == ["1", "3"]
    for row in rows:
        assert re.search(r"\d+ \(\d\.\d\) \| \d+ \(\d\.\d\) \| \d+\.\d\d", row)
    assert float(lines[-1].removeprefix("Scheduler by bare runs of 8 rows: ")) > 0


def test_newcomer(small_gguf: Path) -> None:
    _, line = run("newcomer.py", small_gguf, "--rounds", 1, "--long", 300, "--threads", 1)
    name, p99, longest, first, alone, ratio = line.split()
    assert name == "slmq"
    assert 0 < float(p99) <= float(longest)
    assert float(ratio) == pytest.approx(float(first) / float(alone), rel=0.5)


def test_lookup(tiny_model_path: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("short\n" + "A sentence about the sea. " * 16 + "\n", "utf-8")
    words = ("--texts", 1, "--rounds", 1, "--threads", 1)
    _, *lines = run("lookup.py", tiny_model_path, text, *words)
    lines = [line for line in lines if "summaries and extracts copy" not in line]
    assert [line.split()[0] for line in lines] == ["copy", "extract", "summary", "story"]
    assert all(float(line.split()[3]) > 0 for line in lines)
