"""A kernel is spelled in few files, and docs/adding-a-kernel.md names them."""

from __future__ import annotations

import re

import pytest
from places import ROOT

SRC = ROOT / "src"
PAGE = ROOT / "docs" / "adding-a-kernel.md"

pytestmark = pytest.mark.skipif(not (SRC / "cpp").is_dir(), reason="needs the source tree")

MOST = 8
HOMES = ("cpp/", "slmq/_native.pyi", "slmq/plan/")  # other Python only calls what is recorded
# The self test, and what lets tests and benchmarks call a kernel directly.
TESTING = ("cpp/selftest/", "cpp/bind/bind_kernels.cpp")
# Training runs kernels that are there; a new one needs no gradient.
CALLING = ("cpp/training/",)


def spelled(pattern: str) -> set[str]:
    """Files where this is written, of those that hold kernels or record them."""
    found = set()
    for path in SRC.rglob("*"):
        name = path.relative_to(SRC).as_posix()
        if path.suffix not in {".h", ".cpp", ".py", ".pyi"} or not name.startswith(HOMES):
            continue
        if not name.startswith((*TESTING, *CALLING)) and re.search(
            pattern, path.read_text("utf-8")
        ):
            found.add(name)
    return found


def table(heading: str) -> list[str]:
    """The files in the first table of a chapter."""
    chapter = PAGE.read_text("utf-8").split(f"## {heading}", 1)[1].split("\n## ", 1)[0]
    rows = chapter[chapter.index("| file | what |") :].split("\n\n", 1)[0].splitlines()[2:]
    return [re.match(r"\| `([^`]+)` \|", row)[1] for row in rows]  # type: ignore[index]


def exists(name: str) -> bool:
    return (SRC / name).is_file() or (ROOT / name).is_file()


@pytest.mark.parametrize("unit", ["swiglu", "geglu"])
def test_the_name_of_a_gated_unit_stands_in_one_file(unit: str) -> None:
    assert {name for name in spelled(unit) if name.startswith("cpp/")} == {"cpp/kernels/kernels.h"}


def test_the_entries_of_gates_stand_in_one_file() -> None:
    assert spelled(r"Gate::\w+") == set()
    assert spelled(r"enum class Gate : int \{") == {"cpp/kernels/kernels.h"}


@pytest.mark.parametrize("kernel", ["rmsnorm", "layernorm"])
def test_a_row_kernel_is_spelled_in_the_files_of_the_page(kernel: str) -> None:
    named = table("2. A kernel over rows, with its own step")
    assert len(named) <= MOST
    # head_norm runs the kernel of rmsnorm: it stands in the same files.
    assert spelled(rf"\b{kernel}\b") == set(named)


def test_a_gate_touches_few_files() -> None:
    assert len(table("1. An activation or a gate")) <= MOST


def test_every_file_that_the_page_names_is_there() -> None:
    text = PAGE.read_text("utf-8")
    paths = set(re.findall(r"`((?:cpp|slmq|tests|tools|asv_bench)/[\w/.]+\.\w+)`", text))
    assert len(paths) > MOST
    missing = sorted(path for path in paths if not exists(path))
    assert not missing
    assert "adding-a-kernel.md" in (ROOT / ".github" / "CONTRIBUTING.md").read_text("utf-8")


def test_the_page_reads_the_files_of_this_tree() -> None:
    """The tables are found, and a name that is nowhere is found in no file."""
    assert "cpp/kernels/table.inl.h" in table("1. An activation or a gate")
    assert spelled("nowhere" + "_in_this_tree") == set()
    assert not exists("cpp/kernels/no_such_file.h")
