"""The commands about models on disk and in the catalogue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import slmq
from slmq import hub
from slmq.cli.app import app
from slmq.cli.options import complete_model

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the models of whoever runs it."""
    monkeypatch.setenv("SLMQ_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def invoke(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return RUNNER.invoke(app, [str(argument) for argument in arguments], input=stdin)


def test_show_reads_headers_only(tiny_model_path: Path, tmp_path: Path) -> None:
    found = json.loads(invoke("show", tiny_model_path, "--json").stdout)
    weights = tiny_model_path / "model.safetensors"
    assert found == {
        "name": "tiny-llama",
        "architecture": "llama",
        "supported": True,
        "parameters": found["parameters"],
        "format": found["format"],
        "bytes": weights.stat().st_size,
        "memory": "huge: packed into 2 MiB pages while loading",
        "context": 128,
        "licence": None,
        "path": str(tiny_model_path),
    }
    with slmq.load(tiny_model_path) as model:
        assert found["parameters"] == model.engine.info.parameters
    assert found["format"].startswith("safetensors f")
    people = invoke("show", tiny_model_path).stdout
    assert "128 tokens" in people
    assert "not stated" in people


def test_show_describes_what_it_cannot_run(tiny_model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    config = json.loads((tiny_model_path / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}), "utf-8")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(tiny_model_path / name)
    found = json.loads(invoke("show", folder, "--json").stdout)
    assert (found["architecture"], found["supported"]) == ("mamba", False)
    assert "no, slmq cannot run it" in invoke("show", folder).stdout
    assert "architecture 'mamba'" in invoke("run", folder, "Hi").stderr


def test_show_knows_the_catalogue() -> None:
    found = json.loads(invoke("show", "smollm2-135m-instruct", "--json").stdout)
    assert found["licence"] == "Apache-2.0"
    assert found["path"] is None
    people = invoke("show", "smollm2-135m-instruct").stdout
    assert "not downloaded" in people
    assert "temperature 0.2, top_p 0.9" in people
    assert "repository" not in people
    people = invoke("show", "qwen2.5-0.5b-instruct").stdout
    assert "Qwen/Qwen2.5-0.5B-Instruct" in people
    assert "32,768 tokens" in people
    assert "repetition_penalty 1.1" in people


def test_list_shows_the_catalogue() -> None:
    found = json.loads(invoke("list", "--catalogue", "--json").stdout)
    known = {model["name"]: model for model in found}
    assert known["phi-4"]["licence"] == "MIT"
    assert known["gemma-2-2b-it"]["repository"] == "google/gemma-2-2b-it"
    assert known["smollm2-135m-instruct"]["supported"]
    table = invoke("list", "--catalogue").stdout
    assert all(name in table for name in known)
    assert "494 M" in table


def test_list_and_rm_of_a_pulled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = invoke("list")
    assert found.stdout == ""
    assert "smollm2-135m-instruct" in found.stderr
    assert json.loads(invoke("list", "--json").stdout) == []
    entry = hub.catalogue()["smollm2-135m-instruct"]
    file = tmp_path / "cache" / "models" / entry.name / entry.file
    file.parent.mkdir(parents=True)
    with file.open("wb") as f:
        f.truncate(entry.bytes)  # a hole: the size is right, the disk is not filled
    assert json.loads(invoke("list", "--json").stdout) == [
        {
            "name": entry.name,
            "path": str(file),
            "bytes": entry.bytes,
            "source": "catalogue",
            "revision": None,
            "licence": "Apache-2.0",
        }
    ]
    assert "98.4 MB" in invoke("list").stdout
    assert invoke("pull", entry.name).stdout == f"{file}\n"
    assert json.loads(invoke("pull", entry.name, "--json").stdout)["bytes"] == entry.bytes
    freed = json.loads(invoke("rm", entry.name, "--json").stdout)
    assert freed == {"name": entry.name, "bytes": entry.bytes}
    assert not file.exists()


def test_the_catalogue_tells_sizes_and_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmq.machine.memory.available_memory_bytes", lambda: 2 * 10**9)
    entry = hub.catalogue()["smollm2-135m-instruct"]
    file = tmp_path / "cache" / "models" / entry.name / entry.file  # type: ignore[attr-defined]
    file.parent.mkdir(parents=True)
    with file.open("wb") as f:
        f.truncate(entry.bytes)  # type: ignore[attr-defined]
    found = {e["name"]: e for e in json.loads(invoke("list", "--catalogue", "--json").stdout)}
    small, large = found[entry.name], found["mistral-7b-instruct-v0.3"]
    assert (small["download_bytes"], small["pulled"], small["fits"]) == (98_362_432, True, True)
    assert small["memory_bytes"] > small["download_bytes"]
    assert (large["pulled"], large["fits"]) == (False, False)
    assert large["download_bytes"] == 2 * large["parameters"]
    assert all(e["memory_bytes"] for e in found.values())
    shown = invoke("list", "--catalogue")
    lines = {line.split()[0]: line.split() for line in shown.stdout.splitlines() if line.strip()}
    assert lines[entry.name][1:] == [
        "135", "M", "98.4", "MB", "246.7", "MB", "pulled", "Apache-2.0",
    ]  # fmt: skip
    assert lines["mistral-7b-instruct-v0.3"][1:7] == ["7.2", "B", "14.5", "GB", "5.4", "GB"]
    assert "too large" in shown.stdout
    assert "2.0 GB available now" in shown.stderr


def test_names_are_known_in_any_case() -> None:
    for name in ("smollm2-135m-instruct", "SmolLM2-135M-Instruct"):
        assert json.loads(invoke("show", name, "--json").stdout)["name"] == "smollm2-135m-instruct"
        asked = invoke("run", name, "Hi", "--offline")
        assert "slmq: smollm2-135m-instruct is not in the cache" in asked.stderr
        assert "--offline forbids downloading it" in asked.stderr
        assert "no model" in invoke("rm", name).stderr
    assert complete_model("SmolLM2-1") == ["smollm2-1.7b-instruct", "smollm2-135m-instruct"]
