"""The command in a shell, which can close its streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = "import sys; sys.argv[0] = 'slmq'; from slmq.cli import main; main()"


def slmq(
    *args: str | Path, closed: str = "", env: dict[str, str] | None = None, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a shell that closes descriptors, such as ``2>&-``."""
    line = [sys.executable, "-c", COMMAND, *map(str, args)]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *line],
        capture_output=True,
        input=given,
        env={**os.environ, **(env or {})},
        check=False,
        timeout=120,
    )


def last_line(run: subprocess.CompletedProcess[bytes]) -> str:
    lines = run.stderr.decode().splitlines()
    return lines[-1] if lines else ""
