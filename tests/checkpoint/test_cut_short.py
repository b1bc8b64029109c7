"""Files that another process cuts short while they are loaded: an error, never a signal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from golden import GOLDENS
from llama_files import to_gguf

from slmq.checkpoint.gguf_header import Cursor
from slmq.checkpoint.mapped import MappedFile
from slmq.errors import CheckpointError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="an open file cannot be cut here")

# Each cut in a process of its own would be slow; a signal ends them all, which is what counts.
CHILD = """
import os, shutil, sys
from pathlib import Path
from slmq.checkpoint import open_checkpoint
from slmq.errors import CheckpointError
from slmq.models.loading import load_weights
source, scratch, memory = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
for share in (0.99, 0.7, 0.5, 0.3, 0.0):
    path = scratch / source.name
    if source.is_dir():
        shutil.copytree(source, path, dirs_exist_ok=True)
        victim = path / "model.safetensors"
    else:
        victim = shutil.copyfile(source, path)
    with open_checkpoint(path) as checkpoint:
        os.truncate(victim, int(victim.stat().st_size * share))
        try:
            load_weights(checkpoint, threads=2, memory=memory)
        except CheckpointError as error:
            assert "cut short" in str(error), error
            print("refused")
"""


@pytest.mark.parametrize("memory", ["small", "huge"])
@pytest.mark.parametrize("stored", ["f32", "f16", "q8_0", "q4_0", "folder"])
def test_weights_that_are_cut_short(stored: str, memory: str, tmp_path: Path) -> None:
    source = GOLDENS / "llama" / "odd_sizes"
    if stored != "folder":
        source = to_gguf("gqa_untied", tmp_path / "m.gguf", stored)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(source), str(scratch), memory],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.split() == ["refused"] * 5


def test_headers_that_are_cut_short(tmp_path: Path) -> None:
    path = to_gguf("odd_sizes", tmp_path / "m.gguf", "f32")
    file = MappedFile(path)
    os.truncate(path, 10)
    with pytest.raises(CheckpointError, match=r"expected \d+ bytes at offset 0, found 10"):
        Cursor(file)
    file.close()


def test_what_was_read_stays(tmp_path: Path) -> None:
    path = shutil.copyfile(GOLDENS / "llama" / "odd_sizes" / "config.json", tmp_path / "x")
    file = MappedFile(path)
    data = file.read(0, file.size)
    os.truncate(path, 0)
    assert data.tobytes() == (GOLDENS / "llama" / "odd_sizes" / "config.json").read_bytes()
    with pytest.raises(ValueError, match="outside of"):
        file.read(1, file.size)
    file.close()
    with pytest.raises(ValueError, match="is closed"):
        file.read(0, 1)
