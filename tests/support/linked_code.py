"""Which code of a linked x86-64 library can be reached without going through a table of kernels.

A stripped library has no names, but it has the ranges of its functions (.eh_frame), their calls and
jumps, and the places that hold addresses of functions (relocations): enough to follow who may run.
"""

from __future__ import annotations

import re
import subprocess
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from disassembly import instructions

DIRECT = re.compile(r"(?:call|jmp|j[a-z]+)[a-z]*(?:,p[nt])?\s+([0-9a-f]+)\b")
ADDRESS_OF = re.compile(r"lea[a-z]*\s.*\(%rip\).*# ([0-9a-f]+)\b")


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass
class Library:
    """Functions by their first address: what they need beyond SSE2, and whom they mention."""

    path: Path
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    needs: dict[int, set[str]] = field(default_factory=dict)
    mentions: dict[int, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frames = output("readelf", "-wf", str(self.path))
        ranges = {
            (int(first, 16), int(last, 16))
            for first, last in re.findall(r" FDE .*pc=([0-9a-f]+)\.\.([0-9a-f]+)", frames)
        }
        self.starts = [first for first, _ in sorted(ranges)]
        self.ends = [last for _, last in sorted(ranges)]
        for at in instructions(self.path):
            function = self.function_at(at.address)
            self.needs.setdefault(function, set()).update({at.needs} - {""})
            mentioned = self.mentions.setdefault(function, set())
            target = DIRECT.match(at.text) or ADDRESS_OF.match(at.text)
            if target and int(target[1], 16) < (self.ends[-1] if self.ends else 0):
                mentioned.add(self.function_at(int(target[1], 16)))

    def function_at(self, address: int) -> int:
        """The first address of the function around it; what has no range is its own function."""
        i = bisect_right(self.starts, address) - 1
        return self.starts[i] if i >= 0 and address < self.ends[i] else address

    def pointers(self) -> dict[int, int]:
        """Places of the data that hold an address of this library, and which."""
        rows = re.findall(
            r"^([0-9a-f]+) .*R_X86_64_RELATIVE +([0-9a-f]+)",
            output("readelf", "-rW", str(self.path)),
            re.MULTILINE,
        )
        return {int(place, 16): int(target, 16) for place, target in rows}

    def exports(self) -> list[int]:
        """Addresses that other libraries may call."""
        symbols = output("nm", "-D", "--defined-only", "--format=posix", str(self.path))
        return [int(line.split()[2], 16) for line in symbols.splitlines()]

    def read(self, section: str) -> tuple[int, bytes]:
        """Address and bytes of a section."""
        rows = output("readelf", "-SW", str(self.path))
        row = re.search(rf"\] {re.escape(section)} +\w+ +(\w+) (\w+) (\w+)", rows)
        if row is None:
            return 0, b""
        address, offset, size = (int(number, 16) for number in row.groups())
        return address, self.path.read_bytes()[offset : offset + size]

    def tables(self, names: Iterable[str]) -> dict[str, range]:
        """Where the table of each name lies: the name, then functions; one of them fills all slots.

        Tables that add a few kernels to another one leave the other slots empty.
        """
        pointers, (base, constants) = self.pointers(), self.read(".rodata")
        runs: dict[str, tuple[int, int]] = {}
        for place, target in pointers.items():
            text = constants[max(target - base, 0) :][:32].split(b"\0")[0]
            name = text.decode("ascii", "replace") if base <= target else ""
            end = place + 8
            while pointers.get(end) in self.needs:
                end += 8
            if name in names and end - place > 8:
                assert name not in runs, f"two tables are called {name}"
                runs[name] = (place, end - place)
        longest = max((size for _, size in runs.values()), default=0)
        return {name: range(place, place + longest, 8) for name, (place, _) in runs.items()}

    def reachable(self, roots: Iterable[int]) -> set[int]:
        """Functions that these mention, directly or through others."""
        seen: set[int] = set()
        waiting = list(roots)
        while waiting:
            function = self.function_at(waiting.pop())
            if function not in seen:
                seen.add(function)
                waiting += self.mentions.get(function, ())
        return seen

    def strays(self, allowed: Mapping[str, set[str]]) -> list[str]:
        """What runs instructions that it may not count on; `allowed`: what each table may need."""
        pointers, tables = self.pointers(), self.tables(allowed)
        of_tables: set[int] = set()
        found = []
        for name, places in tables.items():
            own = self.reachable(pointers[place] for place in places[1:] if place in pointers)
            found += [
                f"{name}: {function:#x} needs {', '.join(sorted(more))}"
                for function in sorted(own)
                if (more := self.needs.get(function, set()) - allowed[name])
            ]
            of_tables |= own
        elsewhere = [
            target
            for place, target in pointers.items()
            if not any(place in places for places in tables.values())
        ]
        rest = [function for function in self.needs if function not in of_tables]
        common = self.reachable([*rest, *self.exports(), *elsewhere])
        found += [
            f"common code: {function:#x} needs {', '.join(sorted(self.needs[function]))}"
            for function in sorted(common)
            if self.needs.get(function)
        ]
        return found
