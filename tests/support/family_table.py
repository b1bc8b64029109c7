"""Write the table of docs/families.md: which goldens, by name, are tested from which files.

What stands there is what pytest collects, so it says what runs and nothing else::

    python tests/support/family_table.py            # renews docs/families.md
    python tests/support/family_table.py --check    # fails if the page is out of date
"""

from __future__ import annotations

import contextlib
import io
import sys
import textwrap
from collections import defaultdict

import pytest
from places import TESTS

PAGE = TESTS.parent / "docs" / "families.md"
BEGIN = "<!-- families: written by `python tests/support/family_table.py` -->\n"
WIDTH = 110  # of lines in Markdown
END = "<!-- end of families -->\n"
FILES = (
    "test_families.py",
    "test_llama.py",
    "test_quantized_families.py",
    "test_quantized_files.py",
)

# Tests whose parameters say what a family is tested with, and the column that they fill.
SAFETENSORS, GGUF, PACKED = "safetensors", "GGUF", "GPTQ, AWQ, compressed-tensors"
COLUMNS = {
    "test_float32_agrees_with_transformers": SAFETENSORS,
    "test_gguf_gives_the_logits_of_safetensors": GGUF,
    "test_packed_weights_are_their_values": PACKED,
}
TYPES = "test_gguf_of_every_type_is_its_dequantized_model"
LAYOUTS = "test_quantized_folder_is_its_dequantized_model"
METHODS = {"gptq": "GPTQ", "awq": "AWQ"}

Found = dict[str, list[str]]  # what is tested, without repeats, in the order of the tests


class Collected:
    """A pytest plugin that keeps what was collected."""

    def __init__(self) -> None:
        self.cells: dict[str, Found] = defaultdict(lambda: defaultdict(list))
        self.types: list[str] = []
        self.layouts: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Sort the parameters of the known tests by family."""
        for item in session.items:
            call = getattr(item, "callspec", None)
            if not isinstance(item, pytest.Function) or call is None:
                continue
            name, values = item.originalname, call.params
            if name in COLUMNS:
                # Scalings of rope are shown on Llamas.
                family = values.get("family", "llama").replace("rope", "llama")
                what = METHODS.get(values.get("method", ""), values.get("method", values["name"]))
                add(self.cells[family][COLUMNS[name]], what)
            elif name == TYPES:
                add(self.types, values["kind"].upper())
            elif name == LAYOUTS:
                add(self.layouts, values["name"])


def add(found: list[str], what: str) -> None:
    """Append what is not there yet, as people read it."""
    text = what.replace("_", " ") if what.islower() else what
    if text not in found:
        found.append(text)


def collect() -> Collected:
    """What pytest would run."""
    found = Collected()
    arguments = ["--collect-only", "-q", "-p", "no:cacheprovider", "--rootdir", str(TESTS.parent)]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        code = pytest.main(
            [*arguments, *(str(TESTS / "models" / name) for name in FILES)], plugins=[found]
        )
    if code != pytest.ExitCode.OK:
        raise SystemExit(f"pytest could not collect the tests:\n{told.getvalue()}")
    return found


def table(found: Collected) -> str:
    """The table and the lines under it."""
    columns = [SAFETENSORS, GGUF, PACKED]
    lines = [f"| family | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for family in sorted(found.cells):
        cells = [", ".join(found.cells[family][column]) or "–" for column in columns]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    types = ", ".join(found.types).replace("Q4_K_M", "a mix as Q4_K_M")
    notes = [
        f"GGUF types, each as a whole model: {types}.",
        f"Folders that others quantized, each as a whole model: {'; '.join(found.layouts)}.",
    ]
    return "\n".join([*lines, *(f"\n{textwrap.fill(note, WIDTH)}" for note in notes), ""])


def renewed(page: str, text: str) -> str:
    """The page with the table between its marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"docs/families.md: expected a line {BEGIN!r} and later {END!r}")
    return before + begin + text + end + after


def main() -> int:
    """The command line; returns the exit code."""
    page = PAGE.read_text("utf-8")
    wanted = renewed(page, table(collect()))
    if sys.argv[1:] == ["--check"]:
        if page != wanted:
            print(f"{PAGE.name}: its table is out of date: python tests/support/family_table.py")
        return int(page != wanted)
    PAGE.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
