"""The driver's end of the protocol of `peer_worker`: a worker process, asked and watched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["PeerError", "Worker", "others_cpu_s"]

GOODBYE_S = 20.0
LOG_LINES = 8


class PeerError(Exception):
    """A worker or its environment cannot do what was asked; the text is for the user."""


class Worker:
    """A worker process; use it in a `with` statement.

    Parameters
    ----------
    name : str
        For messages.
    python : Path
        Interpreter of the worker's environment.
    script : Path
    *arguments : str
        Of the script.
    """

    def __init__(self, name: str, python: Path, script: Path, *arguments: str) -> None:
        self.name = name
        log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._log = log  # closed with the worker
        try:
            self._process = subprocess.Popen(
                [str(python), str(script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                encoding="utf-8",
            )
        except OSError as error:
            self._log.close()
            raise PeerError(f"{name} cannot be started: {error}") from None

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Raises
        ------
        PeerError
            If the worker says so, or ends.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        try:
            self._process.stdin.write(json.dumps({"op": op, **fields}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            raise PeerError(f"{self.name} ended during {op!r}: {self._how_it_ended()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self.name}, {op}: {answer['error']}")
        return answer

    @property
    def cpu_s(self) -> float:
        """Processor time used so far, in seconds; 0 where the system does not tell."""
        try:
            text = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii")
        except OSError:
            return 0.0
        user, system = text.rsplit(")", 1)[1].split()[11:13]
        return (int(user) + int(system)) / ticks_per_s()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(GOODBYE_S if kind is None else 0.1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(GOODBYE_S)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        self._log.seek(0)
        tail = "".join(f"\n  {line.rstrip()}" for line in self._log.readlines()[-LOG_LINES:])
        if code == -signal.SIGKILL:
            return f"killed by the system, most likely for lack of memory{tail}"
        if code < 0:
            return f"signal {signal.Signals(-code).name}{tail}"
        return f"exit code {code}{tail}"


def others_cpu_s(*ours: Worker) -> float:
    """Processor time that neither we nor these workers have used since the machine started.

    Differences of it tell how busy the machine was; 0 where the system does not tell.
    """
    if sys.platform != "linux":
        return 0.0
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    busy_s = (user + nice + system + irq + softirq + steal) / ticks_per_s()
    own = os.times()
    return busy_s - own.user - own.system - sum(worker.cpu_s for worker in ours)


def ticks_per_s() -> int:
    """The unit of processor times in /proc."""
    return os.sysconf("SC_CLK_TCK")
