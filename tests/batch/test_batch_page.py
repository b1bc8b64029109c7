"""docs/cookbook/batch.md: its Python runs as it stands, on the tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cookbook" / "batch.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="reads the page, which is not here")


def test_the_python_of_the_page_runs(
    tiny_model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    questions = '{"prompt": "Why?", "max_tokens": 3}\n{"prompt": "How?", "max_tokens": 3}\n'
    Path("questions.jsonl").write_text(questions, "utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    code = "\n".join(blocks).replace("smollm2-135m-instruct", tiny_model_path.as_posix())
    names: dict[str, object] = {}
    exec(code, names)
    shown = capsys.readouterr().out
    for seed in (7, 8, 9, 10):
        assert f"{seed} " in shown
    assert shown.endswith("2 0\n")
    answers = Path("answers.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["custom_id"] for line in answers] == ["line-1", "line-2"]
