"""The table of docs/families.md is what the tests say."""

from __future__ import annotations

import subprocess
import sys

import pytest
from family_table import BEGIN, END, PAGE, Collected, renewed, table

needs_page = pytest.mark.skipif(not PAGE.is_file(), reason="reads the source tree")


@needs_page
def test_the_table_is_up_to_date() -> None:
    """Renew it with: python tests/support/family_table.py."""
    program = PAGE.parents[1] / "tests" / "support" / "family_table.py"
    done = subprocess.run(
        [sys.executable, program, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_table_goes_between_its_marks() -> None:
    found = Collected()
    found.cells["phi9"]["GGUF"] = ["wide heads", "tied"]
    found.types, found.layouts = ["Q4_0", "Q4_K_M"], ["awq", "gptq 8 bits, rows"]
    text = table(found)
    assert "| phi9 | – | wide heads, tied | – |\n" in text
    assert "Q4_0, a mix as Q4_K_M." in text
    assert "awq; gptq 8 bits, rows." in text
    assert renewed(f"a\n{BEGIN}old\n{END}b\n", text) == f"a\n{BEGIN}{text}{END}b\n"
    with pytest.raises(SystemExit, match="expected a line"):
        renewed("a\nb\n", text)
