"""`slmq chat` on a terminal: Ctrl-C, pasting, messages of several lines, a full context."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from terminal import Terminal, command
from typer.testing import CliRunner, Result

import slmq
from slmq.cli.app import app
from slmq.cli.fitting import BETTER, better_model, memory_bytes
from slmq.hub import catalogue
from slmq.machine import memory

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and terminals of POSIX")
# Without the module readline, as on systems that have none: an empty one is found first.
NO_READLINE = "import sys; sys.modules['readline'] = None; from slmq.cli import main; main()"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMQ_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def talk(model: Path, stdin: str, *flags: object) -> Result:
    words = [str(word) for word in ("chat", model, "--max-tokens", 8, *flags)]
    return CliRunner().invoke(app, words, input=stdin)


@POSIX
def test_chat_on_a_terminal_survives_ctrl_c_and_leaves_on_ctrl_d(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    flags = ["--max-tokens", -1, "--n-ctx", 1 << 20, "--threads", 1]
    flags += [word for token in (256, 257, 258) for word in ("--logit-bias", f"{token}=-inf")]
    environment = {"SLMQ_CACHE_DIR": str(tmp_path / "chat"), "TERM": "dumb"}
    terminal = Terminal(command("chat", tiny_model_path, *flags), environment=environment)
    at = terminal.until(b">>> ")
    terminal.type(b"half a line")
    at = terminal.until(b"half a line", after=at)
    at = terminal.interrupt(b"press Ctrl-D or type /exit to quit", after=at)  # between answers
    at = terminal.until(b">>> ", after=at)
    terminal.type(b"Hi\n")  # with no end token, an answer of a million tokens
    at = terminal.until(b"Hi\r\n", after=at)
    terminal.read(200)
    terminal.type(b"\x03")  # Ctrl-C stops the answer
    at = terminal.until(b"(stopped)", after=at)
    at = terminal.until(b">>> ", after=at)
    terminal.type(b"/undo\n")
    at = terminal.until(b"forgot the last turn", after=at)
    terminal.until(b">>> ", after=at)
    terminal.type(b"\x04")  # Ctrl-D
    assert terminal.close() == 0


def programs(model: Path) -> Iterator[list[str]]:
    """The chat with the line editor of this Python, and without any."""
    flags = ("chat", model, "--max-tokens", 8, "--stats", "--threads", 1)
    yield command(*flags)
    yield [sys.executable, "-c", NO_READLINE, *map(str, flags)]


@POSIX
@pytest.mark.parametrize("which", [0, 1], ids=["editor", "no editor"])
def test_what_is_pasted_is_one_message(tiny_model_path: Path, tmp_path: Path, which: int) -> None:
    text = "First line of a poem\nand its second\nand the last"
    with slmq.load(tiny_model_path) as m:
        alone = m.chat().send(text, max_tokens=0).prompt_tokens
    environment = {"SLMQ_CACHE_DIR": str(tmp_path / "chat"), "TERM": "xterm"}
    terminal = Terminal(list(programs(tiny_model_path))[which], environment=environment)
    at = terminal.until(b">>> ")
    brackets = b"\x1b[?2004h" in terminal.seen  # the editor asked for them
    pasted = text.encode().replace(b"\n", b"\r")
    terminal.type(b"\x1b[200~" + pasted + b"\x1b[201~\r" if brackets else pasted + b"\r")
    at = terminal.until(b"tokens, ", after=at)
    terminal.until(b">>> ", after=at)
    terminal.type(b"\x04")
    assert terminal.close() == 0
    assert re.findall(rb"prompt (\d+) tokens", terminal.seen) == [b"%d" % alone]


def test_quotes_make_a_message_of_several_lines(tiny_model_path: Path) -> None:
    with slmq.load(tiny_model_path) as m:
        wanted = m.chat().send("one\n\n  two", max_tokens=8).text + "\n"
    for text in (
        '"""one\n\n  two"""\n',
        '"""\none\n\n  two\n"""\n',
        '"""one\n\n  two',  # the end of the input ends it, too
    ):
        assert talk(tiny_model_path, text).stdout == wanted
    assert '"""' in talk(tiny_model_path, "/help\n").stderr


def test_a_full_context_goes_on_without_the_oldest_turns(tiny_model_path: Path) -> None:
    questions = [f"Question {i}?" for i in range(8)]
    found = talk(tiny_model_path, "".join(f"{q}\n" for q in questions), "--system", "S")
    assert found.exit_code == 0
    assert len(found.stdout.splitlines()) >= len(questions)
    assert "slmq: " not in found.stderr
    assert "forgot the oldest turn: the context of 128 tokens is full" in found.stderr
    # What remains is exactly a conversation that never had the others.
    with slmq.load(tiny_model_path) as m:
        chat = m.chat("S", forget=True, max_tokens=8)
        for question in questions:
            answer = chat.send(question)
        assert chat.forgotten == found.stderr.count("forgot") > 0
        assert chat.messages[0] == {"role": "system", "content": "S"}
        again = m.generate(chat.messages[:-1], max_tokens=8)
        assert again.tokens == answer.tokens


def test_an_answer_that_the_usual_limit_cut_says_so(tiny_model_path: Path) -> None:
    words = ["run", str(tiny_model_path), "Hi", "--raw", "--ignore-eos"]
    cut = CliRunner().invoke(app, words)
    assert "(cut after 126 tokens; --max-tokens -1 sets no limit)" in cut.stderr
    assert CliRunner().invoke(app, [*words, "--max-tokens", "4"]).stderr == ""


def test_a_very_small_model_names_a_better_one(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = catalogue()
    needs: dict[str, Any] = {name: memory_bytes(entries[name]) for name in BETTER}
    assert list(needs.values()) == sorted(needs.values(), reverse=True)
    with slmq.load(tiny_model_path) as m:
        for name, needed in needs.items():
            monkeypatch.setattr(memory, "available_memory_bytes", lambda has=needed: has)
            said = better_model(m)
            assert said is not None
            assert said.startswith(f"slmq chat {name} --format int4 (")
        monkeypatch.setattr(memory, "available_memory_bytes", lambda: 10**8)
        assert better_model(m) is None


@POSIX
def test_run_without_a_prompt_is_a_chat_in_a_terminal(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    environment = {"SLMQ_CACHE_DIR": str(tmp_path / "chat"), "TERM": "dumb"}
    terminal = Terminal(command("run", tiny_model_path), environment=environment)
    terminal.until(b"type /help for commands")
    terminal.until(b">>> ")
    terminal.type(b"\x04")
    assert terminal.close() == 0
    done = subprocess.run(
        command("run", tiny_model_path), stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"slmq: the prompt is empty; give it as an argument, or pipe it in" in done.stderr
