"""benchmarks/adapter_cost.py runs and prints what it says it measures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from places import BENCHMARKS


def test_adapter_cost(tiny_model_path: Path) -> None:
    script = str(BENCHMARKS / "adapter_cost.py")
    words = f"--threads 1 2 --rounds 2 --steps 2 --prompt 20 --profile {tiny_model_path}"
    done = subprocess.run(
        [sys.executable, script, *words.split()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ratio = r" +[+-][\d.]+%"
    line = rf"slmq +(\d) threads  (decode|prompt) +[\d.]+ tokens/s alone  median{ratio}"
    found = [re.match(line, printed) for printed in done.stdout.splitlines()]
    assert [m.groups() for m in found if m] == [
        (threads, kind) for threads in "12" for kind in ("decode", "prompt")
    ]
    for kind in ("linear", "all"):  # products with an adapter are items of the layer's own step
        cells = rf"^ +(\d+) rows  {kind} +([\d.]+) us +([\d.]+) us$"
        rows = re.findall(cells, done.stdout, re.MULTILINE)
        assert [number for number, _, _ in rows] == ["1", "20"] * 2
        assert all(float(without) > 0 < float(with_it) for _, without, with_it in rows)
