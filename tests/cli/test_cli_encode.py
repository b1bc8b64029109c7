"""`slmq embed`, `slmq rerank` and `slmq classify`: files in, files out, in order."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_files import encoder_folder, sentence_folder
from typer.testing import CliRunner

import slmq
from slmq.cli.app import app

TEXTS = ["A man is playing the guitar.", "the cat eats", "rain in paris, sun", "dog"] * 40


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence_folder(tmp_path_factory.mktemp("cli") / "m")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    rows = (json.dumps({"id": i, "text": text}) for i, text in enumerate(TEXTS))
    path.write_text("\n".join(rows), "utf-8")
    return path


def test_embed_into_an_array(model: Path, texts: Path, tmp_path: Path) -> None:
    done = invoke("embed", texts, "--model", model, "--out", tmp_path / "v.npy")
    assert done.exit_code == 0, done.output
    assert "v.npy: 160 texts; " in done.stderr
    found = np.load(tmp_path / "v.npy")
    assert found.dtype == np.float32
    assert np.array_equal(found, slmq.load_encoder(model).embed(TEXTS))
    assert not (tmp_path / "v.npy.tmp").exists()


def test_embed_beside_the_other_columns(model: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.jsonl"
    more = ("--dimensions", 10, "--no-normalize", "--format", "f32")
    done = invoke("embed", texts, "--model", model, "--out", out, *more)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["id"] for row in rows] == list(range(160))
    encoder = slmq.load_encoder(model, format="f32")
    want = encoder.embed(TEXTS, dimensions=10, normalize=False)
    assert np.array_equal(np.array([row["vector"] for row in rows], np.float32), want)


def test_embed_lines_of_text_into_csv(model: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the cat eats\n\ndog\n", "utf-8")
    out = tmp_path / "v.csv"
    assert invoke("embed", tmp_path / "t.txt", "--model", model, "--out", out).exit_code == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == ["the cat eats", "", "dog"]
    want = slmq.load_encoder(model).embed(["the cat eats", "", "dog"])
    found = np.array([json.loads(row["vector"]) for row in rows], np.float32)
    assert np.array_equal(found, want)


def test_no_texts(model: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("", "utf-8")
    out = tmp_path / "v.npy"
    assert invoke("embed", tmp_path / "t.txt", "--model", model, "--out", out).exit_code == 0
    assert np.load(out).shape == (0, 64)


def test_classify(texts: Path, tmp_path: Path) -> None:
    model = encoder_folder(tmp_path / "m", "three_labels", "roberta")
    out = tmp_path / "labels.csv"
    done = invoke("classify", texts, "--model", model, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    want = slmq.load_encoder(model).classify(TEXTS)
    assert [row["label"] for row in rows] == [scored[0].label for scored in want]
    assert [float(row["score"]) for row in rows] == [scored[0].score for scored in want]
    counted = json.loads(done.stdout)
    assert counted["rows"] == sum(counted["counts"].values()) == 160


def test_classify_pairs(tmp_path: Path) -> None:
    model = encoder_folder(tmp_path / "m", "pairs_one_score")
    rows = "a\tb\nthe cat\tthe dog\nrain\tsun\n"
    (tmp_path / "t.tsv").write_text(rows, "utf-8")
    out = tmp_path / "o.jsonl"
    done = invoke(
        "classify",
        tmp_path / "t.tsv",
        "--column",
        "a",
        "--pair",
        "b",
        "--model",
        model,
        "--out",
        out,
    )
    assert done.exit_code == 0, done.output
    scores = [json.loads(line)["score"] for line in out.read_text("utf-8").splitlines()]
    want = slmq.load_encoder(model).classify([("the cat", "the dog"), ("rain", "sun")])
    assert scores == [scored[0].score for scored in want]


def test_rerank(model: Path, texts: Path) -> None:
    done = invoke("rerank", "the cat eats", texts, "--model", model, "--top", 3, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["results"]
    assert [one["index"] for one in found] == [1, 5, 9]  # equal ones in their order
    assert "the cat eats" in invoke("rerank", "the cat", texts, "--model", model).stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 1}', "row 2 has no column 'text', only id"),
        ('{"text": 5}', "row 2: expected a text in 'text', got 5"),
        ("{", "line 2: expected JSON"),
        (json.dumps({"text": "the cat " * 100}), "text 1 has 202 tokens"),
    ],
)
def test_bad_rows_leave_no_file(model: Path, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "the cat"}\n' + line, "utf-8")
    out = tmp_path / "v.npy"
    done = invoke("embed", tmp_path / "t.jsonl", "--model", model, "--out", out)
    assert done.exit_code == 1
    assert message in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]


def test_places_that_cannot_be_written(model: Path, texts: Path, tmp_path: Path) -> None:
    done = invoke("embed", texts, "--model", model, "--out", tmp_path / "no" / "v.npy")
    assert (done.exit_code, "does not exist" in done.stderr) == (1, True)
    done = invoke("embed", texts, "--model", model, "--out", texts)
    assert (done.exit_code, "expected another file" in done.stderr) == (1, True)
