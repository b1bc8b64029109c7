'''Messages that a person types or pastes, or that come from a pipe.

A message is a line, or everything between two `"""`. What is pasted is one message, however many
lines it has: GNU readline tells a paste from typing (bracketed paste); elsewhere lines that are
there at once belong together, since nobody types that fast.
'''

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from slmq.cli.output import note

__all__ = ["Lines"]

PROMPT, MORE = ">>> ", "... "
QUOTES = '"""'
HISTORY_LINES = 1000
TYPED_S = 0.03  # nobody types another line within


class Lines:
    """The messages, with line editing and the history of earlier chats where there is readline."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        self._readline: Any = None
        self._brackets = False

    def __enter__(self) -> Lines:
        if self.interactive and sys.stdout.isatty():
            with suppress(ImportError):
                import readline

                self._readline = readline
                # libedit, which stands in for it on some systems, knows no bracketed paste.
                self._brackets = "libedit" not in (readline.__doc__ or "")
                if self._brackets:
                    readline.parse_and_bind("set enable-bracketed-paste on")
                readline.set_history_length(HISTORY_LINES)
                with suppress(OSError):
                    readline.read_history_file(history_file())
        return self

    def __exit__(self, *_: object) -> None:
        if self._readline is not None:
            with suppress(OSError):
                file = history_file()
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch(mode=0o600)  # what people type is theirs alone
                self._readline.write_history_file(file)

    def read(self) -> str | None:
        """The next message; None at the end of the input (Ctrl-D)."""
        while True:
            try:
                line = self._line(PROMPT)
                if line is None:
                    return None
                if line.lstrip().startswith(QUOTES):
                    return self._quoted(line.lstrip().removeprefix(QUOTES))
                return self._pasted(line)
            except KeyboardInterrupt:
                # Ctrl-C between answers throws the message away that was begun.
                note("\n(press Ctrl-D or type /exit to quit)")

    def _quoted(self, begun: str) -> str:
        """The rest of a message after its opening quotes; the end of the input ends it, too."""
        lines = [begun]
        while not lines[-1].rstrip().endswith(QUOTES):
            line = self._line(MORE)
            if line is None:
                break
            lines.append(line)
        return "\n".join(lines).rstrip().removesuffix(QUOTES).strip("\n")

    def _pasted(self, line: str) -> str:
        """A line and those that came with it."""
        lines = [line]
        while self.interactive and not self._brackets and self._more_is_there():
            more = self._line(MORE)
            if more is None:
                break
            lines.append(more)
        return "\n".join(lines)

    def _more_is_there(self) -> bool:
        with suppress(OSError, ValueError):
            return bool(select.select([sys.stdin.fileno()], [], [], TYPED_S)[0])
        return False

    def _line(self, prompt: str) -> str | None:
        """A line without its end; None at the end of the input."""
        try:
            if self._readline is not None:
                return input(prompt)
            if not self.interactive:
                line = sys.stdin.readline()
                return line.removesuffix("\n") if line else None
            sys.stderr.write(prompt)
            sys.stderr.flush()
            return unbuffered_line()
        except EOFError:
            sys.stderr.write("\n")
            return None


def unbuffered_line() -> str | None:
    """A line of the terminal; what follows it stays with the system, where it can be seen."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)
        if not byte:
            break
        line += byte
    if not line:
        return None
    return line.decode(sys.stdin.encoding or "utf-8", "replace").removesuffix("\n")


def history_file() -> Path:
    """Where the lines of earlier chats are kept."""
    from slmq.hub import cache_dir

    return cache_dir() / "chat_history"
