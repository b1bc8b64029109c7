"""`slmq train`: a run from the command line, gone on with, and what it says of bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from slmq.cli.app import app

RUN = [
    "--iters", "4", "--batch-size", "2", "--rank", "2", "--steps-per-report", "2",
    "--save-every", "2", "--learning-rate", "1e-3", "--max-seq-length", "60", "--threads", "1",
]  # fmt: skip


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    records = [{"prompt": f"say {i}", "completion": f"it is {i}"} for i in range(5)]
    records.append({"prompt": "say much", "completion": "much " * 20})
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "train.jsonl").write_text(text, "utf-8")
    (folder / "valid.jsonl").write_text('{"text": "it is 7"}\n', "utf-8")
    return folder


def train(model: Path, texts: Path, out: Path, *more: str) -> Result:
    arguments = ["train", str(model), "--data", str(texts), "--adapter-path", str(out)]
    return CliRunner().invoke(app, [*arguments, *RUN, *more])


def test_a_run(longer_model_path: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = train(longer_model_path, texts, out)
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    said = done.stderr
    assert "train.jsonl: 5 samples, 1 longer than 60 tokens left out (--truncate cuts them)" in said
    assert "parameters to train; 4 batches" in said
    assert "batch 2/4: loss " in said
    assert "batch 4: loss " in said
    assert f"{out}: 4 batches" in said
    assert "<svg" in (out / "training.html").read_text("utf-8")
    answered = CliRunner().invoke(
        app, ["run", str(longer_model_path), "say 1", "--adapter", str(out), "--max-tokens", "3"]
    )
    assert answered.exit_code == 0, answered.output


def test_json_and_going_on(longer_model_path: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = train(longer_model_path, texts, out, "--json", "--keys", "q_proj,v_proj", "--truncate")
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert told["iterations"] == 4
    assert [report["iteration"] for report in told["reports"]] == [2, 4]
    config = json.loads((out / "adapter_config.json").read_text("utf-8"))
    assert {name.split(".")[-1] for name in config["target_modules"]} == {"q_proj", "v_proj"}
    again = train(longer_model_path, texts, out)
    assert again.exit_code == 1
    assert "is not empty; go on with the run in it (--resume)" in again.stderr
    other = train(longer_model_path, texts, out, "--resume")
    assert other.exit_code == 1
    assert "the state of another model or rank" in other.stderr
    same = train(longer_model_path, texts, out, "--resume", "--keys", "q_proj,v_proj", "--truncate")
    assert same.exit_code == 0, same.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rank", "0"], "--rank: expected an int in 1..256"),
        (["--keys", "nothing"], "keys: expected modules of this model"),
        (["--data", "nowhere"], "nowhere: expected a folder with train.jsonl"),
    ],
)
def test_bad_options(
    more: list[str], said: str, longer_model_path: Path, texts: Path, tmp_path: Path
) -> None:
    done = train(longer_model_path, texts, tmp_path / "out", *more)
    assert done.exit_code == 1
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_whole_model(longer_model_path: Path, texts: Path, tmp_path: Path) -> None:
    out, runner = tmp_path / "out", CliRunner()
    refused = train(longer_model_path, texts, out, "--type", "full")
    assert refused.exit_code == 1
    assert "rank: expected nothing where all weights are trained" in refused.stderr
    without_rank = [*RUN[:4], *RUN[6:]]
    arguments = ["train", str(longer_model_path), "--data", str(texts), "--adapter-path", str(out)]
    done = runner.invoke(app, [*arguments, *without_rank, "--type", "full"])
    assert done.exit_code == 0, done.output
    answered = runner.invoke(app, ["run", str(out), "say 1", "--max-tokens", "3"])
    assert answered.exit_code == 0, answered.output
    packed = runner.invoke(app, ["quantize", str(out), str(tmp_path / "int8"), "--format", "int8"])
    assert packed.exit_code == 0, packed.output
    again = ["train", str(tmp_path / "int8"), "--data", str(texts), "--type", "full"]
    packed = runner.invoke(app, [*again, "--adapter-path", str(tmp_path / "other")])
    assert packed.exit_code == 1
    assert "starts from floats" in " ".join(packed.stderr.split())


def test_what_is_not_there_is_refused(longer_model_path: Path, texts: Path, tmp_path: Path) -> None:
    done = train(longer_model_path, texts, tmp_path / "out", "--type", "dora")
    assert done.exit_code == 2
    assert "dora" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs signals of POSIX")
def test_ctrl_c_leaves_a_state_to_go_on_from(
    longer_model_path: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["train", str(longer_model_path), "--data", str(texts), "--adapter-path", str(out)]
    more = [*RUN, "--iters", "100000", "--save-every", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "slmq.cli", *arguments, *more], stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not (out / "training.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted after batch" in said
    assert "the same command with --resume goes on" in said
