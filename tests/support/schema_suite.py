"""JSON-Schema-Test-Suite against compiled schemas, byte by byte.

Run as a program it prints the table of docs/design/constraints.md and what was refused why.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from slmq.errors import ConstraintError
from slmq.generation.constraints import Constraint, Vocabulary, schema_grammar

END = 256


def byte_vocabulary() -> Vocabulary:
    """One token per byte, so that acceptance is that of the grammar and of nothing else."""
    tokenizer: Any = SimpleNamespace(
        n_vocab=END + 1,
        eos_ids=frozenset({END}),
        special_ids=frozenset({END}),
        token_bytes=lambda i: bytes((i,)) if i < END else b"<end>",
        encode=lambda text, **_: list(text.encode("utf-8")),
    )
    return Vocabulary(tokenizer)


BYTES = byte_vocabulary()


def accepts(constraint: Constraint, text: bytes) -> bool:
    """Whether a text may be an answer: each byte is allowed, and it may end there."""
    matcher = constraint.matcher()
    for byte in text:
        if matcher.complete or matcher.fitting([byte]) != [byte]:
            return False
        if not matcher.forced:
            assert matcher.allowed()[byte // 32] >> (byte % 32) & 1
        matcher.accept(byte)
    return matcher.accepting


class Verdict(Enum):
    """What became of an instance of a schema that was taken."""

    VALID_ACCEPTED = "valid accepted"
    VALID_REFUSED = "valid refused"
    INVALID_ACCEPTED = "invalid accepted"
    INVALID_REFUSED = "invalid refused"


@dataclass
class Found:
    """What became of a draft's cases."""

    taken: int = 0
    refused: int = 0
    counts: Counter[Verdict] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    invalid_accepted: list[tuple[str, Any, Any]] = field(default_factory=list)
    valid_refused: list[tuple[str, Any, Any]] = field(default_factory=list)

    def row(self, draft: str) -> str:
        """A row of the table."""
        counts = [self.counts[verdict] for verdict in Verdict]
        return f"| {' | '.join([draft, *map(str, [self.taken, self.refused, *counts])])} |"


def run_suite(folder: Path) -> Found:
    """Every case of a draft, optional ones left out."""
    found = Found()
    for file in sorted(folder.glob("*.json")):
        for case in json.loads(file.read_text("utf-8")):
            name = f"{file.stem}: {case['description']}"
            try:
                constraint = BYTES.compile(schema_grammar(case["schema"]))
            except ConstraintError as error:
                found.refused += 1
                found.reasons[re.sub(r" \(at .*?\)|'.*?'|: \d+", "", str(error))] += 1
                continue
            found.taken += 1
            for test in case["tests"]:
                text = json.dumps(test["data"], ensure_ascii=False)
                accepted = accepts(constraint, text.encode("utf-8", "surrogatepass"))
                kind = "valid" if test["valid"] else "invalid"
                verdict = Verdict(f"{kind} {'accepted' if accepted else 'refused'}")
                found.counts[verdict] += 1
                entry = f"{name}: {test['description']}", case["schema"], test["data"]
                if verdict is Verdict.INVALID_ACCEPTED:
                    found.invalid_accepted.append(entry)
                elif verdict is Verdict.VALID_REFUSED:
                    found.valid_refused.append(entry)
    return found


if __name__ == "__main__":
    for folder in map(Path, sys.argv[1:]):
        result = run_suite(folder)
        print(result.row(folder.name))
        for name, schema, data in (*result.invalid_accepted, *result.valid_refused):
            print("  ", name, json.dumps(schema)[:200], json.dumps(data)[:100])
        for reason, count in result.reasons.most_common():
            print(f"{count:4} {reason}")
