"""An index whose writer is killed, or whose disk is full, is what it was after the last commit."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from encoder_files import TEXT, sentence_folder

from slmq import Index

WRITER = """
import sys
from slmq.search import index, writing
writing.COMMIT_PASSAGES = 4
folder, encoder, source, limit = sys.argv[1:]
if int(limit):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
with index.Index(folder, encoder) as ix:
    print("open", flush=True)
    print(ix.add(source), flush=True)
"""
FILES = 160


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence_folder(tmp_path_factory.mktemp("encoder") / "m")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = random.Random(1)
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(FILES):
        words = " ".join(rng.choices(TEXT.split(), k=12))
        (folder / f"{number:03}.txt").write_text(f"{words}. 吾輩は猫{number}である。", "utf-8")
    return folder


def writer(folder: Path, encoder: Path, source: Path, limit: int = 0) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WRITER, folder, encoder, source, str(limit)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def whole(folder: Path, encoder: Path, source: Path) -> int:
    """Checks that an index is sound, finishes it, and returns how many documents it had."""
    with Index(folder, encoder) as index:
        index.check()
        before = index.sources()
        for found in before:
            text = Path(found.name).read_text("utf-8")
            assert text in [hit.text for hit in index.search(text, mode="words", top_k=FILES)]
            assert text in [hit.text for hit in index.search(text, mode="vectors", top_k=FILES)]
        done = index.add(source)
        assert (done.added, done.unchanged) == (FILES - len(before), len(before))
        index.check()
        assert len(index) == FILES
    return len(before)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_a_killed_writer_loses_nothing(tmp_path: Path, encoder_path: Path, source: Path) -> None:
    rng = random.Random(2)
    kept = []
    for number in range(5):
        folder = tmp_path / f"i{number}"
        running = writer(folder, encoder_path, source)
        assert running.stdout is not None
        assert running.stdout.readline() == "open\n"
        time.sleep(rng.random() * 0.3)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        kept.append(whole(folder, encoder_path, source))
    assert any(0 < count < FILES for count in kept), kept


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
@pytest.mark.parametrize("limit", [40_000, 90_000, 120_000, 150_000])
def test_a_full_disk_loses_nothing(
    tmp_path: Path, encoder_path: Path, source: Path, limit: int
) -> None:
    folder = tmp_path / "i"
    with Index(folder, encoder_path) as index:
        index.add_texts({})
    _, error = writer(folder, encoder_path, source, limit).communicate()
    assert "slmq.errors.WriteError: " in error, error
    assert "cannot be written" in error
    kept = whole(folder, encoder_path, source)
    assert kept < FILES
    shutil.rmtree(folder)
