"""Every block of docs/tutorial.md runs as it stands, on a tiny model."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
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
    pytest.importorskip("openai")
    monkeypatch.chdir(tmp_path)  # a folder of this name comes before the catalogue's model
    (tmp_path / "smollm2-135m-instruct").symlink_to(longer_model_path)
    for name in ("some", "other"):
        text = f"An {name} llama sat on a hill, and the sun was red. " * 40
        (tmp_path / f"{name}-text.txt").write_text(text, "utf-8")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.txt").write_text("The sun was red on the hill. " * 300, "utf-8")
    said: list[str] = []
    for language, text in blocks():
        if language == "console":
            command = text
            continue
        if language == "py":
            said.append(asked_of(command, text, capsys))
            continue
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            said.append(capsys.readouterr().out)
            continue
        for line in text.replace("\\\n", " ").splitlines():
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
    assert len(set(re.findall(r"perplexity (\S+)", said[5]))) == 3  # before, behind, and in int8
    again = (
        tmp_path / name / "adapter_model.safetensors" for name in ("wiki-adapter", "wiki-again")
    )
    assert len({path.read_bytes() for path in again}) == 1  # and train the same adapter
    base, _, tuned = said[9].partition("\nwiki ")
    assert base.removeprefix("smollm2-8bit ").strip() != tuned.strip() != ""
    stored = safetensors.numpy.load_file(tmp_path / "smollm2-float16" / "model.safetensors")
    assert {values.dtype for values in stored.values()} == {np.dtype(np.float16)}


def asked_of(command: str, program: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a program says that asks the server of a command; both stand so but for the port."""
    arguments = shlex.split(command)[1:]
    server = subprocess.Popen(
        [sys.executable, "-m", "slmq.cli", *arguments, "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "serving at" in line)
        url = line.split("serving at ")[1].strip()
        exec(compile(program.replace("http://127.0.0.1:8080", url), str(PAGE), "exec"), {})
        return capsys.readouterr().out
    finally:
        server.terminate()
        server.wait(timeout=60)


def test_it_takes_ten_lines_and_four_commands() -> None:
    (python, program), (shell, commands) = blocks()[:2]
    assert (python, shell) == ("python", "sh")
    assert len([line for line in program.splitlines() if line.strip()]) <= 10
    assert len(commands.splitlines()) == 4
