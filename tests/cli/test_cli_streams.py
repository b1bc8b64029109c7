"""Standard streams that are closed, or that cannot show every character."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from shell_command import last_line, slmq

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="closes descriptors as shells do")


def test_an_answer_needs_no_stderr(tiny_model_path: Path) -> None:
    run = slmq("run", tiny_model_path, "hi", "--max-tokens", "2", closed="2>&-")
    assert run.returncode == 0
    assert run.stdout == slmq("run", tiny_model_path, "hi", "--max-tokens", "2").stdout


@pytest.mark.parametrize(
    "args",
    [
        ("list",),
        ("show", "MODEL"),
        ("convert", "MODEL", "OUT"),
        ("perplexity", "MODEL", "--file", "TEXT", "--ctx", "64"),
        ("quantize", "MODEL", "OUT"),
    ],
    ids=lambda args: args[0],
)
def test_every_command_needs_no_stderr(
    args: tuple[str, ...], tiny_model_path: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words to read, again and again. " * 20)
    names = {"MODEL": tiny_model_path, "OUT": tmp_path / "out", "TEXT": text}
    given = [str(names.get(arg, arg)) for arg in args]
    run = slmq(*given, closed="2>&-")
    assert run.returncode == slmq_again(given, tmp_path)


def slmq_again(args: list[str], tmp_path: Path) -> int:
    """The code of the same command with its stderr."""
    fresh = [arg.replace(str(tmp_path / "out"), str(tmp_path / "again")) for arg in args]
    return slmq(*fresh).returncode


@pytest.mark.parametrize(
    ("args", "closed", "words"),
    [
        (
            ("run", "MODEL", "hi", "--max-tokens", "2"),
            ">&-",
            "cannot write to stdout: it is closed",
        ),
        (("show", "MODEL", "--json"), ">&-", "cannot write to stdout: it is closed"),
        (("list", "--catalogue"), ">&-", "cannot write to stdout: it is closed"),
        (("run", "MODEL", "-", "--max-tokens", "2"), "<&-", "cannot read stdin: it is closed"),
        (("chat", "MODEL", "--max-tokens", "2"), "<&-", "cannot read stdin: it is closed"),
        (("--version",), ">&-", "cannot write to stdout: it is closed"),
    ],
    ids=["run", "show", "list", "prompt", "chat", "version"],
)
def test_a_stream_that_is_needed_is_missed_in_one_line(
    args: tuple[str, ...], closed: str, words: str, tiny_model_path: Path
) -> None:
    run = slmq(*[str(tiny_model_path) if arg == "MODEL" else arg for arg in args], closed=closed)
    assert run.returncode == 1
    assert last_line(run) == f"slmq: {words}"
    assert "Traceback" not in run.stderr.decode()


def test_all_three_closed_at_once(tiny_model_path: Path, tmp_path: Path) -> None:
    """No file that is opened takes the place of a stream: the model's would be written to."""
    before = (tiny_model_path / "model.safetensors").read_bytes()
    run = slmq("convert", tiny_model_path, tmp_path / "out", closed="<&- >&- 2>&-")
    assert run.returncode == 1  # the folder's name cannot be printed
    assert (tiny_model_path / "model.safetensors").read_bytes() == before


# Encodings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_json_loses_no_character(encoding: str, tiny_model_path: Path) -> None:
    """Half of a character is U+FFFD, which neither ASCII nor Windows' code pages have."""
    token = byte_tokenizer().encode("é").ids[0]
    args = ("run", tiny_model_path, "x", "--raw", "--json", "--max-tokens", "1")
    run = slmq(*args, "--logit-bias", f"{token}=1000", env={"PYTHONIOENCODING": encoding})
    found: dict[str, Any] = json.loads(run.stdout.decode(encoding))
    assert found["tokens"] == [token]
    assert found["text"] == "\N{REPLACEMENT CHARACTER}"


def test_a_prompt_is_utf8_in_the_plainest_locale(tiny_model_path: Path) -> None:
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    args = ("run", tiny_model_path, "déjà vu 猫", "--max-tokens", "2", "--json")
    plain = slmq(*args, env=env)
    assert plain.returncode == 0, plain.stderr
    assert (
        json.loads(plain.stdout)["prompt_tokens"] == json.loads(slmq(*args).stdout)["prompt_tokens"]
    )


def test_a_mark_of_byte_order_is_no_part_of_a_prompt(tiny_model_path: Path) -> None:
    args = ("run", tiny_model_path, "-", "--max-tokens", "2", "--json")
    marked = slmq(*args, given=b"\xef\xbb\xbfhello\n")
    assert (
        json.loads(marked.stdout)["prompt_tokens"]
        == json.loads(slmq(*args, given=b"hello").stdout)["prompt_tokens"]
    )
