"""`slmq doctor --selftest`: every kernel table of this CPU against the hashes in the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import slmq
from slmq.machine.selftest import HASHES, check_table, read_hashes, table_hashes, write_hashes

AVAILABLE = [name for name, table in slmq.isa.items() if table is not None]


def doctor(*options: str, package: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command, of the package in a folder or of the one that the tests use."""
    folder = Path(slmq.__file__).parents[1] if package is None else package
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from slmq.cli import main; main()",
            "doctor",
            "--selftest",
            *options,
        ],
        env={**os.environ, "PYTHONPATH": str(folder)},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_shipped_hashes_are_those_of_the_scalar_table(tmp_path: Path) -> None:
    hashes, faults = table_hashes("scalar")
    assert hashes == read_hashes(), "run `python tools/selftest_hashes.py`"
    assert not faults
    write_hashes(tmp_path / "anew")
    assert (tmp_path / "anew").read_bytes() == HASHES.read_bytes()


@pytest.mark.parametrize("isa", AVAILABLE)
def test_every_table_gives_them(isa: str) -> None:
    found = check_table(isa)
    assert found.ok
    assert found.equal == found.total == len(read_hashes())


def test_one_wrong_bit_is_named() -> None:
    expected = read_hashes()
    wrong = {**expected, "rope": f"{int(expected['rope'], 16) ^ 1:016x}"}
    found = check_table(AVAILABLE[-1], wrong)
    assert not found.ok
    assert found.differing == ("rope",)
    assert (found.equal, found.total) == (len(expected) - 1, len(expected))


def test_a_kernel_that_only_one_side_has_differs() -> None:
    expected = read_hashes()
    del expected["rope"]
    expected["levitate"] = "0" * 16
    assert check_table(AVAILABLE[-1], expected).differing == ("rope", "levitate")


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown ISA 'mmx'"):
        check_table("mmx")


def test_the_command_says_how_many_are_equal() -> None:
    done = doctor()
    assert done.returncode == 0, done.stderr
    count = len(read_hashes())
    for isa in AVAILABLE:
        assert f"{isa}:" in done.stdout
    assert done.stdout.count(f"{count} of {count} equal") == len(AVAILABLE)
    assert done.stdout.splitlines()[-1] == "all results match the reference, bit for bit"


def test_the_command_for_programs() -> None:
    done = doctor("--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"]
    assert list(found["tables"]) == AVAILABLE
    assert all(table["differing"] == [] for table in found["tables"].values())
    assert found["not_run"] == [name for name in slmq.isa if name not in AVAILABLE]


def test_the_command_fails_where_a_bit_differs(tmp_path: Path) -> None:
    """A copy of the package whose file expects another bit of one kernel."""
    shutil.copytree(Path(slmq.__file__).parent, tmp_path / "slmq")
    file = tmp_path / "slmq" / "machine" / HASHES.name
    text = file.read_text("utf-8")
    value = read_hashes()["softmax"]
    file.write_text(text.replace(value, f"{int(value, 16) ^ 1:016x}"), "utf-8")
    done = doctor(package=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("differs: softmax\n") == len(AVAILABLE)
    assert done.stdout.splitlines()[-1] == "some results DIFFER from the reference"
