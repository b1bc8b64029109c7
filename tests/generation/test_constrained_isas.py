"""One answer: constrained answers and labels have the same bits for every instruction set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from kernel_cases import ISAS

PROGRAM = """
import json, sys, slmq
schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12},
          "age": {"type": "integer"}, "city": {"enum": ["Paris", "London"]}},
          "required": ["name", "age", "city"], "additionalProperties": False}
with slmq.load(sys.argv[1], n_ctx=512, n_threads=int(sys.argv[2])) as m:
    kinds = [{"schema": schema}, {"schema": schema, "temperature": 1.0, "seed": 3, "logprobs": 2},
             {"regex": "[a-z]{3,20}", "temperature": 2.0, "seed": 4}]
    alone = [m.generate("abc", max_tokens=90, **kind) for kind in kinds]
    for cold, kind in zip(alone, kinds):
        again = m.generate("abc", max_tokens=90, **kind)
        many = m.map(["abc"] * 16, max_tokens=90, **kind)
        assert {tuple(r.tokens) for r in (again, *many)} == {tuple(cold.tokens)}
    labels = m.label(["one", "two"], ["yes", "no", "not at all"], calibrate=True)
    print(json.dumps([[r.text, r.tokens, str(r.logprobs)] for r in alone]
                     + [one.probabilities for one in labels]))
"""


def test_every_isa_gives_the_same_answers(tiny_model_path: Path) -> None:
    found = set()
    for isa in ISAS:
        for threads in ("1", "2"):
            said = subprocess.check_output(
                [sys.executable, "-c", PROGRAM, str(tiny_model_path), threads],
                env={**os.environ, "SLMQ_ISA": isa},
                text=True,
            )
            found.add(said)
    assert len(found) == 1
    assert len(json.loads(found.pop())) == 5
