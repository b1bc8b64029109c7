"""Tools on the command line: calls are lines of JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from shell_command import last_line, slmq

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="runs in a shell of POSIX")


def test_run_writes_calls(tiny_model_path: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    parameters = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    tools.write_text(json.dumps([{"name": "light", "parameters": parameters}]), "utf-8")
    args = ("run", tiny_model_path, "hi", "--n-ctx", 2048, "--tools", tools)
    args = (*args, "--tool-choice", "light", "--parallel-tool-calls", "off")
    (line,) = slmq(*args).stdout.decode().splitlines()
    call = json.loads(line)
    assert call["name"] == "light"
    assert call["arguments"] in ({"on": True}, {"on": False})
    shown = json.loads(slmq(*args, "--json").stdout)
    assert (shown["finish_reason"], len(shown["tool_calls"])) == ("tool_calls", 1)
    for given, message in [
        (
            ("--tool-choice", "fan"),
            "--tool-choice: expected one of auto, required, none; got 'fan'",
        ),
        (("--tools", tmp_path / "absent"), "--tools: cannot read"),
        (("--thinking", "maybe"), "--thinking: expected on or off, got maybe"),
        (("--thinking", "on"), "thinking: expected a model whose template"),
        (("--thinking", "on", "--raw"), "thinking: expected a prompt of messages"),
    ]:
        run = slmq("run", tiny_model_path, "hi", *given)
        assert run.returncode == 1
        assert message in last_line(run)
