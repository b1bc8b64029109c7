"""The command line, in this process and as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from terminal import command
from typer.main import get_command
from typer.testing import CliRunner, Result

import slmq
from slmq.cli.app import COMMANDS, app
from slmq.cli.doctor import reports_go_to, warnings_of
from slmq.cli.errors import one_line
from slmq.cli.output import cancel_on_interrupt, laid_out

RUNNER = CliRunner()
WORDS = ["--max-tokens", "8", "--ignore-eos"]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and terminals of POSIX")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the models of whoever runs it, or their settings."""
    monkeypatch.setenv("SLMQ_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("SLMQ_ISA", "SLMQ_NUM_THREADS", "SLMQ_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_template(tiny_model_path: Path, tmp_path: Path) -> Path:
    """The tiny model without its chat template."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for file in tiny_model_path.iterdir():
        if file.name != "tokenizer_config.json":
            (folder / file.name).symlink_to(file)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}', "utf-8")
    return folder


def invoke(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return RUNNER.invoke(app, [str(argument) for argument in arguments], input=stdin)


def text_of(model: Path, prompt: Any, **params: Any) -> str:
    with slmq.load(model) as m:
        return m.generate(prompt, max_tokens=8, ignore_eos=True, **params).text


# ------------------------------------------------------------------ run


def test_run_answers_a_user_message(tiny_model_path: Path) -> None:
    found = invoke("run", tiny_model_path, "Hi", *WORDS)
    assert found.exit_code == 0
    assert found.stdout == text_of(tiny_model_path, [{"role": "user", "content": "Hi"}]) + "\n"
    assert found.stderr == ""


def test_run_puts_the_system_message_first(tiny_model_path: Path) -> None:
    found = invoke("run", tiny_model_path, "Hi", "--system", "Be brief", *WORDS)
    chat = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
    assert found.stdout == text_of(tiny_model_path, chat) + "\n"


def test_run_raw_continues_the_text(tiny_model_path: Path, no_template: Path) -> None:
    wanted = text_of(tiny_model_path, "Once upon")
    assert invoke("run", tiny_model_path, "Once upon", "--raw", *WORDS).stdout == wanted + "\n"
    assert invoke("run", no_template, "Once upon", *WORDS).stdout == wanted + "\n"


def test_run_reads_stdin(tiny_model_path: Path) -> None:
    asked = "zwei\nZeilen \u00fc"
    wanted = text_of(tiny_model_path, asked) + "\n"
    for ending in ("", "\n", "\r\n"):
        stdin = (asked + ending).encode()
        found = invoke("run", tiny_model_path, "-", "--raw", *WORDS, stdin=stdin)
        assert found.stdout == wanted


def test_run_passes_every_sampling_option_on(tiny_model_path: Path) -> None:
    options = {
        "temperature": 1.3,
        "top_k": 60,
        "top_p": 0.95,
        "min_p": 0.001,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.2,
        "seed": 12,
    }
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    flags += ["--logit-bias", "70=-inf", "--logit-bias", "71=1.5", "--stop", "QQQ", "--stop", "ZZ"]
    found = invoke("run", tiny_model_path, "Hi", "--raw", *WORDS, *flags)
    more = {"logit_bias": {70: float("-inf"), 71: 1.5}, "stop": ["QQQ", "ZZ"]}
    assert found.stdout == text_of(tiny_model_path, "Hi", **options, **more) + "\n"


def test_run_json_has_the_whole_result(tiny_model_path: Path) -> None:
    arguments = ("run", tiny_model_path, "Hi", "--json", "--logprobs", 2, "--seed", 3)
    found = json.loads(invoke(*arguments, "--temperature", 1, *WORDS).stdout)
    assert found["model"] == "tiny-llama"
    assert len(found["tokens"]) == 8
    assert found["finish_reason"] == "length"
    assert found["seed"] == 3
    assert [len(entry["top"]) for entry in found["logprobs"]] == [2] * 8
    with slmq.load(tiny_model_path) as m:
        for entry in (e for found in found["logprobs"] for e in (found, *found["top"])):
            assert entry["text"] == m.tokenizer.decode([entry["token"]])
    assert found["prompt_tps"] > 0


def test_json_keeps_plain_lists_on_a_line() -> None:
    data = {"a": [1, 2.5, None], "b": [[1, 2], [3]], "c": [], "d": {}, "e": ["x[1]", "\u00fc"]}
    text = laid_out(data, ascii_only=False)
    assert json.loads(text) == data == json.loads(laid_out(data, ascii_only=True))
    assert text.splitlines() == [
        "{", '  "a": [1, 2.5, null],', '  "b": [', "    [1, 2],", "    [3]", "  ],", '  "c": [],',
        '  "d": {},', '  "e": ["x[1]", "\u00fc"]', "}",
    ]  # fmt: skip


def test_run_stats_go_to_stderr(tiny_model_path: Path) -> None:
    plain = invoke("run", tiny_model_path, "Hi", *WORDS)
    found = invoke("run", tiny_model_path, "Hi", "--stats", *WORDS)
    assert found.stdout == plain.stdout
    assert "answer 8 tokens" in found.stderr
    assert "finish reason length" in found.stderr


def test_run_takes_loading_options(tiny_model_path: Path) -> None:
    flags = ("--n-ctx", 16, "--threads", 1, "--format", "int8", "--kv-dtype", "f32")
    found = invoke("run", tiny_model_path, "abc", "--raw", "--ignore-eos", "--json", *flags)
    # Without --max-tokens the answer fills the context.
    assert len(json.loads(found.stdout)["tokens"]) == 16 - 3


def test_suggestions_of_the_catalogue_are_used_unless_options_say_otherwise(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slmq import hub

    known = next(iter(hub.catalogue().values()))
    found = hub.ResolvedModel(tiny_model_path, known.name, known)
    monkeypatch.setattr(hub, "resolve", lambda *_, **__: found)
    greedy = json.loads(invoke("run", known.name, "Hi", "--json", "--temperature", 0).stdout)
    assert greedy["seed"] is None
    assert known.sampling["temperature"] > 0
    assert json.loads(invoke("run", known.name, "Hi", "--json").stdout)["seed"] is not None


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "slmq: --temperature: expected a finite number >= 0, got -1.0"),
        (["--top-p", "2"], "--top-p: expected a number above 0 and at most 1, got 2.0"),
        (["--logit-bias", "x=1"], "--logit-bias: expected ID=VALUE, such as 198=-inf; got 'x=1'"),
        (["--logprobs", "2"], "--logprobs needs --json"),
        (["--format", "q3"], "--format: expected one of 'int4', 'int8',"),
        (["--n-ctx", "0"], "--n-ctx: expected an int in 1..16777216, got 0"),
        (["--threads", "0"], "--threads: expected an int in 1..1024, got 0"),
        (
            ["--kv-dtype", "f12"],
            "--kv-dtype: expected one of 'f16', 'f32', 'int8', 'int4'; got 'f12'",
        ),
        (["--activations", "x"], "--activations: expected one of 'mixed', 'exact'; got 'x'"),
        (["--memory", "x"], "--memory: expected one of"),
        (["--format", "int4", "--quant", "int8"], "--format: given twice"),
        (["--max-tokens", "5000"], " --max-tokens asks for 5000 more"),
        (["--raw", "--system", "x"], "--system needs a chat template"),
    ],
)
def test_a_bad_option_is_one_line(
    tiny_model_path: Path, arguments: list[str], message: str
) -> None:
    found = invoke("run", tiny_model_path, "Hi", *arguments)
    assert found.exit_code == 1
    assert found.stdout == ""
    assert message in found.stderr
    assert found.stderr.startswith("slmq: ")
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no-such-model", "Hi"], "no model 'no-such-model'"),
        (["run", "smollm2-135m-instruct", "Hi", "--offline"], "--offline forbids"),
        (["show", "no-such-model"], "no model 'no-such-model'"),
        (["rm", "no-such-model"], "no model 'no-such-model' in the cache"),
        (["perplexity", "no-such-model", "--file", "/no/such/file"], "cannot read /no/such/file"),
        (["bench"], "expected either a MODEL or a --shape"),
        (["bench", "x", "--shape", "gemma-2b"], "expected either a MODEL or a --shape"),
        (["bench", "--shape", "gemma"], "shape: expected one of"),
        (["bench", "--shape", "gemma-2b", "--format", "q3"], "--format: expected a weight format"),
        (["bench", "--shape", "gemma-2b", "--memory", "small"], "--memory works with a MODEL only"),
        (["bench", "--shape", "gemma-2b", "--threads", "1,x"], "expected numbers such as 1,2"),
    ],
)
def test_an_error_is_one_line(arguments: list[str], message: str) -> None:
    found = invoke(*arguments)
    assert found.exit_code == 1
    assert found.stdout == ""
    assert message in found.stderr
    assert found.stderr.count("\n") == 1


def test_wrong_usage_is_exit_code_2() -> None:
    for arguments in (["run"], ["show"], ["nonsense"], ["run", "m", "p", "--nonsense"]):
        found = invoke(*arguments)
        assert found.exit_code == 2
        assert found.stdout == ""


def test_an_empty_or_invalid_prompt_is_refused(tiny_model_path: Path) -> None:
    for prompt, stdin in (("", None), ("-", b""), ("-", b"\n")):
        found = invoke("run", tiny_model_path, prompt, stdin=stdin)
        assert found.exit_code == 1
        assert "the prompt is empty" in found.stderr
    found = invoke("run", tiny_model_path, "-", stdin=b"caf\xe9!")
    assert found.exit_code == 1
    assert "stdin: expected UTF-8 text" in found.stderr


def test_system_without_a_template_is_refused(no_template: Path) -> None:
    found = invoke("run", no_template, "Hi", "--system", "x")
    assert found.exit_code == 1
    assert "--system needs a chat template, but plain has no chat template" in found.stderr


def test_tracebacks_are_there_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMQ_LOG_LEVEL", "debug")
    assert isinstance(invoke("show", "no-such-model").exception, slmq.ModelNotFoundError)
    monkeypatch.setenv("SLMQ_LOG_LEVEL", "loud")
    assert "SLMQ_LOG_LEVEL: expected one of" in invoke("list").stderr


def test_messages_are_put_on_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(MemoryError()) == "not enough memory"


# ------------------------------------------------------------------ perplexity, bench, doctor


def test_perplexity_prints_what_the_library_finds(tiny_model_path: Path, tmp_path: Path) -> None:
    from slmq.engine.opening import open_engine
    from slmq.evaluation import perplexity

    file = tmp_path / "text"
    file.write_bytes(b"Line\r\nline\n" * 40)
    arguments = ("perplexity", tiny_model_path, "--file", file, "--ctx", 32)
    found = json.loads(invoke(*arguments, "--chunks", 3, "--json").stdout)
    assert list(found) == ["perplexity", "standard_error", "tokens", "windows", "seconds"]
    engine = open_engine(tiny_model_path)
    wanted = perplexity(engine, "Line\r\nline\n" * 40, ctx=32, chunks=3)
    assert found["perplexity"] == wanted.perplexity
    assert found["standard_error"] == wanted.standard_error
    assert found["tokens"] == 45
    people = invoke(*arguments, "--chunks", 99)
    assert people.stdout.startswith("perplexity ")
    assert "the file is long enough for 13 windows of 32 tokens, not 99" in people.stderr


def test_perplexity_refuses_what_is_no_text(tiny_model_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"\xff\xfe")
    found = invoke("perplexity", tiny_model_path, "--file", file)
    assert (found.exit_code, found.stdout) == (1, "")
    assert "expected UTF-8 text" in found.stderr


def test_bench_prints_json_or_tables(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmq.speed.limits.PROBE_BYTES", 4 << 20)
    monkeypatch.setattr("slmq.speed.limits.PROBE_S", 0.01)
    monkeypatch.setattr("slmq.speed.limits.MOST", 1e9)  # whatever a busy machine measures
    arguments = ("bench", tiny_model_path, "--prompt", 9, "--gen", 2, "--repeat", 1)
    found = json.loads(invoke(*arguments, "--threads", "1,2", "--json").stdout)
    assert found["model"] == "tiny-llama"
    assert [(row["test"], row["threads"]) for row in found["rows"]] == [
        ("pp9", 1),
        ("tg2", 1),
        ("pp9", 2),
        ("tg2", 2),
    ]
    people = invoke(*arguments).stdout
    assert "pp9" in people
    assert "tg2" in people
    assert "of read bandwidth" in people
    assert "no fraction of it" not in people
    monkeypatch.setattr("slmq.speed.limits.MOST", 0.0)
    refused = invoke(*arguments).stdout
    assert refused.count("over 1") > 4
    assert "no fraction of it" in refused


def test_doctor_names_cpu_kernels_threads_and_cache(tmp_path: Path) -> None:
    facts = json.loads(invoke("doctor", "--json").stdout)
    assert facts["slmq"] == slmq.__version__
    assert facts["isa"] in facts["isa_available"]
    assert facts["threads"] >= 1
    assert facts["cache"]["folder"] == str(tmp_path / "cache")
    assert facts["cache"]["free_bytes"] > 0
    assert {"affinity_cpus", "physical_cores", "quota_cpus"} <= facts["thread_limits"].keys()
    people = invoke("doctor").stdout
    for label in ("cpu", "kernels", "threads", "memory", "cache", "versions"):
        assert f"\n{label} " in people


def test_doctor_prints_a_report_to_paste() -> None:
    assert "slmq doctor --bug" in invoke("doctor").stderr
    asked = invoke("doctor", "--bug")
    assert asked.exit_code == 0
    assert "\nslmq        " in asked.stdout
    assert "\nscalar:     " in asked.stdout  # the self test
    where = reports_go_to()
    assert ("open an issue at" in asked.stdout) == (where is not None)
    assert where is None or where in asked.stdout
    assert str(Path.home()) not in asked.stdout
    assert asked.stdout.count("```") == 4


def test_doctor_warns_of_forced_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process: AMX, which is not tried where another table is forced, may be known here."""
    monkeypatch.setenv("SLMQ_ISA", "scalar")

    def told(*options: str) -> str:
        code = f"import sys; from slmq.cli import main; sys.argv = {['slmq', 'doctor', *options]}"
        command = [sys.executable, "-c", f"{code}; main()"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    text = told()
    assert "SLMQ_ISA=scalar" in text
    best = json.loads(told("--json"))["isa_available"][-1]
    warning = f"the scalar kernels are forced, but this CPU also runs {best}"
    assert (warning in text) is (best != "scalar")


def test_doctor_warnings() -> None:
    facts: dict[str, Any] = {
        "isa": "avx2",
        "isa_available": ["scalar", "avx2"],
        "threads": 4,
        "thread_limits": {"physical_cores": 4, "affinity_cpus": 4, "quota_cpus": None},
        "cache": {"folder": "/c", "writable": True, "free_bytes": 10**11},
    }
    assert warnings_of(facts) == []
    plain = {**facts, "isa": "scalar", "isa_available": ["scalar"]}
    assert "portable kernels" in warnings_of(plain)[0]
    limits = facts["thread_limits"]
    quota = warnings_of({**facts, "thread_limits": {**limits, "quota_cpus": 1.5}})
    assert quota == ["the container's CPU quota (1.5) is below the 4 physical cores"]
    affinity = warnings_of({**facts, "thread_limits": {**limits, "affinity_cpus": 2}})
    assert affinity == ["this process may use only 2 CPUs of 4 cores"]
    assert "fewer would be faster" in warnings_of({**facts, "threads": 8})[0]
    bad = {"folder": "/c", "writable": False, "free_bytes": 10}
    cache = warnings_of({**facts, "cache": bad})
    assert "is not writable" in cache[0]
    assert "only 10 bytes of disk space" in cache[1]


# ------------------------------------------------------------------ chat


def talk(model: Path, *lines: str, flags: tuple[str, ...] = ()) -> Result:
    return invoke("chat", model, *WORDS[:2], *flags, stdin="".join(f"{line}\n" for line in lines))


def test_chat_is_the_session_of_the_library(tiny_model_path: Path) -> None:
    found = talk(tiny_model_path, "Hi", "", "Why?", flags=("--system", "S"))
    assert found.exit_code == 0
    with slmq.load(tiny_model_path) as model:
        session = model.chat("S", max_tokens=8)
        answers = [session.send("Hi").text, session.send("Why?").text]
    assert found.stdout == "".join(f"{answer}\n" for answer in answers)


def test_chat_commands(tiny_model_path: Path) -> None:
    first = talk(tiny_model_path, "Hi").stdout
    second = talk(tiny_model_path, "Hi", "Why?").stdout.removeprefix(first)
    other = talk(tiny_model_path, "Hi", flags=("--system", "S")).stdout
    slash = talk(tiny_model_path, "//Hi").stdout
    assert slash != first
    found = talk(
        tiny_model_path,
        "/undo", "Hi", "/undo", "Hi", "/reset", "Hi", "Why?", "/system S", "Hi",
        "/system", "Hi", "/nonsense", "/help", "/exit", "Hi",
    )  # fmt: skip
    assert found.exit_code == 0
    assert found.stdout == first + first + first + second + other + first
    told = found.stderr.splitlines()
    assert told[:3] == [
        "there is nothing to forget",
        "forgot the last turn",
        "forgot the whole conversation",
    ]
    assert "started over with the new system message" in told
    assert any("unknown command /nonsense" in line for line in told)
    assert any("/undo" in line for line in told)


def test_chat_goes_on_after_an_error(tiny_model_path: Path) -> None:
    found = talk(tiny_model_path, "x" * 300, "Hi")
    assert found.exit_code == 0
    assert "slmq: the prompt has" in found.stderr
    assert found.stdout == talk(tiny_model_path, "Hi").stdout


def test_chat_needs_a_template(no_template: Path) -> None:
    found = talk(no_template, "Hi")
    assert found.exit_code == 1
    assert "has no chat template" in found.stderr


# ------------------------------------------------------------------ processes


def test_the_command_is_light() -> None:
    code = (
        "import sys, slmq.cli; "
        "assert not {'numpy', 'typer', 'tokenizers', 'jinja2'} & sys.modules.keys(); "
        "import slmq.cli.app; "
        "assert not {'numpy', 'tokenizers', 'jinja2', 'huggingface_hub'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_what_is_written(name: str) -> None:
    """Rich takes square brackets for markup, and a line break in a docstring for one to keep."""
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    assert not any("\n" in paragraph for paragraph in command.help.split("\n\n"))
    shown = " ".join(invoke(name, "--help").stdout.replace("│", " ").split())
    options = [p.help for p in command.params if getattr(p, "help", None) and not p.hidden]
    for text in (command.help, *options):
        assert " ".join(text.split()) in shown


def test_version_and_help() -> None:
    done = subprocess.run(command("--version"), capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"slmq {slmq.__version__}\n", "")
    names = ["run", "chat", "pull", "list", "show", "rm", "perplexity", "bench", "doctor"]
    shown = invoke("--help").stdout
    assert all(f" {name} " in shown for name in names)


def test_an_impossible_isa_is_one_line() -> None:
    environment = {**os.environ, "SLMQ_ISA": "avx9"}
    done = subprocess.run(
        command("doctor"), capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1
    assert "unknown ISA 'avx9'" in done.stderr
    assert done.stderr.count("\n") == 1


@POSIX
def test_a_reader_that_goes_away_is_no_error(tiny_model_path: Path) -> None:
    arguments = command("run", tiny_model_path, "Hi", "--ignore-eos")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def endless(model: Path) -> list[str]:
    """A command line that answers for minutes."""
    words = ("--ignore-eos", "--max-tokens", -1, "--n-ctx", 1 << 20, "--threads", 1)
    return command("run", model, "Hi", *words)


@POSIX
def test_a_stream_that_was_interrupted_has_its_result(tiny_model_path: Path) -> None:
    with slmq.load(tiny_model_path) as model:
        for _ in range(50):
            stream = model.stream("Hi", ignore_eos=True)
            with cancel_on_interrupt(stream) as pressed, stream:
                signal.raise_signal(signal.SIGINT)
                for _ in stream:
                    pass
            assert pressed()
            assert stream.result is not None
            assert stream.result.finish_reason == "cancelled"


@POSIX
def test_interrupted_run_keeps_what_was_said(tiny_model_path: Path) -> None:
    process = subprocess.Popen(
        endless(tiny_model_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    begun = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert len(begun) == 1
    assert rest.endswith(b"\n")
    assert errors.startswith(b"n_ctx=1048576: ")
    assert errors.count(b"\n") == 1
    assert process.returncode == 130
