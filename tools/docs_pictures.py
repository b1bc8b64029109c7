#!/usr/bin/env python3
"""Draws the pictures of the documentation, from what the commands really print.

    tools/docs_pictures.py                    all of them, into docs/pictures
    tools/docs_pictures.py chat profile       some

Terminal sessions run in a pseudo-terminal and become SVG that follows the colour scheme. The
sessions use `smollm2-135m-instruct`, which must be in the cache; needs pyte and matplotlib, and for
the notebook nbclient and ipykernel.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, MONOKAI, TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
NOTEBOOK = ROOT / "examples" / "first_steps.ipynb"
MODEL = "smollm2-135m-instruct"
WIDTH = 88
SWITCH = """<style>
.dark { display: none }
@media (prefers-color-scheme: dark) { .dark { display: inline } .light { display: none } }
</style>"""
THEMES = {"light": DEFAULT_TERMINAL_THEME, "dark": MONOKAI}
Step = tuple[str, bytes]  # what the screen shows before these keys are pressed


def session(command: Sequence[str], steps: Sequence[Step] = (), folder: Path = ROOT) -> bytes:
    """What a command writes, run in a terminal with a person who presses keys."""
    pid, screen = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ |= {"COLUMNS": str(WIDTH), "LINES": "40", "TERM": "xterm-256color"}
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        os.execvp(command[0], list(command))
    shown, waiting = b"", list(steps)
    seen = 0
    while True:
        if waiting and waiting[0][0].encode() in shown[seen:]:
            seen = len(shown)
            time.sleep(0.3)
            os.write(screen, waiting.pop(0)[1])
        try:
            if select.select([screen], [], [], 0.1)[0]:
                shown += os.read(screen, 65536)
        except OSError:
            break
    os.waitpid(pid, 0)
    return shown


def settled(written: bytes) -> Text:
    """What stays on the screen, with its colours."""
    screen = pyte.Screen(WIDTH, 200)
    pyte.ByteStream(screen).feed(written)
    lines = []
    for row in range(screen.cursor.y + 1):
        chars = [screen.buffer[row][column] for column in range(WIDTH)]
        line = Text()
        for (fg, bold), run in groupby(chars, lambda char: (char.fg, char.bold)):
            color = None if fg in ("default", "brown") else fg
            if color is not None and re.fullmatch("[0-9a-f]{6}", color):
                color = f"#{color}"  # pyte's own way to write one of 256
            line.append("".join(char.data for char in run), Style(color=color, bold=bold))
        line.rstrip()
        lines.append(line)
    home = str(Path.home())
    lines = [Text(line.plain.replace(home, "~")) if home in line.plain else line for line in lines]
    while lines and not lines[-1].plain.strip(" >"):
        lines.pop()
    return Text("\n").join(lines)


def terminal(name: str, title: str, parts: Sequence[tuple[str, Text]], sign: str = "$") -> None:
    """A picture of commands and what they printed, in both colour schemes."""
    drawn = []
    for scheme, theme in THEMES.items():
        console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
        for command, output in parts:
            if command:
                console.print(Text(f"{sign} {command}", style="bold"))
            console.print(output)
        drawn.append(svg_of(console, title, theme, scheme))
    head = re.match(r"<svg[^>]*>", drawn[0])
    assert head is not None
    box = head[0].replace('class="light"', 'class="both"')
    (PICTURES / f"{name}.svg").write_text(f"{box}\n{SWITCH}\n" + "\n".join(drawn) + "\n</svg>\n")


def svg_of(console: Console, title: str, theme: TerminalTheme, scheme: str) -> str:
    """An SVG that fetches no fonts, of class `scheme`."""
    text = console.export_svg(title=title, theme=theme, clear=True, unique_id=f"slmq-{scheme}")
    text = re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    return text.replace('class="rich-terminal"', f'class="{scheme}"', 1).strip()


def printed(command: str, folder: Path = ROOT) -> tuple[str, Text]:
    """A command as it is typed, and what it prints in a terminal."""
    return command, settled(session(shlex.split(command), folder=folder))


# --- the pictures -----------------------------------------------------------------------------


def draw_first() -> None:
    """The first answer, and where to look for a better model."""
    parts = [
        printed(f'slmq run {MODEL} "What is a small language model?" --seed 3'),
        printed(f"slmq show {MODEL}"),
    ]
    terminal("first", "first answer", parts)


def draw_catalogue() -> None:
    """What fits the memory."""
    terminal("catalogue", "which model", [printed("slmq list --catalogue")])


def draw_chat() -> None:
    """A chat with a paste, an interrupted answer and a command."""
    poem = "What is this poem about? In one sentence.\nThe rain has stopped,\nthe road is bright."
    pasted = b"\x1b[200~" + poem.encode().replace(b"\n", b"\r") + b"\x1b[201~\r"
    steps: list[Step] = [
        (">>> ", b"What is the capital of France?\r"),
        (">>> ", pasted),
        (">>> ", b"Write a long story about a lighthouse.\r"),
        ("lighthouse.", b""),
        (" and ", b"\x03"),
        (">>> ", b"/undo\r"),
        (">>> ", b"\x04"),
    ]
    command = f"slmq chat {MODEL} --temperature 0"
    terminal("chat", "chat", [(command, settled(session(shlex.split(command), steps)))])


def draw_python() -> None:
    """Python with its bars, also as they are half-way."""
    lines = [
        "import slmq",
        f'm = slmq.load("{MODEL}")',
        'print(m.ask("What is the capital of France?", temperature=0))',
        'answers = list(m.map(["One and", "Two and"] * 32, max_tokens=16, progress=True))',
        "len(answers)",
    ]
    steps: list[Step] = [(">>> ", line.encode() + b"\r") for line in lines]
    written = session([sys.executable, "-q"], [*steps, (">>> ", b"\x04")])
    frames = [part for part in re.split(rb"[\r\n]", written) if part.startswith(b"answers |")]
    half = frames[len(frames) // 2].decode().strip()
    parts = [("python -q", settled(written)), ("# the bar, half-way", Text(half))]
    terminal("python", "python", parts)


def draw_notebook() -> None:
    """The cells of a notebook, with a bar as it is half-way."""
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, kernel_name="python3", record_timing=False).execute()
    parts = []
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        streams = [output for output in cell.outputs if output.output_type == "stream"]
        written = "".join(output.text for output in streams)
        frames = [part.rstrip() for part in re.split(r"[\r\n]", written) if "|#" in part]
        last = settled(written.replace("\n", "\r\n").encode()).plain
        results = [output for output in cell.outputs if output.output_type != "stream"]
        cell.outputs = [nbformat.v4.new_output("stream", text=last + "\n")] if last else []
        cell.outputs += results
        shown = [frames[len(frames) // 2] + "   (half-way)"] if frames else []
        shown += [last] if last else []
        shown += [output.data["text/plain"] for output in results]
        source = cell.source.replace("\n", "\n        ")
        parts.append((f"[{cell.execution_count}]: {source}", Text("\n".join(shown))))
    nbformat.write(notebook, NOTEBOOK)
    terminal("notebook", NOTEBOOK.name, parts, sign="In")


def draw_profile() -> None:
    """Where the time of a token goes."""
    file = PICTURES / "profile.svg"
    subprocess.run(
        [sys.executable, "-m", "slmq.cli", "profile", MODEL, "--plot", str(file)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def draw_report() -> None:
    """The report of a quantization, as the page that it is."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        subprocess.run(["slmq", "dequantize", MODEL, "float"], cwd=folder, check=True)
        text = folder / "text.txt"
        text.write_text((ROOT / "docs" / "quality.md").read_text("utf-8"), "utf-8")
        command = "slmq quantize float int4 --report report.html"
        parts = [printed(command, folder)]
        parts.append(printed("slmq compare float int4 --file text.txt --chunks 1", folder))
        terminal("quantize", "quantize", parts)
        (PICTURES / "report.html").write_bytes((folder / "report.html").read_bytes())


DRAW: dict[str, Callable[[], None]] = {
    "first": draw_first,
    "catalogue": draw_catalogue,
    "chat": draw_chat,
    "python": draw_python,
    "notebook": draw_notebook,
    "profile": draw_profile,
    "report": draw_report,
}


def main() -> None:
    """Draw what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="*", help=", ".join(DRAW))
    PICTURES.mkdir(exist_ok=True)
    for name in parser.parse_args().pictures or DRAW:
        DRAW[name]()
        print(name)


if __name__ == "__main__":
    main()
