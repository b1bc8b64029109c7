"""`Family` is what a family file is checked against: by mypy, when the project is checked."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

from slmq.models.registry import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "src" / "slmq" / "models"

pytestmark = pytest.mark.skipif(
    not MODELS.is_dir(), reason="reads the source tree, which is not here"
)

# What is wrong with a family: a change to llama.py that makes it so.
WRONG = {
    "forward_returns_nothing": (
        "def forward(p: Recording, w: Weights, cfg: Config) -> Handle:",
        "def forward(p: Recording, w: Weights, cfg: Config) -> None:",
    ),
    "forward_needs_the_recorder_itself": (
        "def forward(p: Recording, w: Weights, cfg: Config) -> Handle:",
        "def forward(p: Recorder, w: Weights, cfg: Config) -> Handle:",
    ),
    "load_needs_a_file": (
        "def load(r: Reader, cfg: Config) -> Weights:",
        "def load(r: WeightReader, cfg: Config) -> Weights:",
    ),
    "no_map_of_gguf_files": ("GGUF = GgufMap(", "GGUF_MAP = GgufMap("),
    "a_configuration_of_another_family": (
        "def load(r: Reader, cfg: Config) -> Weights:",
        "def load(r: Reader, cfg: Phi3Config) -> Weights:",
    ),
    "a_configuration_without_a_vocabulary": (
        "class Config(DecoderConfig):",
        "class Config:",
    ),
}
IMPORTS = """
from slmq.models.phi3 import Config as Phi3Config
from slmq.plan.recorder import Recorder
from slmq.weights.reader import WeightReader
"""


def test_every_family_is_in_the_table_that_mypy_reads() -> None:
    tree = ast.parse((MODELS / "registry.py").read_text("utf-8"))
    checked = {
        node.args[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "_checked"
        and isinstance(node.args[0], ast.Name)
    }
    assert checked == set(FAMILIES.values())


@pytest.mark.slow  # mypy reads NumPy's types, too
def test_a_wrong_family_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip("mypy.api")
    text = (MODELS / "llama.py").read_text("utf-8")
    check = ["from slmq.models.family import C, Family", "import right"]
    check += [f"import {name}" for name in WRONG]
    check += ["def checked(family: Family[C]) -> None: ...", "checked(right)"]
    lines = set()
    for name, (before, after) in WRONG.items():
        assert before in text
        future, _, rest = text.replace(before, after).partition("annotations\n")
        (tmp_path / f"{name}.py").write_text(f"{future}annotations\n{IMPORTS}{rest}", "utf-8")
        check.append(f"checked({name})")
        lines.add(len(check))
    (tmp_path / "right.py").write_text(text, "utf-8")
    (tmp_path / "check.py").write_text("\n".join(check) + "\n", "utf-8")
    monkeypatch.setenv("MYPYPATH", os.pathsep.join([str(tmp_path), str(ROOT / "src")]))
    monkeypatch.chdir(ROOT)  # its settings, and what it has cached of the package
    found, _, _ = api.run([str(tmp_path / "check.py"), "--follow-imports=silent"])
    caught = {int(line) for line in re.findall(r"check\.py:(\d+): error: ", found)}
    assert caught == lines, found
