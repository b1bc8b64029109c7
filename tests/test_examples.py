"""The examples run as they stand, and say what stands beside them."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import shutil
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


@pytest.mark.slow
def test_the_chatbot_answers_from_documents(
    smollm2_path: Path, minilm_path: Path, tmp_path: Path
) -> None:
    assert smollm2_path.exists()
    assert minilm_path.exists()
    shutil.copytree(EXAMPLES / "rag" / "documents", tmp_path / "documents")
    for said in ("3 added; ", "3 unchanged; "):
        done = subprocess.run(
            [sys.executable, EXAMPLES / "rag" / "chatbot.py", tmp_path / "documents"],
            input=(EXAMPLES / "rag" / "questions.txt").read_text("utf-8"),
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            check=True,
        )
        assert done.stderr.startswith(said)
        assert done.stdout == (EXAMPLES / "rag" / "answers.txt").read_text(encoding="utf-8")


def cell_output(source: str, names: dict[str, object]) -> str:
    """What a cell of a notebook prints, and the value of its last line, as Jupyter shows them."""
    tree = ast.parse(source)
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # type: ignore[attr-defined]
    return printed.getvalue() + ("" if value is None else repr(value))


@pytest.mark.slow
def test_the_notebook_shows_what_its_cells_give(smollm2_path: Path) -> None:
    notebook = json.loads((EXAMPLES / "first_steps.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            recorded = [
                output.get("text") or output["data"]["text/plain"] for output in cell["outputs"]
            ]
            wanted = "".join(line for lines in recorded for line in lines)
            assert cell_output("".join(cell["source"]), names).split() == wanted.split()
