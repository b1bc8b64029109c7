"""The Python of the pages runs as it stands, on the tiny model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from places import ROOT
from typer.main import get_command

from slmq.cli.app import app

DOCS = ROOT / "docs"
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="reads the pages, which are not here")


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("quickstart.md", ""),
        ("cookbook/chat.md", "assistant\n"),
        ("reference/python.md", "kernels  "),
        ("../README.md", ""),
    ],
)
def test_the_python_of_a_page_runs(
    page: str,
    says: str,
    longer_model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = PYTHON.findall((DOCS / page).read_text("utf-8"))
    assert blocks
    code = "\n".join(blocks).replace("smollm2-135m-instruct", longer_model_path.as_posix())
    exec(compile(code, page, "exec"), {})
    assert says in capsys.readouterr().out


def pages() -> list[Path]:
    return sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])


def commands_of(page: Path) -> list[list[str]]:
    """The words of every `slmq` command on a page."""
    found = []
    for block in SHELL.findall(page.read_text("utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", line):
                words = shlex.split(part, comments=True)
                if words[:1] == ["slmq"] and len(words) > 1:
                    found.append(words[1:])
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_pages_exist_and_have_these_options(page: Path) -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    for first, *words in commands_of(page):
        name = first
        if name.startswith("-") or name == "COMMAND":
            continue
        both = f"{name} {words[0]}" if words else name
        name = both if both in known else name  # a command may have two words
        assert name in known, f"{page.name}: no command {name}"
        flags = {flag for p in known[name].params for flag in getattr(p, "opts", ())}
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in {*flags, "--help"}, f"{page.name}: {name} {word}"
