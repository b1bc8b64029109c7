"""Settings that no result shows: measured once, kept, shared between processes, never trusted."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from golden import read_golden
from llama_files import build, feed

from slmq import _native
from slmq.plan import tuning

ISA = _native.active_isa()
TABLES = [name for name, table in _native.isa_tables().items() if table is not None]
GOLDEN = read_golden("llama", "gqa_untied")
TOKENS = [int(token) for token in GOLDEN.tokens[0][:33]]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has not measured, as tests may not leave their settings to others."""
    before = {name: _native.active_tuning(name) for name in TABLES}
    monkeypatch.setattr(tuning, "_state", tuning._State())
    monkeypatch.setenv("SLMQ_TUNE", "1")
    yield
    for name, lists in before.items():
        _native.set_tuning(name, lists)


def kept_file(cache: Path) -> Path:
    (found,) = (cache / "tuning").glob(f"{ISA}-*.json")
    return found


def test_the_first_call_measures_and_others_read(tmp_path: Path) -> None:
    tuning.ensure_tuned(tmp_path)
    first = tuning.tuned()
    assert first.why.startswith("measured by slmq ")
    assert len(first.settings) == 8
    flat = [(s.nbytes, s.second_level) for s in first.settings]
    assert _native.active_tuning(ISA) == [flat[:4], flat[4:]]
    written = kept_file(tmp_path).read_bytes()
    tuning._state = tuning._State()
    tuning.ensure_tuned(tmp_path)
    assert tuning.tuned() == first
    assert kept_file(tmp_path).read_bytes() == written


@pytest.mark.parametrize("table", TABLES)
def test_no_answer_depends_on_a_setting(table: str) -> None:
    """Any setting, also ones that no measurement would choose."""
    rng = random.Random(table)

    def logits() -> list[bytes]:
        found = []
        for fmt in ("int4", "int8", "f32"):
            plan = build(GOLDEN.folder, threads=2, isa=table, format=fmt)
            for chunk in (1, 2, 4, 7, 16, 33):
                cuts = range(chunk, len(TOKENS), chunk)
                found.append(feed(plan, plan.cache.sequence(), TOKENS, cuts).tobytes())
        return found

    wanted = logits()
    for _ in range(4):
        chosen = [
            [(rng.choice([0, 1, 64, 2048, 9216, 1 << 20]), rng.random() < 0.5) for _ in range(4)]
            for _ in range(2)
        ]
        _native.set_tuning(table, chosen)
        assert _native.active_tuning(table) == chosen
        assert logits() == wanted


def test_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMQ_TUNE", "0")
    tuning.ensure_tuned(tmp_path)
    assert tuning.tuned().why == "built in (SLMQ_TUNE=0)"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("SLMQ_TUNE", "yes")
    tuning._state = tuning._State()
    with pytest.raises(ValueError, match=r"SLMQ_TUNE: expected 0 .* or 1 .*, got 'yes'"):
        tuning.ensure_tuned(tmp_path)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """Each process would measure again, so none does."""
    file = tmp_path / "file"
    file.write_text("no folder")
    tuning.ensure_tuned(file)
    assert tuning.tuned().why.startswith("built in (a measurement cannot be kept: ")
    with pytest.raises(OSError, match="file"):
        tuning.tune(file)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({"isa": ISA, "why": "x", "settings": []}),
        json.dumps({"isa": ISA, "why": "x", "settings": [1]}),
        "\x00" * 100,
        "[" * 100_000,
    ],
    ids=["empty", "a list", "nothing in it", "no settings", "a number", "zeros", "nested"],
)
def test_a_damaged_file_is_measured_again(tmp_path: Path, text: str) -> None:
    tuning.ensure_tuned(tmp_path)
    kept_file(tmp_path).write_text(text)
    tuning._state = tuning._State()
    tuning.ensure_tuned(tmp_path)
    assert tuning.tuned().why.startswith("measured")
    assert json.loads(kept_file(tmp_path).read_text())["isa"] == ISA


def test_a_file_may_only_say_what_a_measurement_can(tmp_path: Path) -> None:
    tuning.ensure_tuned(tmp_path)
    file = kept_file(tmp_path)
    said = json.loads(file.read_text())
    for change in ({"nbytes": 12345}, {"nbytes": -1}, {"rows": "1 token"}, {"more": 1}):
        changed = said | {"settings": [said["settings"][0] | change, *said["settings"][1:]]}
        file.write_text(json.dumps(changed))
        assert tuning._kept(tmp_path / "tuning", ISA) is None
    file.write_text(json.dumps(said))
    assert tuning._kept(tmp_path / "tuning", ISA) is not None


CHILD = """
import sys
from pathlib import Path
from slmq.plan import tuning
tuning.ensure_tuned(Path(sys.argv[1]))
print(tuning.tuned().why)
"""


def test_many_processes_at_once(tmp_path: Path) -> None:
    """One measures; the others go on with what is built in, or read what it found."""
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
        for _ in range(6)
    ]
    said = [child.communicate(timeout=120)[0].strip() for child in children]
    assert [child.returncode for child in children] == [0] * 6
    assert any(line.startswith("measured by slmq ") for line in said)
    assert all(line.startswith(("measured", "built in (another process")) for line in said)
    assert [path.suffix for path in (tmp_path / "tuning").iterdir() if path.suffix] == [".json"]


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        ([[1.0, 0.5], [1.0, 0.5], [1.0, 0.5]], (1, 2.0)),
        ([[1.0, 0.98]] * 9, (0, 1.0)),  # within the spread
        ([[1.0, 0.5]] * 5 + [[0.4, 0.5]] * 4, (0, 1.0)),  # won too seldom
        ([[1.0, 0.9, 0.8]] * 4, (2, 1.25)),
        ([[1.0, 2.0]] * 4, (0, 1.0)),
    ],
)
def test_the_built_in_setting_stays_unless_one_clearly_wins(
    rounds: list[list[float]], expected: tuple[int, float]
) -> None:
    assert tuning.best_of(rounds) == expected


def test_what_the_native_part_refuses() -> None:
    timer = _native.AheadTimer(ISA, 1 << 24)
    assert len(timer.time("q4g32s", 1, [(0, False), (2048, True)])) == 2
    for rows in (0, 17):
        with pytest.raises(ValueError, match=f"rows: expected 1 to 16, got {rows}"):
            timer.time("q4g32s", rows, [(0, False)])
    with pytest.raises(ValueError, match="ahead: expected 0 to 1048576 bytes, got -1"):
        timer.time("q4g32s", 1, [(-1, False)])
    with pytest.raises(ValueError, match="expected 2 classes of weights, got 1"):
        _native.set_tuning(ISA, [[(0, False)] * 4])
    with pytest.raises(ValueError, match="expected 4 classes of rows, got 3"):
        _native.set_tuning(ISA, [[(0, False)] * 3] * 2)
