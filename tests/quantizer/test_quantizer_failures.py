"""Quantizing that is killed or finds the disk full: whole, resumable or nothing, never wrong."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from golden import GOLDENS

import slmq
from slmq.quantizer.work import open_work

SOURCE = GOLDENS / "llama" / "biases"
TEXT = "Once upon a time there was a llama. It sat on a hill, and the sun was red. " * 12
POSIX = pytest.mark.skipif(os.name == "nt", reason="limits, signals and mounts of POSIX")


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- killed -----------------------------------------------------------------------------------

# Python tells an audit hook before it opens, renames or deletes a file: the moments between which
# the disk changes.
KILLED = """
import os, signal, sys
import slmq
source, target, text, at = sys.argv[1:]
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
seen = 0
def watch(event, arguments):
    global seen
    if event in CHANGES or event == "open" and "/.q." in str(arguments[0]):
        seen += 1
        if seen == int(at):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
slmq.quantize(source, target, bits=5, calibrate=text, n_threads=1, force=True)
print(seen)
"""


@POSIX
def test_a_run_that_is_killed_at_any_moment_can_go_on(
    tiny_model_path: Path, tmp_path: Path, empty_cache: Callable[[], None]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, "utf-8")
    folder = tmp_path / "runs"
    folder.mkdir()
    target = folder / "q"
    whole = run(KILLED, tiny_model_path, target, text, 0)
    moments = int(whole.stdout)
    wanted = folder_bytes(target)
    # Some at random; one among the last, when the folder has its name and the work is deleted.
    for at in (*random.Random(0).sample(range(1, moments - 20), 4), moments - 12):
        shutil.rmtree(target)
        empty_cache()
        killed = run(KILLED, tiny_model_path, target, text, at)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        if target.exists():
            assert folder_bytes(target) == wanted
        slmq.quantize(tiny_model_path, target, bits=5, calibrate=text, n_threads=2, force=True)
        assert folder_bytes(target) == wanted
        assert [path.name for path in folder.iterdir()] == ["q"]


@POSIX
def test_one_process_at_a_time_quantizes_to_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "q"
    with (
        open_work(target, {}),
        pytest.raises(slmq.BusyError, match="another process is writing it"),
    ):
        slmq.quantize(SOURCE, target)
    assert not list(tmp_path.iterdir())


# --- no room ----------------------------------------------------------------------------------

LIMITED = """
import resource, signal, sys
import slmq
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
slmq.quantize(*sys.argv[1:])
"""


@POSIX
def test_a_file_that_grows_too_large_is_an_error(tmp_path: Path) -> None:
    target = tmp_path / "q"
    done = run(LIMITED, SOURCE, target)
    assert done.returncode == 1
    assert re.search("slmq.errors.WriteError: cannot write .*/q: File too large", done.stderr)
    assert not target.exists()
    slmq.quantize(SOURCE, target)
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


# A disk of 80 MB in memory, in a mount namespace of its own. Somebody else fills it half way.
FULL = """
import subprocess, sys
from pathlib import Path
import slmq
source, disk = sys.argv[1], Path(sys.argv[2])
target, other = disk / "q", disk / "other"

def fill(_what, done, total):
    if done > total // 2 and not other.exists():
        with other.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)):
                    pass
            except OSError:
                pass

def attempt(**options):
    try:
        slmq.quantize(source, target, **options)
    except slmq.Error as error:
        print(error)
        assert not target.exists()
    else:
        print("whole")

attempt(progress=fill)
attempt()
other.unlink()
attempt()
assert [path.name for path in disk.iterdir()] == ["q"]
slmq.load(target).close()
"""


@POSIX
def test_a_full_disk_is_a_clear_error_and_the_run_goes_on(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    mount = f"mount -t tmpfs -o size=80m tmpfs '{tmp_path}'"
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*unshare, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mount namespaces here: {error}")
    command = [*unshare, f'{mount} && exec "$@"', "sh", sys.executable, "-c", FULL]
    done = subprocess.run(
        [*command, str(tiny_model_path), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert re.match("cannot write .*/q: No space left on device; finished parts are kept", first)
    assert re.match("cannot write .*/q: (No space|the weights need)", second)
    assert third == "whole"
