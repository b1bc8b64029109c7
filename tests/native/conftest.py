"""The objects that the module under test was linked from."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

from slmq import _native


def code_of(path: Path, work: Path) -> bytes:
    """The machine code of a library."""
    subprocess.run(
        ["objcopy", "-O", "binary", "-j", ".text", str(path), str(work / "code")], check=True
    )
    return (work / "code").read_bytes()


def build_folders() -> Iterator[Path]:
    """Where the module may have been built: by pip in the checkout, or as SLMQ_BUILD_DIR says."""
    if "SLMQ_BUILD_DIR" in os.environ:
        yield Path(os.environ["SLMQ_BUILD_DIR"])
    yield from sorted((ROOT / "build").glob("*"))


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Objects of the module that the tests import: of each table, and "" the others."""
    work = tmp_path_factory.mktemp("code")
    module = Path(_native.__file__)
    code = code_of(module, work)
    for folder in build_folders():
        if not (folder / module.name).exists() or code_of(folder / module.name, work) != code:
            continue
        found: dict[str, list[Path]] = {"": []}
        for path in sorted((folder / "CMakeFiles").rglob("*.o")):
            target = path.relative_to(folder / "CMakeFiles").parts[0].removesuffix(".dir")
            isa = target.removeprefix("slmq_isa_") if target.startswith("slmq_isa_") else ""
            found.setdefault(isa, []).append(path)
        return found
    pytest.skip(
        "the objects of this module are not here: `pip install .` in the checkout makes them"
    )
