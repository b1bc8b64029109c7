"""`slmq batch` as a process: killed, out of disk, interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from slmq.cli.app import app

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and limits of POSIX")
OPTIONS = ["--n-ctx", "2048", "--ignore-eos", "--temperature", "1"]
LINES = 150
# What a process runs first, to be killed when a file would grow beyond a size,
KILLED = """
import resource, signal
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
"""
# or interrupted when a file has its first line.
INTERRUPTED = """
import os, pathlib, signal, threading, time
def interrupt(part=pathlib.Path({part!r})):
    while not part.exists() or b"\\n" not in part.read_bytes():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMQ_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    lines = [
        {"custom_id": f"r{i}", "prompt": f"Text {i}", "max_tokens": 5 + 7 * i % 60}
        for i in range(LINES)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    return path


def arguments(source: Path, target: Path, model: Path) -> list[str]:
    return ["batch", str(source), str(target), "--model", str(model), *OPTIONS]


def in_process(source: Path, target: Path, model: Path) -> str:
    found = CliRunner().invoke(app, arguments(source, target, model))
    assert found.exit_code == 0, found.output
    assert found.stdout == ""
    return found.stderr


def started(source: Path, target: Path, model: Path, before: str = "") -> subprocess.Popen[str]:
    """A process of its own, which runs the code `before` first."""
    code = f"{before}\nfrom slmq.cli import main\nmain()"
    command = [sys.executable, "-c", code, *arguments(source, target, model)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_batch_answers_a_file(tiny_model_path: Path, tmp_path: Path, source: Path) -> None:
    target = tmp_path / "out.jsonl"
    assert in_process(source, target, tiny_model_path) == f"{target}: {LINES} lines\n"
    lines = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert [line["custom_id"] for line in lines] == [f"r{i}" for i in range(LINES)]
    again = in_process(source, target, tiny_model_path)
    assert again == f"{target}: {LINES} lines, {LINES} of them from an earlier run\n"


def test_batch_says_what_is_wrong(tiny_model_path: Path, tmp_path: Path, source: Path) -> None:
    target = tmp_path / "out.jsonl"
    source.write_text('{"prompt": "Hi"}\nnonsense\n', "utf-8")
    assert "2 lines; 1 of them failed" in in_process(source, target, tiny_model_path)
    found = CliRunner().invoke(app, arguments(tmp_path / "none", target, tiny_model_path))
    assert found.exit_code == 1
    assert "none: expected a file of requests" in found.stderr


def test_batch_tells_how_far_it_is_where_no_bar_can_be(
    tiny_model_path: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmq.cli.batch.TELL_S", 0.0)
    told = in_process(source, tmp_path / "out.jsonl", tiny_model_path).splitlines()
    assert [line.split(";")[0] for line in told[:-1]] == [
        f"{done} of {LINES} answers" for done in range(1, LINES + 1)
    ]
    assert told[LINES - 1].endswith("; about 0 min left")


def test_batch_reads_csv(tiny_model_path: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.jsonl"
    source.write_text("name,question\na,Why?\nb,How?\n", "utf-8")
    command = [*arguments(source, target, tiny_model_path), "--column", "question", "--raw"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert len(target.read_text("utf-8").splitlines()) == 2


@POSIX
def test_batch_may_be_killed_at_any_moment(
    tiny_model_path: Path, tmp_path: Path, source: Path
) -> None:
    """By the system, at a byte of its own: whoever watches from outside may come too late."""
    whole, target = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    in_process(source, whole, tiny_model_path)
    for tenths in (1, 4, 8):
        room = whole.stat().st_size * tenths // 10
        process = started(source, target, tiny_model_path, KILLED.format(room=room))
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGXFSZ
        assert part.stat().st_size <= room
        assert not target.exists()
    assert "from an earlier run" in in_process(source, target, tiny_model_path)
    assert target.read_bytes() == whole.read_bytes()
    assert not part.exists()


@POSIX
def test_batch_on_a_full_disk(tiny_model_path: Path, tmp_path: Path, source: Path) -> None:
    whole, target = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    in_process(source, whole, tiny_model_path)
    room = whole.stat().st_size // 2
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))"
    process = started(source, target, tiny_model_path, limit)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"{part}: cannot be written" in message
    assert "finished answers are kept" in message
    assert part.read_bytes().endswith(b"\n")  # the torn line is cut off
    assert not target.exists()
    kept = part.read_bytes().count(b"\n")
    assert f"{kept} of them from an earlier run" in in_process(source, target, tiny_model_path)
    assert target.read_bytes() == whole.read_bytes()


@POSIX
def test_batch_is_interrupted(tiny_model_path: Path, tmp_path: Path, source: Path) -> None:
    # So many that the signal comes before the last answer, however late its thread wakes.
    lines = source.read_text("utf-8").splitlines()
    many = [line.replace('"r', f'"{n}r', 1) for n in range(10) for line in lines]
    source.write_text("\n".join(many) + "\n", "utf-8")
    target = tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    process = started(source, target, tiny_model_path, INTERRUPTED.format(part=str(part)))
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130
    warned, message = message.split("\n", 1)
    assert warned.startswith("n_ctx=2048: the model was made for 128 tokens")
    assert message == (
        f"{target}: interrupted; the same command goes on from the finished answers\n"
    )
    assert "from an earlier run" in in_process(source, target, tiny_model_path)
