"""benchmarks/train.py runs, step by step, and prints what it says it measures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from places import BENCHMARKS


def test_steps_of_slmq_are_timed_and_its_forecast_is_held_against_them(
    longer_model_path: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the river runs to the sea. " * 200, "utf-8")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "train.py"), str(longer_model_path), "--text", str(text),
         "--batch", "1", "--steps", "3", "--rounds", "2", "--threads", "1"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    speed, loss = re.findall(r"^slmq +([\d.]+) +\d+ +([\d.]+)$", done.stdout, re.MULTILINE)[0]
    assert float(speed) > 0 < float(loss)
    forecast = r"forecast [\d.]+ s, it took ([\d.]+) \([+-]\d+%\); forecast [\d.]+ MB"
    assert len(re.findall(forecast, done.stdout)) == 2
