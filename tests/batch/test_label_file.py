"""`slmq label`: rows of files with their labels, resumed, and compared with the right ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shell_command import last_line, slmq

from slmq import load
from slmq.batch.confusion import Confusion
from slmq.batch.label_file import LabelJob, label_file
from slmq.batch.table import read_table
from slmq.errors import DataError, WriteError
from slmq.generation.model import Model

LABELS = ["good", "bad"]
ROWS = [('fine, "really"', "good"), ("awful\nday", "bad"), ("日本", "bad"), ("", "good")] * 12


@pytest.fixture(scope="module")
def model(tiny_model_path: Path) -> Iterator[Model]:
    with load(tiny_model_path, n_ctx=512) as loaded:
        yield loaded


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"in{suffix}"
    if suffix == ".jsonl":
        lines = [json.dumps({"text": text, "right": right, "n": 1}) for text, right in ROWS]
        path.write_text("\n".join(lines), "utf-8")
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "right"), *ROWS])
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_rows_keep_their_columns_and_get_labels(model: Model, tmp_path: Path, suffix: str) -> None:
    job = LabelJob(
        written(tmp_path, suffix), tmp_path / f"out{suffix}", "text", LABELS, true="right"
    )
    told: list[tuple[int, int]] = []
    done = label_file(model, job, lambda *now: told.append(now))
    wanted = model.label([text for text, _ in ROWS], LABELS)
    rows = list(read_table(job.target))
    assert [row["text"] for row in rows] == [text for text, _ in ROWS]
    assert [row["predicted"] for row in rows] == [one.label for one in wanted]
    assert [float(row["probability"]) for row in rows] == [one.probability for one in wanted]
    each = [row["probabilities"] for row in rows]
    each = [json.loads(one) if isinstance(one, str) else one for one in each]
    assert each == [one.probabilities for one in wanted]
    assert told == [(0, 48), (32, 48), (48, 48)]
    right = sum(one.label == true for one, (_, true) in zip(wanted, ROWS, strict=True))
    assert done.confusion is not None
    assert done.confusion.accuracy == right / len(ROWS)
    assert sum(done.counts.values()) == done.rows == 48
    assert not list(tmp_path.glob("*.part"))


def test_a_run_goes_on_where_it_was(model: Model, tmp_path: Path) -> None:
    """Killed after any number of rows: the same bytes, and no row twice."""
    source = written(tmp_path, ".jsonl")
    whole = LabelJob(source, tmp_path / "whole.jsonl", "text", LABELS)
    label_file(model, whole)

    class StopError(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done:
            raise StopError

    job = LabelJob(source, tmp_path / "out.jsonl", "text", LABELS)
    with pytest.raises(StopError):
        label_file(model, job, stop)
    assert not job.target.exists()
    part = tmp_path / "out.jsonl.part"
    part.write_bytes(part.read_bytes()[:-7])  # the last line is torn
    assert label_file(model, job).resumed == 31
    assert job.target.read_bytes() == whole.target.read_bytes()
    other = LabelJob(source, tmp_path / "out.jsonl", "text", ["bad", "good"])
    assert label_file(model, other).resumed == 0


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", "text\n", {"column": "body"}, None),
        ("a.csv", "text\nx\n", {"column": "body"}, r"row 1: expected a column 'body', got"),
        ("a.csv", "text,right\nx,7\n", {"true": "right"}, r"'right': expected one of good, bad"),
        ("a.csv", 'text\n"x\n', {}, "unexpected end of data"),
        ("a.csv", "text,b\nx\n", {}, "row 2: expected 2 cells, got 1"),
        ("a.csv", "text,text\nx,y\n", {}, "two columns have the same name"),
        ("a.csv", "text,predicted\nx,y\n", {}, "would be written over"),
        ("a.jsonl", "[1]\n", {}, "line 1: expected an object, got list"),
        ("a.jsonl", '{"text": 5}\n', {}, "row 1: 'text': expected a text, got 5"),
        ("a.jsonl", "{", {}, "line 1: expected JSON"),
        ("absent.csv", None, {}, "cannot be read: No such file"),
    ],
)
def test_files_that_are_wrong_are_told_before_anything_is_done(
    model: Model, tmp_path: Path, name: str, content: Any, options: Any, message: str | None
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, "utf-8")
    job = LabelJob(tmp_path / name, tmp_path / "out.csv", **{"column": "text", **options},
                   labels=LABELS)  # fmt: skip
    if message is None:
        assert label_file(model, job).rows == 0
        return
    with pytest.raises(DataError, match=message):
        label_file(model, job)
    assert not job.target.exists()


def test_the_output_is_another_file(tmp_path: Path) -> None:
    source = written(tmp_path, ".csv")
    for target in (source, tmp_path, tmp_path / "absent" / "out.csv"):
        with pytest.raises(WriteError):
            LabelJob(source, target, "text", LABELS).check()


def test_files_without_headings_have_numbers(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('so "good\t0\nbad\t1\n', "utf-8")
    job = LabelJob(tmp_path / "a.tsv", tmp_path / "o.jsonl", "1", LABELS, true="2", header=False)
    done = label_file(model, job)
    assert done.rows == 2
    assert done.confusion is not None
    assert [sum(row) for row in done.confusion.counts] == [1, 1]
    assert next(read_table(job.target))["1"] == 'so "good'


def test_a_confusion_matrix_counts(tmp_path: Path) -> None:
    found = Confusion.of(["a", "b", "c"], [("a", "a"), ("a", "b"), ("b", "b"), ("a", "a")])
    assert found.counts == ((2, 1, 0), (0, 1, 0), (0, 0, 0))
    assert found.accuracy == 0.75
    assert found.recalls == {"a": 2 / 3, "b": 1.0, "c": None}
    assert Confusion.of(["a", "b"], []).accuracy == 0.0
    pytest.importorskip("matplotlib")
    found.draw(tmp_path / "m.svg", "title")
    drawn = (tmp_path / "m.svg").read_text("utf-8")
    assert "accuracy 75.0%" in drawn
    assert "67%" in drawn


def test_the_command(tiny_model_path: Path, tmp_path: Path) -> None:
    source, out = written(tmp_path, ".csv"), tmp_path / "out.csv"
    args = ("label", source, "--model", tiny_model_path, "--column", "text", "--out", out)
    named = (
        *args,
        "--labels",
        "good, bad",
        "--calibrate",
        "--example",
        "good=so fine",
        "--n-ctx",
        512,
    )
    plot = tmp_path / "m.svg"
    run = slmq(*named, "--true", "right", "--plot", plot)
    assert run.returncode == 0
    assert b"accuracy" in run.stdout
    assert "48 rows" in last_line(run)
    assert "accuracy" in plot.read_text("utf-8")
    shown = json.loads(slmq(*named, "--true", "right", "--json").stdout)
    assert shown.keys() >= {"rows", "counts", "rows_per_s", "accuracy", "confusion"}
    for more, message in [
        (("--plot", plot), "--plot needs --true"),
        (("--example", "good"), "--example: expected LABEL=TEXT"),
        (("--true", "absent"), "expected a column 'absent'"),
    ]:
        wrong = slmq(*args, "--labels", "good,bad", *more)
        assert wrong.returncode == 1
        assert message in last_line(wrong)
