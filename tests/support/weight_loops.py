"""The loops of compiled products that read weights: where lines are loaded, and where scales."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

FUNCTION = re.compile(r"([0-9a-f]+) <(.+)>:")
# A product of one row; its format is a number of the enum.
ONE_ROW = re.compile(r"pair_times_tokens<.*?Weight<\(slmq::Format\)(\d+)>, 1>")
TARGET = re.compile(r"\b([0-9a-f]+) <")


class Code(NamedTuple):
    """What tells instructions apart, by architecture."""

    objdump: str
    jump: re.Pattern[str]
    dot: re.Pattern[str]
    scale: re.Pattern[str]
    line: re.Pattern[str]


# Scales are float16 or int8 that are widened while they are loaded; lines are whole registers. What
# the compiler keeps on the stack is neither.
NOT_STACK = r"(?!-0x\w+\(%rbp\)|\w*\(%rsp)(?!.*\{1to)"
X86 = Code(
    objdump="objdump",
    jump=re.compile(r"j[a-z]+\s"),
    dot=re.compile(r"vpdpbusd|vpmaddubsw"),
    scale=re.compile(rf"(vcvtph2ps|vpmovsxbd)\s{NOT_STACK}.*\(%r"),
    line=re.compile(rf"v(movdq|p(and|or|s[rl]l|dpbusd|maddubs|ternlog))\S*\s{NOT_STACK}[^,]*\(%r"),
)
ARM64 = Code(
    objdump="aarch64-linux-gnu-objdump",
    jump=re.compile(r"b\.|cbn?z|tbn?z|b\s"),
    dot=re.compile(r"sdot|usdot|usmmla|smlal|smull"),
    scale=re.compile(r"(ldr|ldur|ldp)\s+d\d.*\[(?!sp)"),
    line=re.compile(r"(ldr|ldur|ldp|ld1)\s+\{?[qv]\d.*\[(?!sp)"),
)


class Instruction(NamedTuple):
    """Address and text."""

    address: int
    text: str


def functions(path: Path, code: Code) -> Iterator[tuple[str, list[Instruction]]]:
    """All functions of an object: names with their arguments, instructions."""
    done = subprocess.run(
        [code.objdump, "-d", "-w", "-C", "--no-show-raw-insn", str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    for part in done.stdout.split("\n\n"):
        lines = part.strip().splitlines()
        if head := FUNCTION.match(lines[0]) if lines else None:
            rows = [line.split("\t", 1) for line in lines[1:] if "\t" in line]
            found = [
                Instruction(int(at.strip().rstrip(":"), 16), text.removeprefix("{vex} "))
                for at, text in rows
            ]
            yield head[2], found


def one_row_products(path: Path, code: Code) -> Iterator[tuple[int, list[Instruction]]]:
    """Functions of an object that multiply one row: number of the format, instructions."""
    for name, function in functions(path, code):
        if of := ONE_ROW.search(name):
            yield int(of[1]), function


def group_loop(function: list[Instruction], code: Code) -> list[Instruction]:
    """The smallest loop that holds both dots and scales: what is done for each group."""
    places = {at.address: i for i, at in enumerate(function)}
    loops = []
    for i, at in enumerate(function):
        target = TARGET.search(at.text) if code.jump.match(at.text) else None
        start = places.get(int(target[1], 16), i + 1) if target else i + 1
        if start <= i:
            body = function[start : i + 1]
            if all(any(p.match(each.text) for each in body) for p in (code.dot, code.scale)):
                loops.append(body)
    assert loops, "no loop with dots and scales"
    return min(loops, key=len)


def early_scales(loop: list[Instruction], code: Code, groups: int = 1) -> list[str]:
    """Loads of scales that stand before a load of a line of their group, of up to so many in it."""
    loads = [at for at in loop if code.line.match(at.text) or code.scale.match(at.text)]
    runs = [(scale, list(of)) for scale, of in groupby(loads, lambda at: scales(at, code))]
    lines = [len(of) for scale, of in runs if not scale]
    assert sum(lines) >= 2, "no loads of lines"
    in_order = not runs[0][0] and runs[-1][0] and len(lines) <= groups and len(set(lines)) == 1
    return [] if in_order else [at.text for scale, of in runs[:-1] if scale for at in of]


def scales(at: Instruction, code: Code) -> bool:
    """Whether an instruction loads scales."""
    return code.scale.match(at.text) is not None
