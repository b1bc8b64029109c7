"""Options of commands: made of dataclasses, the same for every command that loads a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

import slmq
from slmq.cli.app import app
from slmq.engine.options import LoadOptions
from slmq.generation.params import SamplingParams
from slmq.settings import option_of

RUNNER = CliRunner()


def invoke(*arguments: object, stdin: str | None = None) -> Result:
    return RUNNER.invoke(app, [str(argument) for argument in arguments], input=stdin)


def flags_of(command: str) -> dict[str, Any]:
    """The options of a command by spelling."""
    found = get_command(app).commands[command]  # type: ignore[attr-defined]
    return {flag: p for p in found.params for flag in getattr(p, "opts", ())}


def flags_for(kind: type) -> dict[str, str]:
    """Flag and help of every field of an options dataclass."""
    found = {}
    for entry in fields(kind):
        option = option_of(entry)
        found[option.flag or "--" + entry.name.replace("_", "-")] = option.help
    return found


SERVING_ONLY = {"--kv-bytes", "--draft"}


@pytest.mark.parametrize("command", ["run", "chat", "batch", "perplexity", "eval", "compare"])
def test_commands_that_load_take_the_same_options(command: str) -> None:
    shown = flags_of(command)
    measures = command not in ("run", "chat", "batch")
    for flag, text in flags_for(LoadOptions).items():
        if measures and flag in SERVING_ONLY:  # where nothing is answered they would do nothing
            assert flag not in shown
            continue
        assert shown[flag].help == text
        assert not shown[flag].required


@pytest.mark.parametrize("command", ["bench", "profile"])
def test_commands_that_measure_take_them_too(command: str) -> None:
    # --format also names those of shapes, --threads of bench is a list.
    shown = flags_of(command).keys()
    assert flags_for(LoadOptions).keys() - SERVING_ONLY <= shown
    assert not SERVING_ONLY & shown


@pytest.mark.parametrize("command", ["run", "chat"])
def test_commands_that_answer_take_every_sampling_parameter(command: str) -> None:
    shown = flags_of(command)
    wanted = flags_for(SamplingParams)
    if command == "chat":  # which has no place for them
        for flag in ("logprobs", "tools", "tool-choice", "parallel-tool-calls", "dialect"):
            del wanted[f"--{flag}"]
    for flag, text in wanted.items():
        assert shown[flag].help == text


def test_options_reach_the_model(tiny_model_path: Path) -> None:
    words = ("--max-tokens", 12, "--ignore-eos", "--raw", "--json", "--logprobs", 0)
    options = {"format": "int4", "kv_dtype": "f32", "activations": "exact", "n_ctx": 64}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    found = json.loads(invoke("run", tiny_model_path, "Hi", *words, *flags).stdout)
    with slmq.load(tiny_model_path, **options) as m:  # type: ignore[arg-type]
        wanted = m.generate("Hi", max_tokens=12, ignore_eos=True, logprobs=0)
    assert wanted.logprobs is not None
    assert [e["logprob"] for e in found["logprobs"]] == [e.logprob for e in wanted.logprobs]
    # And they matter: with other activations the numbers are others.
    mixed = json.loads(invoke("run", tiny_model_path, "Hi", *words, *flags[:2]).stdout)
    assert mixed["logprobs"] != found["logprobs"]


def test_a_draft_and_a_small_cache_on_the_command_line(tiny_model_path: Path) -> None:
    words = ("--max-tokens", 30, "--ignore-eos", "--raw", "--json")
    plain = json.loads(invoke("run", tiny_model_path, "Hi", *words).stdout)
    more = ("--draft", tiny_model_path, "--kv-bytes", "200kB")
    drafted = json.loads(invoke("run", tiny_model_path, "Hi", *words, *more).stdout)
    assert drafted["tokens"] == plain["tokens"]
    small = invoke("run", tiny_model_path, "Hi", *words, "--kv-bytes", "10")
    assert "--kv-bytes: expected at least" in small.stderr or "kv_bytes: expected" in small.stderr
    refused = invoke("run", tiny_model_path, "Hi", "--kv-bytes", "lots")
    assert "--kv-bytes: expected a number of bytes" in refused.stderr


def test_chat_goes_on_after_end_tokens(tiny_model_path: Path) -> None:
    found = invoke("chat", tiny_model_path, "--max-tokens", 40, "--ignore-eos", stdin="Hi\n")
    with slmq.load(tiny_model_path) as m, m.chat(max_tokens=40, ignore_eos=True) as session:
        assert found.stdout == session.send("Hi").text + "\n"


def test_the_former_name_of_a_flag_is_taken_and_named(tiny_model_path: Path) -> None:
    words = ("--raw", "--max-tokens", 8, "--ignore-eos")
    new = invoke("run", tiny_model_path, "Hi", *words, "--format", "int8")
    old = invoke("run", tiny_model_path, "Hi", *words, "--quant", "int8")
    assert (old.exit_code, old.stdout) == (0, new.stdout)
    assert (new.stderr, old.stderr) == ("", "--quant is now called --format\n")
    for command in ("run", "chat", "perplexity", "eval", "bench", "profile"):
        assert flags_of(command)["--quant"].hidden
    assert flags_of("compare")["--quant-a"].hidden


def test_two_models_may_differ(tiny_model_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("Some text, of a tiny model. " * 8, "utf-8")
    arguments = ("compare", tiny_model_path, tiny_model_path, "--file", file, "--ctx", 32, "--json")
    same = json.loads(invoke(*arguments, "--format", "int4").stdout)
    assert (same["kl_max"], same["top1_agreement"]) == (0, 1)
    assert json.loads(invoke(*arguments, "--format-b", "int4").stdout)["kl_max"] > 0
    both = invoke(*arguments, "--format", "f32", "--format-a", "int4", "--format-b", "int4")
    assert json.loads(both.stdout) | {"seconds": 0} == same | {"seconds": 0}
    refused = invoke(*arguments, "--kv-dtype-b", "f12")
    assert "--kv-dtype-b: expected one of" in refused.stderr


def completions(*words: str) -> list[str]:
    """What bash would offer for the last word."""
    environment = {
        **os.environ,
        "_SLMQ_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["slmq", *words]),
        "COMP_CWORD": str(len(words)),
    }
    code = "from slmq.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout.split()


def test_the_shell_completes_models_and_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLMQ_CACHE_DIR", str(tmp_path))
    assert "smollm2-135m-instruct" in completions("run", "smol")
    assert completions("run", "m", "p", "--kv-dtype", "f") == ["f16", "f32"]
    assert completions("run", "m", "p", "--activations", "e") == ["exact"]
    assert "--install-completion" in invoke("--help").stdout
