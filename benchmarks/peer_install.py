"""A virtual environment for each peer, made once and kept outside of the sources."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

from peer_process import PeerError

__all__ = ["PEERS", "Peer", "ensure_environment", "peer_named"]

HERE = Path(__file__).resolve().parent
LOG_LINES = 15
DONE = "installed.json"


class Peer(NamedTuple):
    """An engine to measure against.

    Attributes
    ----------
    name : str
    script : str
        Its worker, beside this file.
    requirements : tuple of str
        What to install, pinned; nothing for slmq itself. The last one names the environment.
    built_here : bool
        Whether installing compiles for the CPU at hand, so that another CPU needs it anew.
    note : str
        What to expect.
    """

    name: str
    script: str
    requirements: tuple[str, ...] = ()
    built_here: bool = False
    note: str = ""

    @property
    def worker(self) -> Path:
        """Path of the script."""
        return HERE / self.script


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "llama.cpp",
            "peer_llama.py",
            ("llama-cpp-python==0.3.36",),
            built_here=True,
            note="it compiles from source: about 6 minutes on 2 cores, once",
        ),
        Peer(
            "openvino",
            "peer_openvino.py",
            (
                "openvino==2026.4.1",
                "openvino-tokenizers==2026.4.1.0",
                "openvino-genai==2026.4.1.0",
            ),
            note="about 150 MB, once",
        ),
        Peer("slmq", "peer_slmq.py"),
    )
}


def peer_named(name: str) -> Peer:
    """The peer of that name.

    Raises
    ------
    PeerError
        If there is none.
    """
    if name not in PEERS:
        raise PeerError(f"peer: expected one of {', '.join(PEERS)}, got {name!r}")
    return PEERS[name]


def ensure_environment(peer: Peer, root: Path) -> Path:
    """The interpreter of a peer's environment, which is installed when it is not there.

    Parameters
    ----------
    peer : Peer
    root : Path
        Folder of all environments; made when it is missing.

    Raises
    ------
    PeerError
        If it cannot be installed; says why, where the whole log is and what else to do.
    """
    if not peer.requirements:
        return Path(sys.executable)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = root / f"{peer.requirements[-1].replace('==', '-')}-py{version}"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = {"requirements": list(peer.requirements), "cpu": cpu() if peer.built_here else ""}
    done = folder / DONE
    if done.is_file() and json.loads(done.read_text("utf-8")) == wanted and python.exists():
        return python
    print(f"installing {peer.name} into {folder} ({peer.note})", file=sys.stderr, flush=True)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        venv.create(folder, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PeerError(
            f"no virtual environment at {folder}: {error}; name an interpreter that has "
            f"{' '.join(peer.requirements)} with --python"
        ) from None
    install(peer, python, folder / "install.log")
    done.write_text(json.dumps(wanted), "utf-8")
    return python


def install(peer: Peer, python: Path, log: Path) -> None:
    """Runs pip, as a polite neighbour.

    Raises
    ------
    PeerError
        With the end of pip's log.
    """
    command = [str(python), "-m", "pip", "install", *peer.requirements]
    if nice := shutil.which("nice"):
        command = [nice, *command]
    with log.open("wb") as output:
        code = subprocess.run(command, stdout=output, stderr=output, check=False).returncode
    if code:
        lines = log.read_text("utf-8", errors="replace").splitlines()[-LOG_LINES:]
        raise PeerError(
            f"pip could not install {' '.join(peer.requirements)} (exit code {code}); the end of "
            f"{log}:\n  " + "\n  ".join(lines)
        )


def cpu() -> str:
    """What a compiler that builds for this CPU looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features")
    found = {key.strip(): value.strip() for key, _, value in (ln.partition(":") for ln in lines)}
    return "; ".join(found[key] for key in wanted if key in found)
