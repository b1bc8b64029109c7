"""`slmq route`: choosing, training heads from a log, and the report of what was saved and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from encoder_files import sentence_folder
from tiny_heads import EASY, HARD, tiny_heads
from typer.testing import CliRunner

import slmq
from slmq.cli.app import app

MODELS = """
[[models]]
name = "small"
target = "smollm2-135m-instruct"
quality = 0.5

[[models]]
name = "large"
url = "https://api.example.com/v1/"
price_in = 2.5
price_out = 10
quality = 0.9
"""


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def write_lines(path: Path, entries: list[Any]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), "utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an encoder, heads on it, and the configuration of a router that uses both."""
    folder = tmp_path_factory.mktemp("route")
    with slmq.load_encoder(sentence_folder(folder / "m")) as encoder:
        tiny_heads(encoder).save(folder / "heads.npz")
    named = f"encoder = {json.dumps(str(folder / 'm'))}\n"
    text = named + 'heads = "heads.npz"\n[policy]\ntarget = 0.6\n' + MODELS
    (folder / "router.toml").write_text(text, "utf-8")
    return folder


def test_a_prompt(folder: Path) -> None:
    config = ("--config", folder / "router.toml")
    easy, hard = (invoke("route", text, *config, "--json") for text in (EASY[0], HARD[0]))
    assert easy.exit_code == 0, easy.output
    assert [json.loads(done.stdout)["model"] for done in (easy, hard)] == ["small", "large"]
    shown = invoke("route", HARD[0], *config, "--mode", "quality")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("large: ")
    assert "task hard, domain sums, language " in shown.stdout
    wrong = invoke("route", EASY[0], *config, "--mode", "best")
    assert wrong.exit_code != 0
    assert "mode: expected one of cheapest, balanced, quality" in wrong.stderr


def test_heads_from_a_log(folder: Path, tmp_path: Path) -> None:
    """What is hard becomes what the small model is right about."""
    config, out = folder / "router.toml", tmp_path / "mine.npz"
    entries = [
        {"text": text, "right": {"small": text in HARD, "large": i % 7 > 0}}
        for i, text in enumerate(EASY + HARD)
    ]
    log = write_lines(tmp_path / "log.jsonl", [{}, *entries])
    done = invoke("route", "train", log, "--config", config, "--out", out)
    assert done.exit_code == 0, done.output
    assert f"{out}: heads for large, small" in done.stderr
    told = invoke("route", "train", log, "--config", config, "--out", out, "--json")
    small = json.loads(told.stdout)["models"][1]
    assert (small["name"], small["rows"], small["right"]) == ("small", 54, 0.5)
    assert small["log_loss"] < 0.5 * small["usual_loss"]
    mine = tmp_path / "mine.toml"
    mine.write_text(config.read_text("utf-8").replace('"heads.npz"', '"mine.npz"'), "utf-8")
    for text, model in ((HARD[0], "small"), (EASY[0], "large")):
        chosen = invoke("route", text, "--config", mine, "--json")
        assert json.loads(chosen.stdout)["model"] == model


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], 'expected lines with "text" and "right"'),
        ([{"text": "cat", "right": {"small": True}}], "expected at least 20 judged prompts"),
        ([{"text": "cat", "right": {"small": "yes"}}], "line 1: expected"),
        ([5], "line 1: expected an object, got 5"),
    ],
)
def test_logs_that_nothing_is_learned_from(
    folder: Path, tmp_path: Path, entries: list[Any], expected: str
) -> None:
    log, out = write_lines(tmp_path / "log.jsonl", entries), tmp_path / "mine.npz"
    done = invoke("route", "train", log, "--config", folder / "router.toml", "--out", out)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "log.jsonl: " in done.stderr
    assert expected in done.stderr
    assert not out.exists()


def test_a_log_that_is_not_there_and_an_output_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    config = ("--config", folder / "router.toml")
    done = invoke("route", "train", tmp_path / "none", *config, "--out", tmp_path / "x.npz")
    assert done.exit_code == 1
    assert "none: cannot be read: No such file" in done.stderr
    entries = [{"text": t, "right": {"small": t in EASY}} for t in EASY + HARD]
    log = write_lines(tmp_path / "log.jsonl", entries)
    done = invoke("route", "train", log, *config, "--out", tmp_path / "gone" / "x.npz")
    assert done.exit_code == 1
    assert "x.npz: cannot be written: No such file" in done.stderr
    done = invoke("route", "train", log, "--config", tmp_path / "none.toml", "--out", "x.npz")
    assert done.exit_code == 1
    assert "none.toml: cannot be read: No such file" in done.stderr


def request_of(chosen: str, answered: str | None, *, shadow: bool = False, **more: Any) -> Any:
    price = 0.0 if (chosen if shadow else answered or chosen) == "small" else 0.0035
    return {
        "chosen": chosen,
        "answered": answered,
        "shadow": shadow,
        "p_right": {"small": 0.6, "large": 0.9},
        "reference": "large",
        "reference_right": 0.9,
        "cost": price,
        "reference_cost": 0.0035,
        **more,
    }


def test_the_report(tmp_path: Path) -> None:
    both = {"right": {"small": True, "large": True}}
    entries = [
        request_of("small", "small", **both),
        request_of("small", "small", right={"small": False, "large": True}),
        request_of("small", "large"),
        request_of("large", None),
        request_of("small", "large", shadow=True),
    ]
    log = write_lines(tmp_path / "log.jsonl", entries)
    done = invoke("route", "report", log)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(
        "5 requests: 60.0% of the cost of large saved, 80.0% of its quality kept; of 2 judged "
        "requests 50.0% were right, with large alone 100.0%\n"
    )
    assert "1 requests that no model answered" in done.stderr
    assert "1 requests that another model answered than the chosen one" in done.stderr
    assert "1 requests in shadow: the reference answered them all the same" in done.stderr
    found = json.loads(invoke("route", "report", log, "--json").stdout)
    assert found["models"] == {"small": 3, "large": 2}
    assert found["saving"] == pytest.approx(0.6)
    assert found["quality_kept"] == pytest.approx(0.8)


def test_reports_of_no_log(tmp_path: Path) -> None:
    for text, expected in (
        ("", "expected lines of a router's log, found none"),
        ('{"chosen": "x"}\n', "request 1: KeyError: 'shadow'"),
        ("no\n{}\n", "line 1: expected JSON"),
    ):
        (tmp_path / "log").write_text(text, "utf-8")
        done = invoke("route", "report", tmp_path / "log")
        assert (done.exit_code, done.stdout) == (1, "")
        assert expected in done.stderr
