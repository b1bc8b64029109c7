"""`slmq index`, `slmq ask`, and heads on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from encoder_files import sentence_folder
from typer.testing import CliRunner

import slmq
from slmq.cli.app import app

NOTES = {
    "cat.txt": "The cat eats in the rain.",
    "music.md": "# Music\n\nA man is playing the guitar.",
}


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence_folder(tmp_path_factory.mktemp("cli") / "m")


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, text in NOTES.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def test_index_and_ask(notes: Path, model: Path, longer_model_path: Path) -> None:
    done = invoke("index", notes, "--encoder", model)
    assert done.exit_code == 0, done.output
    assert f"{notes}.index: 2 added; 2 passages embedded; 2 in all, " in done.stderr
    (notes / "bad.html").write_bytes(b"\xff")
    done = invoke("index", notes, "--check", "--json")
    assert json.loads(done.stdout)["unchanged"] == 2
    assert json.loads(done.stdout)["refused"] == {
        (notes / "bad.html").as_posix(): "expected UTF-8, found the byte 0xff at 0"
    }
    done = invoke("index", notes)
    assert "bad.html: left out: expected UTF-8" in done.stderr
    # The same words are as near as can be.
    said = "A man is playing the guitar."
    question = "Music A man is playing the guitar."
    done = invoke("ask", notes, question, "--sources-only", "--top", 1)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"[1] {(notes / 'music.md').as_posix()}:3 (Music)\n    {said}\n"
    options = ("--model", longer_model_path, "--max-tokens", 4, "--top", 1)
    done = invoke("ask", f"{notes}.index", question, *options, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["found"]
    ((number, quote),) = [(source["number"], source["quote"]) for source in found["sources"]]
    assert (number, quote) == (1, said)
    streamed = invoke("ask", notes, question, *options)
    assert streamed.exit_code == 0, streamed.output
    assert streamed.stdout.startswith(found["text"])
    assert streamed.stdout.endswith(f"music.md:3 (Music)\n    {said}\n")


def test_what_no_document_holds(notes: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slmq.search import index

    invoke("index", notes, "--encoder", model)
    monkeypatch.setattr(index, "needed_fit", lambda _: 2.0)
    done = invoke("ask", notes, "What is the capital?")
    assert done.exit_code == 3
    assert done.stdout == "The documents do not hold an answer to this question.\n"
    assert "(the nearest passage fits by " in done.stderr


def test_there_is_no_index(notes: Path, tmp_path: Path) -> None:
    done = invoke("ask", notes, "What?")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "expected an index, or an empty folder for a new one" in done.stderr
    done = invoke("ask", tmp_path / "none", "What?")
    assert "there is no index; `slmq index` makes one" in done.stderr
    done = invoke("index", tmp_path / "none")
    assert done.exit_code == 1
    assert "expected a folder or a file, there is none" in done.stderr
    assert not (tmp_path / "none.index").exists()


def labelled(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


ROWS = [
    (f"the {animal} {verb} {how}", "animal" if animal in ("cat", "dog") else "person")
    for animal in ("cat", "dog", "man", "anna")
    for verb in ("eats", "lives", "is playing")
    for how in ("fast", "slow", "in paris")
]


def test_a_head_is_trained_and_used(model: Path, tmp_path: Path) -> None:
    source, head = labelled(tmp_path / "t.csv", ROWS), tmp_path / "kind.head.json"
    done = invoke("classify", "train", source, "--model", model, "--out", head)
    assert done.exit_code == 0, done.output
    assert "36 texts, 2 labels, " in done.stderr
    out, new = tmp_path / "out.csv", tmp_path / "new.txt"
    done = invoke("classify", source, "--head", head, "--out", out)
    assert "has a column 'label', which would be written over" in done.stderr
    new.write_text("\n".join(text for text, _ in ROWS), "utf-8")
    done = invoke("classify", new, "--head", head, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == 36
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with slmq.Head.open(head) as opened:
        want = opened.classify([text for text, _ in ROWS])
    assert [row["label"] for row in rows] == [one.label for (one,) in want]
    assert sum(row["label"] == label for row, (_, label) in zip(rows, ROWS, strict=True)) >= 34


def test_wrong_examples(model: Path, tmp_path: Path) -> None:
    for rows, expected in (
        ([("cat", "a"), ("dog", "")], "row 2: expected the name of a label in 'label', got ''"),
        ([("cat", "a"), ("dog", "a")], "expected at least two labels, got 'a'"),
        ([("cat", "a"), ("dog", "a"), ("x", "b")], "at least 2 examples of every label"),
        ([], "expected at least two labels, got none"),
    ):
        source = labelled(tmp_path / "t.csv", rows)
        given = ("--model", model, "--out", tmp_path / "h.json")
        done = invoke("classify", "train", source, *given)
        assert (done.exit_code, expected in done.stderr) == (1, True), done.stderr
        assert not (tmp_path / "h.json").exists()
    done = invoke("classify", source, "--out", tmp_path / "o.csv")
    assert "expected --model, --head, or both" in done.stderr
    done = invoke("classify", "train", source, "--label", "kind", "--out", tmp_path / "h.json")
    assert done.exit_code == 1
