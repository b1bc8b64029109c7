"""benchmarks/eval_reference.py: a tiny model in slmq and in transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import load_program, needs_programs

pytestmark = needs_programs


@pytest.mark.parametrize("task", ["choices", "lambada"])
def test_both_agree_on_a_model_in_floats(
    tiny_model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    task: str,
) -> None:
    pytest.importorskip("torch", reason="needs torch, which no extra of slmq brings")
    pytest.importorskip("transformers", reason="needs transformers, which no extra of slmq brings")
    program = load_program("eval_reference", monkeypatch, 64)
    rows = {
        "choices": {"question": "Who is it?", "options": ["me", "a cat", "y"], "answer": 1},
        "lambada": {"context": "The cat sat on the", "continuation": "mat"},
    }
    file = tmp_path / "items.jsonl"
    file.write_text(f"{json.dumps(rows[task])}\n" * 3, "utf-8")
    folder = str(tiny_model_path)
    arguments = [folder, folder, "--task", task, "--file", str(file), "--shots", "1"]
    assert program.main(arguments) == 0
    shown = capsys.readouterr().out
    assert f"{task}, 2 items, 1-shot" in shown
    assert "items that differ: 0" in shown
    gap = float(shown.split("differ by ")[1].split(",")[0])
    assert gap <= 0.01  # the cache is float16
