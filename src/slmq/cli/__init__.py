"""The command line: `slmq run MODEL PROMPT` and its relatives."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """The console command `slmq`."""
    from slmq.cli.streams import open_streams

    open_streams()
    from slmq.cli.app import app

    try:
        app(prog_name="slmq")
    except OSError as error:  # help and version, which are written outside of any command
        sys.stderr.write(f"slmq: {error}\n")
        raise SystemExit(1) from None
