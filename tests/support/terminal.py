"""The command line as a process, also on a terminal of its own."""

from __future__ import annotations

import os
import select
import signal
import sys

__all__ = ["Terminal", "command"]


def command(*arguments: object) -> list[str]:
    """The command `slmq` with these arguments."""
    return [sys.executable, "-m", "slmq.cli", *(str(argument) for argument in arguments)]


class Terminal:
    """A process on a terminal of its own, and what it has written there."""

    def __init__(self, program: list[str], *, environment: dict[str, str]) -> None:
        import pty

        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(environment)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # pytest in the background ignores it
            os.execv(program[0], program)
        self.seen = b""

    def until(self, text: bytes, *, after: int = 0) -> int:
        """Reads until `text` stands at `after` or later; where it ends."""
        while text not in self.seen[after:]:
            self._read_some(f"no {text!r} in {self.seen[-2000:]!r}")
        return self.seen.index(text, after) + len(text)

    def interrupt(self, text: bytes, *, after: int = 0) -> int:
        """Types Ctrl-C until `text` stands at `after` or later; where it ends.

        CPython's line editor sleeps on a signal that comes just before it waits for a key: it sees
        it with the next one. Whoever sits there presses again, too.
        """
        for _ in range(12):
            self.type(b"\x03")
            if select.select([self.fd], [], [], 5)[0]:
                break
        return self.until(text, after=after)

    def read(self, count: int) -> None:
        """Reads that many bytes more, at least."""
        goal = len(self.seen) + count
        while len(self.seen) < goal:
            self._read_some(f"nothing after {self.seen[-2000:]!r}")

    def _read_some(self, complaint: str) -> None:
        assert select.select([self.fd], [], [], 60)[0], complaint
        self.seen += os.read(self.fd, 65536)

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def close(self) -> int:
        """Waits for the end of the process; its exit code."""
        try:
            while os.read(self.fd, 65536):
                pass
        except OSError:
            pass  # how Linux tells that the other side is gone
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
