"""Errors for people: one line on stderr and an exit code, no traceback."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from slmq.errors import Error

__all__ = ["FAILED", "STOPPED", "Commands", "one_line", "plain_errors"]

FAILED = 1
STOPPED = 130  # what shells report for Ctrl-C
PIPE_CLOSED = 141  # and for a reader that went away


class Commands(TyperGroup):
    """Runs commands under `plain_errors`; a name may have two words, as ``classify train``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command that is meant."""
        both = " ".join(args[:2])
        if len(args) > 1 and both in self.commands:
            return both, self.commands[both], args[2:]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        with plain_errors():
            return super().invoke(ctx)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turns what can go wrong into a line on stderr; SLMQ_LOG_LEVEL=DEBUG keeps tracebacks."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(STOPPED) from None
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which must not fail again.
        with suppress_output():
            raise typer.Exit(PIPE_CLOSED) from None
    except (Error, ValueError, TypeError, OSError, MemoryError, ImportError) as error:
        if os.environ.get("SLMQ_LOG_LEVEL", "").upper() == "DEBUG":
            raise
        sys.stderr.write(f"slmq: {one_line(error)}\n")
        raise typer.Exit(FAILED) from None


@contextmanager
def suppress_output() -> Iterator[None]:
    """Sends the rest of stdout nowhere."""
    try:
        yield
    finally:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


# Names of options in messages of the library, and how they are spelled here.
FLAGS = {"max_tokens": "--max-tokens", "n_ctx": "--n-ctx", "local_files_only": "--offline"}
OPTION_NAMES = re.compile(rf"(?<![\w-])({'|'.join(FLAGS)})(?!\w)")


def one_line(error: BaseException) -> str:
    """The message of an exception, without line breaks, about the flags of the command line."""
    if isinstance(error, MemoryError):
        return "not enough memory" + (f": {error}" if str(error) else "")
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Error):
        return OPTION_NAMES.sub(lambda found: FLAGS[found[0]], text)
    return text
