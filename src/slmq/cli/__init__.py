"""The command line: `slmq run MODEL PROMPT` and its relatives."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """The console command `slmq`."""
    # Text that the terminal cannot show must not end an answer half-way.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    from slmq.cli.app import app

    app(prog_name="slmq")
