"""The self test: every kernel of a table on fixed inputs, against the hashes that slmq ships."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import slmq._native as _native

__all__ = ["HASHES", "TableReport", "check_table", "read_hashes", "table_hashes", "write_hashes"]

HASHES = Path(__file__).with_name("selftest.txt")
HEADER = """\
# Hashes (FNV-1a, 64 bits) of what every kernel and a tiny model give on the fixed inputs of
# src/cpp/selftest: the same on every CPU. Written by `python tools/selftest_hashes.py`, with the
# scalar table.
"""


@dataclass(frozen=True)
class TableReport:
    """What the self test found of one kernel table.

    Attributes
    ----------
    isa : str
        The table's name.
    equal, total : int
        Kernels with the expected bits, and all.
    differing : tuple of str
        Names of the others.
    faults : tuple of str
        Contradictions within the table: a row that depends on its neighbours, say.
    seconds : float
        How long it took.
    """

    isa: str
    equal: int
    total: int
    differing: tuple[str, ...]
    faults: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.differing and not self.faults


def table_hashes(isa: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Hash of each kernel's results by the kernel's name, and the table's contradictions.

    Raises
    ------
    ValueError
        If this CPU cannot run the table, or there is none of that name.
    """
    hashes, faults = _native.selftest(isa)
    return hashes, tuple(faults)


def check_table(isa: str, expected: dict[str, str] | None = None) -> TableReport:
    """Run everything with one kernel table.

    Parameters
    ----------
    isa : str
        A name of `slmq.isa` whose table is not None.
    expected : dict, optional
        Hash of each kernel's results by its name; without it, those that slmq ships.

    Raises
    ------
    ValueError
        If this CPU cannot run the table, or there is none of that name.
    """
    wanted = read_hashes() if expected is None else expected
    start = time.perf_counter()
    found, faults = table_hashes(isa)
    seconds = time.perf_counter() - start
    names = [*found, *(name for name in wanted if name not in found)]
    differing = tuple(name for name in names if found.get(name) != wanted.get(name))
    return TableReport(isa, len(names) - len(differing), len(names), differing, faults, seconds)


def read_hashes(path: Path = HASHES) -> dict[str, str]:
    """Hash of each kernel's results by its name, from a file as `write_hashes` writes it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = (line.split() for line in lines if line and not line.startswith("#"))
    return {row[0]: row[1] for row in rows}


def write_hashes(path: Path = HASHES) -> None:
    """Write what the scalar table gives."""
    hashes, faults = table_hashes("scalar")
    if faults:
        raise RuntimeError(f"the scalar table is inconsistent: {', '.join(faults)}")
    rows = "".join(f"{name:24} {value}\n" for name, value in hashes.items())
    path.write_text(HEADER + rows, encoding="utf-8", newline="\n")
