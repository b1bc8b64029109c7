"""The examples run as they stand, and say what stands beside them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

EXAMPLES = ROOT / "examples"


@pytest.mark.slow
def test_the_agent_calls_its_functions_and_answers(smollm2_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "agent.py", smollm2_path],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout == (EXAMPLES / "agent.txt").read_text(encoding="utf-8")
