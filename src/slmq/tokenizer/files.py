"""The files of a folder that a tokenizer is made of: regular ones, of plausible size."""

from __future__ import annotations

from pathlib import Path

from slmq.errors import TokenizerError
from slmq.machine.disk import read_regular

__all__ = ["read_file", "read_text_file"]


def read_file(path: Path, largest: int) -> bytes:
    """Read a file of at most `largest` bytes.

    Raises
    ------
    TokenizerError
        It is missing, larger, no regular file, or cannot be read.
    """
    try:
        return read_regular(path, largest)
    except OSError as error:
        raise TokenizerError(f"cannot read {path.name}: {error.strerror or error}") from error


def read_text_file(path: Path, largest: int) -> str:
    """Read UTF-8; lines end with ``\\n``, however they ended in the file. Raises as `read_file`."""
    try:
        text = read_file(path, largest).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"cannot read {path.name}: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
