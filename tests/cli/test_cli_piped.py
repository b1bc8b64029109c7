"""Text that is piped into `slmq run` belongs to the prompt."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from terminal import command
from typer.testing import CliRunner

import slmq
from slmq.cli.app import app

RAW = ["--raw", "--max-tokens", "8", "--ignore-eos"]


@pytest.fixture(scope="module")
def wanted(tiny_model_path: Path) -> dict[str, str]:
    """What is answered to some prompts."""
    with slmq.load(tiny_model_path) as m:
        prompts = ("Sum up:", "a\n\u00fc", "Sum up:\n\na\n\u00fc")
        return {p: m.generate(p, max_tokens=8, ignore_eos=True).text + "\n" for p in prompts}


def test_it_follows_the_argument(tiny_model_path: Path, wanted: dict[str, str]) -> None:
    for arguments, text, prompt in (
        (["Sum up:"], "a\n\u00fc\n", "Sum up:\n\na\n\u00fc"),
        (["Sum up:"], "", "Sum up:"),
        ([], "a\n\u00fc", "a\n\u00fc"),
        (["-"], "a\n\u00fc", "a\n\u00fc"),
    ):
        words = ["run", str(tiny_model_path), *arguments, *RAW]
        found = CliRunner().invoke(app, words, input=text.encode())
        assert found.stdout == wanted[prompt]
        assert found.stderr == ""


def test_files_and_pipes_are_read(
    tiny_model_path: Path, wanted: dict[str, str], tmp_path: Path
) -> None:
    words = command("run", tiny_model_path, "Sum up:", *RAW)
    file = tmp_path / "text"
    file.write_text("a\n\u00fc\n", "utf-8")
    with file.open("rb") as stdin:
        done = subprocess.run(words, stdin=stdin, capture_output=True, check=True)
    assert done.stdout.decode() == wanted["Sum up:\n\na\n\u00fc"]
    done = subprocess.run(words, input=file.read_bytes(), capture_output=True, check=True)
    assert done.stdout.decode() == wanted["Sum up:\n\na\n\u00fc"]


def test_nobody_waits_for_what_is_not_there(tiny_model_path: Path, wanted: dict[str, str]) -> None:
    """Cron, services and ``2>&-``: /dev/null and a closed stdin are no text."""
    words = command("run", tiny_model_path, "Sum up:", *RAW)
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert done.stdout.decode() == wanted["Sum up:"]
    shell = ["sh", "-c", 'exec "$@" <&-', "sh", *words]
    done = subprocess.run(shell, capture_output=True, check=True)
    assert done.stdout.decode() == wanted["Sum up:"]


def test_a_pipe_that_nobody_fills_is_explained(tiny_model_path: Path) -> None:
    reading, writing = os.pipe()
    words = command("run", tiny_model_path, "Sum up:", *RAW)
    process = subprocess.Popen(words, stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.close(reading)
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
    finally:
        os.close(writing)
    assert b"waiting for text from stdin; </dev/null leaves it out" in said
    process.communicate(timeout=60)
    assert process.returncode == 0
