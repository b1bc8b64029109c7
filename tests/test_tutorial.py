"""Every block of docs/tutorial.md runs as it stands, on a tiny model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from places import ROOT
from typer.testing import CliRunner

from slmq.cli.app import app

PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    """Language and text of every block of the page."""
    return BLOCK.findall(PAGE.read_text("utf-8"))


@pytest.mark.skipif(not PAGE.is_file(), reason="reads the source tree")
def test_the_tutorial_runs(
    longer_model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # a folder of this name comes before the catalogue's model
    (tmp_path / "smollm2-135m-instruct").symlink_to(longer_model_path)
    for name in ("some", "other"):
        text = f"An {name} llama sat on a hill, and the sun was red. " * 40
        (tmp_path / f"{name}-text.txt").write_text(text, "utf-8")
    said: list[str] = []
    for language, text in blocks():
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            said.append(capsys.readouterr().out)
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "slmq"
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, (line, done.output)
            said.append(done.stdout)
    assert "smollm2-int8 has 8.5 bits per weight" in said[0]
    eight = (tmp_path / name / "model.safetensors" for name in ("smollm2-int8", "smollm2-8bit"))
    first, second = (path.read_bytes() for path in eight)
    assert first == second  # Python and the command write the same folder
    assert "same most likely token" in said[4]
    stored = safetensors.numpy.load_file(tmp_path / "smollm2-float16" / "model.safetensors")
    assert {values.dtype for values in stored.values()} == {np.dtype(np.float16)}


def test_it_takes_ten_lines_and_four_commands() -> None:
    (python, program), (shell, commands) = blocks()[:2]
    assert (python, shell) == ("python", "sh")
    assert len([line for line in program.splitlines() if line.strip()]) <= 10
    assert len(commands.splitlines()) == 4
