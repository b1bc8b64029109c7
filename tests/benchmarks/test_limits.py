"""benchmarks/limits.py: what its rows hold, on a small model."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from programs import load_program, needs_programs

pytestmark = needs_programs


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, with a shape in place of the large one."""
    module = load_program("limits", monkeypatch, positions=40)
    monkeypatch.setattr(module, "LARGE", "small")
    monkeypatch.setattr("slmq.speed.limits.PROBE_BYTES", 4 << 20)
    monkeypatch.setattr("slmq.speed.limits.PROBE_S", 0.01)
    return module


def test_rows_of_both_forms(
    limits: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slmq.speed.limits.MOST", float("inf"))  # so small a model is in the cache
    file = tmp_path / "found.json"
    names = ("decode-1.1b-q4g32s", "batch-1.1b", "prompts-1.1b", "avx2-1.1b")
    only = [part for name in names for part in ("--only", name)]
    limits.main([*only, "--runs", "2", "--gen", "2", "--json", str(file)])
    data = json.loads(file.read_text("utf-8"))
    shown = capsys.readouterr().out
    measures = [(row["measure"].split(",")[0], row["condition"]) for row in data["rows"]][:8]
    assert measures == [
        ("decode", "1 thread"),
        ("decode", "2 threads"),
        *((f"step of m = {m} over m = 1", "2 threads") for m in (2, 4, 8, 16)),
        ("prompt of 16", "2 threads"),
        ("prompt of 32", "2 threads"),  # the next is longer than the context
    ]
    for row in data["rows"]:
        assert len(row["values"]) == 2
        assert min(row["values"]) > 0
        assert row["median"] == pytest.approx(sum(row["values"]) / 2)
        assert f"| {row['measure']} | {row['condition'][0]} | {row['median']:.3f} |" in shown
    # A second set of kernels is there or its absence is told.
    assert len(data["rows"]) + len(data["skipped"]) == 9


def test_reached_is_judged_by_the_median(limits: ModuleType) -> None:
    row = limits.Row("decode", "1 thread", "", must=0.7, aim=0.9, values=[0.95, 0.6, 0.75])
    assert row.verdict() == "must"
    row.values = [0.9]
    assert row.verdict() == "aim"
    row.values = [0.69]
    assert row.verdict() == "below"
    row.at_most = True
    row.must, row.aim = 2.0, 1.5
    assert row.verdict() == "aim"
    row.values = [1.9]
    assert row.verdict() == "must"
    row.must = None
    assert row.verdict() == ""
    row.values, row.at_the_time = [1.06], [0.9]
    assert row.verdict() == "refused"


def test_a_program_that_fails_is_told(
    limits: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        limits, "SCRIPTS", {"load": [("limits.py", "--runs", "0"), ("no.py",)], "no": [("no.py",)]}
    )
    limits.main(["--only", "load", "--only", "no"])
    shown = capsys.readouterr().out
    assert "limits.py left with 2" in shown
    assert "no.py is not here" in shown


def test_bad_arguments(limits: ModuleType, tmp_path: Path) -> None:
    for arguments in (
        ["--only", "nothing"],
        ["--runs", "0"],
        ["--threads", "many"],
        ["--json", str(tmp_path / "no" / "x.json")],
    ):
        with pytest.raises(SystemExit):
            limits.main(arguments)
