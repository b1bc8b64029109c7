"""A hub that may not be trusted: whatever it sends, nothing outside of the cache is touched.

Every case runs in a process of its own whose calls of the operating system are watched: files that
are opened, made, renamed, linked or removed. The folders beside the cache are compared as well.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hostile_hub import CASES, COMMIT, FILES, WHOLE
from hub_cases import environment
from hub_server import Server

LONGEST_S = 20.0
MOST_MEMORY = 160 << 20
MOST_ON_DISK = 2 << 20

CHILD = """
import json, os, sys, time
from slmq.errors import DownloadError, Error, ModelNotFoundError
from slmq.hub import huggingface, listing
from slmq.hub.download import Retry
from slmq.hub.store import Store
from slmq.machine.memory import peak_memory_bytes

listing.WAIT_S = 3.0
touched = []
watching = False
PATHS = {"open": 1, "os.remove": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.mkdir": 1,
         "os.rmdir": 1, "os.truncate": 1, "os.chmod": 1, "os.utime": 1, "os.listdir": 1,
         "os.scandir": 1, "shutil.rmtree": 1, "shutil.move": 2, "shutil.copyfile": 2}
MORE = ("subprocess.Popen", "os.exec", "os.fork", "os.posix_spawn", "os.system")

def watch(event, arguments):
    global watching
    if not watching or event not in PATHS and event not in MORE:
        return
    watching = False
    if event == "os.symlink":
        # Where the link leads is text until somebody follows it; it is to stay inside, too.
        arguments = (os.path.join(os.path.dirname(arguments[1]), arguments[0]), arguments[1])
    for path in arguments[: PATHS.get(event, 1)]:
        if isinstance(path, (str, bytes)) or hasattr(path, "__fspath__"):
            parent, name = os.path.split(os.path.abspath(os.fsdecode(path)))
            reading = event in ("os.listdir", "os.scandir") or (
                event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            touched.append([event, os.path.join(os.path.realpath(parent), name), bool(reading)])
    watching = True

sys.addaudithook(watch)
began, said = time.monotonic(), None
watching = True
try:
    found = Store(None, {}, Retry(2, 0.01, 1.0)).resolve("org/name")
except Error as error:
    said = [type(error).__name__, str(error)]
watching = False
if said is None:
    files = sorted(path for path in found.path.iterdir())
    said = ["whole", {path.name: len(path.read_bytes()) for path in files}]
peak = peak_memory_bytes() or 0  # not ru_maxrss, which would be the peak of pytest
print(json.dumps([said, time.monotonic() - began, peak, touched]))
"""


def tree(folder: Path, besides: tuple[Path, ...]) -> dict[str, tuple[int, int, bytes]]:
    """Everything below a folder: mode, time of the last change, and what is in it."""
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(parent, name) not in besides]
        for name in (*folders, *names):
            path = Path(parent, name)
            status = path.lstat()
            data = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (status.st_mode, status.st_mtime_ns, data)
    return found


def bytes_below(*folders: Path) -> int:
    return sum(p.lstat().st_size for folder in folders for p in folder.rglob("*"))


@pytest.mark.skipif(os.name != "posix", reason="reads its memory with the resource module")
@pytest.mark.parametrize("name", CASES)
def test_a_hostile_hub(name: str, server: Server, tmp_path: Path) -> None:
    outside, caches = tmp_path / "outside", (tmp_path / "hf", tmp_path / "cache")
    outside.mkdir()
    for victim in ("victim", "victim.gguf", "victim.lock"):
        (outside / victim).write_bytes(b"precious")
    for cache in caches:
        cache.mkdir()
    server.add_repository("org/name", FILES, COMMIT)
    CASES[name].change(server, outside)
    before = tree(tmp_path, caches)
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert tree(tmp_path, caches) == before
    assert done.returncode == 0, done.stderr
    (kind, words), seconds, peak, touched = json.loads(done.stdout)

    places = [os.path.realpath(cache) for cache in caches]
    python = [os.path.realpath(path) for path in {*sysconfig.get_paths().values(), *sys.path}]
    python += [os.path.realpath(sys.base_prefix), environment()["PYTHONPATH"].split(os.pathsep)[0]]
    for event, path, reading in touched:
        allowed = places + python if reading else places
        assert any(Path(path).is_relative_to(place) for place in allowed), (event, path)
    assert seconds < LONGEST_S
    assert peak < MOST_MEMORY
    assert bytes_below(*caches) < MOST_ON_DISK
    if CASES[name].outcome == WHOLE:
        assert (kind, words) == ("whole", {name: len(data) for name, data in FILES.items()})
    else:
        assert kind == "DownloadError"
        assert re.search(CASES[name].outcome, words), words
        assert words.isprintable()


def test_there_are_many_kinds() -> None:
    assert len(CASES) >= 60
