"""A server of the Model Context Protocol, for tests: run it, and speak to its stdin and stdout."""

from __future__ import annotations

import os
import time
from typing import Literal

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("numbers")


@server.tool()
def double(n: int) -> int:
    """Twice a number."""
    return 2 * n


@server.tool()
def paint(colour: Literal["red", "green"]) -> str:
    """Paint it."""
    return f"{colour} paint"


@server.tool()
def fail() -> str:
    """Fail."""
    raise ToolError("out of paint")


@server.tool()
def leave() -> str:
    """End the process."""
    os._exit(3)


@server.tool()
def sleep() -> str:
    """Wait for long."""
    time.sleep(60)
    return "awake"


if __name__ == "__main__":
    server.run("stdio")
