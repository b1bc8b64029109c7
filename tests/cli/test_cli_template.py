"""`--chat-template-kwargs`: variables of the chat template."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from shell_command import last_line, slmq

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="runs in a shell of POSIX")

OFF = '{"enable_thinking": false}'


@pytest.fixture
def model(tiny_model_path: Path, tmp_path: Path) -> Path:
    """The tiny model with a template that asks for a variable, as Qwen3's does."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if enable_thinking is defined and enable_thinking is false %}<no>{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_run_and_chat_pass_them_on(model: Path) -> None:
    args = ("--max-tokens", "1")
    plain = json.loads(slmq("run", model, "hi", *args, "--json").stdout)
    quiet = slmq("run", model, "hi", *args, "--json", "--chat-template-kwargs", OFF)
    assert json.loads(quiet.stdout)["prompt_tokens"] == plain["prompt_tokens"] + len("<no>")
    chat = slmq("chat", model, *args, "--stats", "--chat-template-kwargs", OFF, given=b"hi\n")
    assert f"prompt {plain['prompt_tokens'] + len('<no>')} tokens" in chat.stderr.decode()


@pytest.mark.parametrize("given", ["{", "[1]", "enable_thinking=false"])
def test_what_is_no_object_is_refused(given: str, model: Path) -> None:
    run = slmq("run", model, "hi", "--chat-template-kwargs", given)
    assert run.returncode == 1
    assert "--chat-template-kwargs: expected a JSON object" in last_line(run)


def test_they_need_a_template(model: Path) -> None:
    run = slmq("run", model, "hi", "--raw", "--chat-template-kwargs", OFF)
    assert run.returncode == 1
    assert "needs a chat template, but --raw leaves it out" in last_line(run)
