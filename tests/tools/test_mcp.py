"""Tools of a real server of the Model Context Protocol."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import slmq
from slmq import ClosedError, McpServer, ToolServerError
from slmq.tools.tool import Tool

pytest.importorskip("mcp")
SERVER = str(Path(__file__).resolve().parents[1] / "support" / "mcp_server.py")


@pytest.fixture(scope="module")
def server() -> Iterator[McpServer]:
    with McpServer(sys.executable, [SERVER]) as found:
        yield found


def tool(server: McpServer, name: str) -> Tool:
    return next(tool for tool in server.tools if tool.name == name)


def test_tools_are_those_of_the_server(server: McpServer) -> None:
    assert [found.name for found in server.tools] == ["double", "paint", "fail", "leave", "sleep"]
    double = tool(server, "double")
    assert double.description == "Twice a number."
    assert double.parameters["properties"]["n"]["type"] == "integer"
    assert double.parameters["required"] == ["n"]
    assert double.call({"n": 21}) == "42"


def test_what_the_server_refuses_is_an_error_with_its_words(server: McpServer) -> None:
    with pytest.raises(ToolServerError, match="out of paint"):
        tool(server, "fail").call({})
    with pytest.raises(ToolServerError, match="valid integer"):
        tool(server, "double").call({"n": "x"})
    assert tool(server, "paint").call({"colour": "red"}) == "red paint"


def test_a_chat_calls_them(server: McpServer, tiny_model_path: Path) -> None:
    paint, fail = tool(server, "paint"), tool(server, "fail")
    with slmq.load(tiny_model_path, n_ctx=4096) as m:
        for found, start in [(paint, ""), (fail, "Error: ToolServerError: ")]:
            chat = m.chat(tools=[found], tool_choice="required", max_rounds=1, max_tokens=120)
            chat.send("hello")
            told = chat.messages[2]["content"]
            assert told.startswith(start)
            assert "paint" in told


def test_a_server_that_is_closed_or_gone_says_so() -> None:
    with McpServer(sys.executable, [SERVER]) as found:
        with pytest.raises(ToolServerError, match="did not answer"):
            tool(found, "leave").call({})
        assert "McpServer" in repr(found)
    with pytest.raises(ClosedError, match="is closed"):
        tool(found, "double").call({"n": 1})
    found.close()


def test_a_server_that_hangs_is_given_up() -> None:
    with McpServer(sys.executable, [SERVER]) as found:  # whatever starting takes
        began = time.monotonic()
        found._timeout_s = 0.2
        with pytest.raises(ToolServerError, match=r"did not answer within 0.2 s"):
            tool(found, "sleep").call({})
        found._timeout_s = 8
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("command", ["/no/such/program", sys.executable])
def test_a_server_that_does_not_start_is_an_error(command: str) -> None:
    with pytest.raises(ToolServerError, match="cannot be started"):
        McpServer(command, ["-c", "print('no protocol')"], timeout_s=8)
    with pytest.raises(TypeError, match="args: expected a list of str"):
        McpServer(command, "server.py")
