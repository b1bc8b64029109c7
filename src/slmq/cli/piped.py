"""What reaches a command besides its arguments: text from a pipe or a file."""

from __future__ import annotations

import io
import os
import select
import stat
import sys

from slmq.cli.output import note

__all__ = ["as_typed", "read_prompt"]

PATIENCE_S = 2.0  # then people are told what the command waits for


def read_prompt(prompt: str | None) -> str:
    """The prompt: the argument, then what is piped in, with an empty line between them.

    Raises
    ------
    ValueError
        If there is neither, or stdin is not UTF-8.
    """
    if prompt in (None, "-"):
        given, piped = "", read_stdin() if prompt == "-" or is_piped() else ""
    else:
        given, piped = as_typed(prompt or ""), read_stdin() if is_piped() else ""
    if not (given or piped):
        raise ValueError("the prompt is empty; give it as an argument, or pipe it in")
    return "\n\n".join(part for part in (given, piped) if part)


def is_piped() -> bool:
    """Whether stdin is a pipe, a file or a socket: neither a person nor /dev/null nor closed."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (io.UnsupportedOperation, OSError, ValueError):
        return isinstance(sys.stdin, io.TextIOWrapper)  # a test or a program put it in the place
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def read_stdin() -> str:
    """All of stdin, without a line break at its very end and a mark of byte order at its start."""
    _explain_waiting()
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"stdin: expected UTF-8 text, got {error.reason} at byte {error.start}"
        ) from None
    return text.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")


def _explain_waiting() -> None:
    """Say so when nothing comes: services and scripts may leave a pipe open that nobody fills."""
    try:
        ready = select.select([sys.stdin.fileno()], [], [], PATIENCE_S)[0]
    except (OSError, ValueError):  # no descriptor, or one that cannot be asked (Windows)
        return
    if not ready:
        note("slmq: waiting for text from stdin; </dev/null leaves it out")


def as_typed(text: str) -> str:
    """An argument as it was typed, in UTF-8, where the locale knows ASCII only (LC_ALL=C)."""
    try:
        # Bytes that the locale cannot decode are lone surrogates.
        undecoded = any("\udc80" <= char <= "\udcff" for char in text)
        return os.fsencode(text).decode("utf-8") if undecoded else text
    except UnicodeError:  # another encoding: what is wrong is said where the text is used
        return text
