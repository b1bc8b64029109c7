"""Batch jobs: what the lines say, and that nothing is lost or changed; real engine, tiny model."""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import slmq
from slmq.batch import Job, Summary, run_batch
from slmq.batch.part import Part
from slmq.batch.requests import read_request
from slmq.errors import BusyError, ClosedError, DataError, WriteError
from slmq.generation.model import Model

BODY = {"max_tokens": 6, "ignore_eos": True}
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def model(tiny_model_path: Path) -> Iterator[Model]:
    with slmq.load(tiny_model_path, n_ctx=512) as loaded:
        yield loaded


def chat(custom_id: str, **body: Any) -> dict[str, Any]:
    url = "/v1/chat/completions"
    body = {"model": "any", "messages": HI, **BODY, **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def completion(custom_id: str, prompt: Any, **body: Any) -> dict[str, Any]:
    body = {"model": "any", "prompt": prompt, **BODY, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


def job_of(folder: Path, *lines: Any, **settings: Any) -> Job:
    """A job whose lines are objects, or text as it stands."""
    source = folder / "in.jsonl"
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    source.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return Job(source, folder / "out.jsonl", **settings)


def answers(model: Model, job: Job) -> list[dict[str, Any]]:
    run_batch(model, job)
    return [json.loads(line) for line in job.target.read_text("utf-8").splitlines()]


def varied(count: int) -> list[dict[str, Any]]:
    """Requests of unequal length, some drawn, some wrong."""
    found = []
    for i in range(count):
        text = f"Text {i} " * (1 + i * 5 % 9)
        length, temperature = 1 + i * 7 % 12, i % 2
        found.append(completion(f"r{i}", text, max_tokens=length, temperature=temperature))
    found[3]["body"]["temperature"] = -1
    found[7]["body"]["prompt"] = "too long " * 200
    return found


# ------------------------------------------------------------------ what lines say


def test_chat_in_the_format_of_openai(model: Model, tmp_path: Path) -> None:
    request = chat("a", temperature=0.9, seed=5, n=2, logprobs=True, top_logprobs=2)
    (line,) = answers(model, job_of(tmp_path, request))
    params: dict[str, Any] = {**BODY, "temperature": 0.9, "logprobs": 2}
    wanted = [model.generate(HI, seed=seed, **params) for seed in (5, 6)]
    digest = line["id"].removeprefix("batch_req_")
    assert line.keys() == {"id", "custom_id", "response", "error"}
    assert (line["custom_id"], line["error"]) == ("a", None)
    assert line["response"]["status_code"] == 200
    assert line["response"]["request_id"] == f"req_{digest}"
    body = line["response"]["body"]
    assert body["id"] == f"chatcmpl-{digest}"
    assert (body["object"], body["created"]) == ("chat.completion", 0)
    assert body["model"] == model.name
    n_prompt = wanted[0].prompt_tokens
    assert body["usage"] == {
        "prompt_tokens": n_prompt,
        "completion_tokens": 12,
        "total_tokens": n_prompt + 12,
    }
    for i, (choice, result) in enumerate(zip(body["choices"], wanted, strict=True)):
        assert (choice["index"], choice["finish_reason"]) == (i, "length")
        assert choice["message"] == {"role": "assistant", "content": result.text}
        content = choice["logprobs"]["content"]
        assert result.logprobs is not None
        assert [entry["logprob"] for entry in content] == [e.logprob for e in result.logprobs]
        assert [bytes(entry["bytes"]) for entry in content] == [
            model.tokenizer.token_bytes(token) for token in result.tokens
        ]
        tops = [[top["logprob"] for top in entry["top_logprobs"]] for entry in content]
        assert tops == [[value for _, value in e.top] for e in result.logprobs]


def test_completions_in_the_format_of_openai(model: Model, tmp_path: Path) -> None:
    lines = answers(
        model,
        job_of(
            tmp_path,
            completion("one", "Once", logprobs=1),
            completion("ids", [5, 6, 7]),
            completion("many", ["Once", "Twice"], n=2, temperature=1.0, seed=3),
        ),
    )
    one, ids, many = (line["response"]["body"] for line in lines)
    result = model.generate("Once", logprobs=1, **BODY)
    assert result.logprobs is not None
    assert one["object"] == "text_completion"
    assert one["choices"][0]["text"] == result.text
    logprobs = one["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [entry.logprob for entry in result.logprobs]
    assert [list(top.values()) for top in logprobs["top_logprobs"]] == [
        [entry.top[0][1]] for entry in result.logprobs
    ]
    ends = [
        at + len(text) for at, text in zip(logprobs["text_offset"], logprobs["tokens"], strict=True)
    ]
    assert logprobs["text_offset"] == [0, *ends[:-1]]
    assert ids["choices"][0]["text"] == model.generate([5, 6, 7], **BODY).text
    texts = [
        model.generate(prompt, temperature=1.0, seed=seed, **BODY).text
        for prompt, seed in (("Once", 3), ("Once", 4), ("Twice", 5), ("Twice", 6))
    ]
    assert [choice["text"] for choice in many["choices"]] == texts
    assert many["usage"]["prompt_tokens"] == len("Once") + len("Twice")


def test_plain_prompts_are_messages_unless_raw(model: Model, tmp_path: Path) -> None:
    lines: list[Any] = [
        {"prompt": "Hi", **BODY},
        {"custom_id": "mine", "prompt": "Hi", **BODY, "max_tokens": 2},
        {"messages": HI, **BODY},
    ]
    found = answers(model, job_of(tmp_path, *lines))
    said = model.generate(HI, **BODY)
    assert [line["custom_id"] for line in found] == ["line-1", "mine", "line-3"]
    contents = [line["response"]["body"]["choices"][0]["message"]["content"] for line in found]
    assert contents == [
        said.text,
        model.generate(HI, max_tokens=2, ignore_eos=True).text,
        said.text,
    ]
    raw = Job(tmp_path / "in.jsonl", tmp_path / "raw.jsonl", raw=True)
    assert answers(model, raw)[0]["response"]["body"]["choices"][0]["text"] == (
        model.generate("Hi", **BODY).text
    )
    brief = Job(tmp_path / "in.jsonl", tmp_path / "brief.jsonl", system="Be brief")
    asked = [{"role": "system", "content": "Be brief"}, *HI]
    choice = answers(model, brief)[0]["response"]["body"]["choices"][0]
    assert choice["message"]["content"] == model.generate(asked, **BODY).text


def test_rows_of_csv(model: Model, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text('\ufefftext,custom_id\n"Hi, ""you""\nthere",a\nBye,\n', "utf-8")
    defaults = {"max_tokens": 3, "ignore_eos": True}
    job = Job(source, tmp_path / "out.jsonl", column="text", raw=True, defaults=defaults)
    found = answers(model, job)
    assert [line["custom_id"] for line in found] == ["a", "line-2"]
    texts = [line["response"]["body"]["choices"][0]["text"] for line in found]
    assert texts == [model.generate(p, **defaults).text for p in ('Hi, "you"\nthere', "Bye")]
    with pytest.raises(DataError, match=r"expected a column 'prompt', got \['text', 'custom_id'\]"):
        run_batch(model, Job(source, tmp_path / "other.jsonl", column="prompt"))


def test_defaults_are_for_who_does_not_say(model: Model, tmp_path: Path) -> None:
    mine = {"prompt": "Hi", "max_tokens": 2, "ignore_eos": True}
    theirs = {"prompt": "Hi", "ignore_eos": True}
    job = job_of(tmp_path, mine, theirs, defaults={"max_tokens": 5})
    counts = [
        line["response"]["body"]["usage"]["completion_tokens"] for line in answers(model, job)
    ]
    assert counts == [2, 5]


def test_answers_have_the_form_that_a_request_asks_for(model: Model, tmp_path: Path) -> None:
    """OpenAI's response_format and our own names; a request's own form beats the default."""
    schema = {"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    free = {"ignore_eos": None, "max_tokens": None}
    job = job_of(
        tmp_path,
        chat("openai", response_format=wanted, **free),
        chat("ours", schema=schema, **free),
        chat("choices", choices=["only"], **free),
        chat("default", **free),
        chat("refused", schema={"uniqueItems": True}, **free),
        defaults={"regex": "[0-9]{3}"},
    )
    bodies = [line["response"]["body"] for line in answers(model, job)]
    texts = [body["choices"][0]["message"]["content"] for body in bodies[:4]]
    assert texts[:3] == ['{"a": 7}', '{"a": 7}', "only"]
    assert texts[3].isdigit()
    assert "cannot enforce uniqueItems" in bodies[4]["error"]["message"]


def test_a_message_that_only_calls_has_a_text_in_which_templates_may_look() -> None:
    """Answers with calls have null for their content, and clients send them back so."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Call."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "tool_calls": [call]},
    ]
    asked = read_request("/v1/chat/completions", {"messages": messages}, None, {})
    assert [message["content"] for message in asked.prompts[0]] == ["Call.", "", ""]


# ------------------------------------------------------------------ wrong lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: expected JSON"),
        ("[1]", "line 2: expected a JSON object, got list"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "line 2: expected at most 64 levels of nesting"),
        ('{"prompt": ' + "[" * 900 + "]" * 900 + "}", "at most 64 levels of nesting"),
        ({"custom_id": 7, "prompt": "a"}, "custom_id: expected a string, got 7"),
        ({"body": {}}, "expected custom_id, or prompt or messages"),
        ({**chat("x"), "method": "GET"}, "method: expected 'POST', got 'GET'"),
        ({**chat("x"), "url": "/v1/embeddings"}, "url: expected '/v1/chat/completions' or"),
        ({**chat("x"), "body": "text"}, "body: expected a JSON object, got str"),
        (chat("first"), "custom_id 'first' is already that of line 1"),
    ],
)
def test_a_line_that_is_no_request(model: Model, tmp_path: Path, line: Any, message: str) -> None:
    found = answers(model, job_of(tmp_path, chat("first"), line, chat("last")))
    assert [entry["response"] is None for entry in found] == [False, True, False]
    assert found[1]["error"]["code"] == "invalid_line"
    assert message in found[1]["error"]["message"]
    assert len({entry["id"] for entry in found}) == 3


def test_a_line_that_is_not_text(model: Model, tmp_path: Path) -> None:
    job = job_of(tmp_path, chat("a"))
    with job.source.open("ab") as file:
        file.write(b"\n   \n\xff\xfe\n")
    first, second = answers(model, job)  # empty lines are none
    assert first["error"] is None
    assert "line 4: expected UTF-8" in second["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"temperature": "hot"}, "temperature", "temperature: expected"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "Hi"}, "messages", "expected a list"),
        ({"stream": True}, "stream", "stream: True is not supported"),
        ({"tools": [{"type": "function"}]}, "tools[0]", "expected a JSON schema with a name"),
        ({"response_format": {"type": "xml"}}, "response_format", "expected the type text"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema.schema"),
        ({"regex": "a", "json": True}, "regex", "expected one constraint, got also json"),
        ({"temprature": 1}, "temprature", "temprature: is not supported"),
        ({"n": 0}, "n", "n: expected 1 to 128, got 0"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "token ids and numbers"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"messages": [{"role": "user"}]}, None, "expected content"),
        ({"logit_bias": {"99999": 1}}, None, "token ids from 0 to 258"),
    ],
)
def test_a_request_that_is_refused(
    model: Model, tmp_path: Path, body: dict[str, Any], param: str | None, message: str
) -> None:
    good, bad = answers(model, job_of(tmp_path, chat("good"), chat("bad", **body)))
    assert good["response"]["status_code"] == 200
    assert (bad["custom_id"], bad["error"], bad["response"]["status_code"]) == ("bad", None, 400)
    error = bad["response"]["body"]["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]


def test_a_prompt_that_is_too_long_says_so(model: Model, tmp_path: Path) -> None:
    (line,) = answers(model, job_of(tmp_path, completion("long", "a" * 600)))
    error = line["response"]["body"]["error"]
    assert (line["response"]["status_code"], error["code"]) == (400, "context_length_exceeded")
    assert "600 tokens" in error["message"]


def test_a_failure_of_the_model_is_no_fault_of_the_request(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(*_args: object, **_more: object) -> None:
        raise slmq.CheckpointError("NaN among the logits")

    monkeypatch.setattr(model, "submit", submit)
    (line,) = answers(model, job_of(tmp_path, chat("a")))
    assert line["response"]["status_code"] == 500
    assert line["response"]["body"]["error"]["type"] == "server_error"


# ------------------------------------------------------------------ the same bytes in the end


def test_order_and_bytes_do_not_depend_on_the_run(model: Model, tmp_path: Path) -> None:
    job = job_of(tmp_path, *varied(80))
    assert run_batch(model, job) == Summary(80, 2, 0)
    first = job.target.read_bytes()
    ids = [json.loads(line)["custom_id"] for line in first.splitlines()]
    assert ids == [f"r{i}" for i in range(80)]
    assert run_batch(model, job) == Summary(80, 2, 80)  # complete: nothing is computed
    job.target.unlink()
    run_batch(model, job)
    assert job.target.read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_drawn_answers_differ_between_requests_and_not_between_runs(
    model: Model, tmp_path: Path
) -> None:
    lines = [completion(f"r{i}", "Once", temperature=1.5) for i in range(4)]
    job = job_of(tmp_path, *lines)
    texts = [line["response"]["body"]["choices"][0]["text"] for line in answers(model, job)]
    assert len(set(texts)) == 4
    turned = job_of(tmp_path, *lines[::-1])
    job.target.unlink()
    again = [line["response"]["body"]["choices"][0]["text"] for line in answers(model, turned)]
    assert again == texts[::-1]


def test_a_run_goes_on_from_whatever_is_on_the_disk(model: Model, tmp_path: Path) -> None:
    """Wherever the file of a killed run ends, and in whatever order its lines are."""
    job = job_of(tmp_path, *varied(12))
    run_batch(model, job)
    whole = job.target.read_bytes()
    part = tmp_path / "out.jsonl.part"
    lines = whole.splitlines(keepends=True)
    random.Random(1).shuffle(lines)
    written = b"".join(lines)
    cuts = [0, 1, *range(len(written) - 3, len(written) + 1)]
    cuts += random.Random(2).sample(range(len(written)), 30)
    for cut in cuts:
        job.target.unlink()
        part.write_bytes(written[:cut])
        done = run_batch(model, job)
        assert done.resumed == written[:cut].count(b"\n")
        assert job.target.read_bytes() == whole
        assert not part.exists()


def test_a_block_of_zeros_after_a_power_cut(model: Model, tmp_path: Path) -> None:
    job = job_of(tmp_path, *varied(12))
    run_batch(model, job)
    whole = job.target.read_bytes()
    lines = whole.splitlines(keepends=True)
    torn = lines[0] + lines[1] + bytes(200) + b"\n" + lines[2]
    job.target.rename(tmp_path / "out.jsonl.part").write_bytes(torn)
    assert run_batch(model, job).resumed == 2
    assert job.target.read_bytes() == whole


def test_a_run_that_was_killed_between_naming_and_tidying(model: Model, tmp_path: Path) -> None:
    job = job_of(tmp_path, *varied(12))
    run_batch(model, job)
    part = tmp_path / "out.jsonl.part"
    part.write_bytes(job.target.read_bytes())
    assert run_batch(model, job).resumed == 12
    assert not part.exists()


def test_answers_to_other_requests_or_settings_are_not_taken_over(
    model: Model, tmp_path: Path
) -> None:
    lines = varied(12)
    job = job_of(tmp_path, *lines)
    run_batch(model, job)
    old = job.target.read_bytes()
    lines[5]["body"]["max_tokens"] += 1
    changed = job_of(tmp_path, *lines)
    with pytest.raises(WriteError, match="exists and does not answer these requests"):
        run_batch(model, changed)
    assert job.target.read_bytes() == old
    job.target.rename(tmp_path / "out.jsonl.part")
    assert run_batch(model, changed).resumed == 11
    job.target.rename(tmp_path / "out.jsonl.part")
    other = job_of(tmp_path, *lines, settings={"kv_dtype": "int8"})
    assert run_batch(model, other).resumed == 0


def test_a_failure_at_the_very_end_loses_nothing(model: Model, tmp_path: Path) -> None:
    job = job_of(tmp_path, *varied(12))
    in_the_way = tmp_path / "out.jsonl.new"
    in_the_way.mkdir()
    with pytest.raises(WriteError, match=r"out\.jsonl\.new: cannot be written"):
        run_batch(model, job)
    in_the_way.rmdir()
    assert run_batch(model, job).resumed == 12


# ------------------------------------------------------------------ what may happen meanwhile


def test_a_model_closed_under_a_batch(tiny_model_path: Path, tmp_path: Path) -> None:
    with slmq.load(tiny_model_path, n_ctx=512) as whole:
        job = job_of(tmp_path, *varied(80))
        run_batch(whole, job)
        wanted = job.target.read_bytes()
        job.target.unlink()
    closed = slmq.load(tiny_model_path, n_ctx=512)

    def close(done: int, _total: int | None) -> None:
        if done == 20:
            closed.close()

    with pytest.raises(ClosedError):
        run_batch(closed, job, close)
    assert not job.target.exists()
    with slmq.load(tiny_model_path, n_ctx=512) as again:
        assert run_batch(again, job).resumed >= 20
    assert job.target.read_bytes() == wanted


def test_whoever_asks_the_model_meanwhile_goes_first(model: Model, tmp_path: Path) -> None:
    lines = [completion(f"r{i}", "Once", max_tokens=300) for i in range(150)]
    job = job_of(tmp_path, *lines)
    begun, marks = threading.Event(), list[int]()
    runner = threading.Thread(
        target=run_batch,
        args=(model, job, lambda done, _total: (marks.append(done), begun.set())),
    )
    runner.start()
    begun.wait()
    asked = model.generate("Me first", max_tokens=2)
    at = marks[-1]
    runner.join()
    assert asked.generated_tokens == 2
    assert at < 150
    assert marks[-1] == 150


def test_two_runs_of_one_job(model: Model, tmp_path: Path) -> None:
    job = job_of(tmp_path, *varied(12))
    with Part(job.target), pytest.raises(BusyError, match="another run is writing it"):
        run_batch(model, job)
    run_batch(model, job)


def test_requests_that_change_while_they_are_read(model: Model, tmp_path: Path) -> None:
    job = job_of(tmp_path, *varied(100))

    def change(done: int, _total: int | None) -> None:
        if done == 0:
            job_of(tmp_path, *varied(101)[1:])

    with pytest.raises(DataError, match="was changed while it was read"):
        run_batch(model, job, change)


def test_files_that_cannot_be(model: Model, tmp_path: Path) -> None:
    job = job_of(tmp_path, chat("a"))
    cases: list[tuple[Job, type[Exception], str]] = [
        (Job(tmp_path / "none", job.target), DataError, "there is none"),
        (Job(job.source, tmp_path / "none" / "out"), WriteError, "does not exist"),
        (Job(job.source, tmp_path), WriteError, "got a folder"),
        (Job(job.source, job.source), WriteError, "is the file of requests"),
    ]
    for wrong, kind, message in cases:
        with pytest.raises(kind, match=message):
            run_batch(model, wrong)
    job.source.write_text("\n\n", "utf-8")
    with pytest.raises(DataError, match="at least one request"):
        run_batch(model, job)
    if sys.platform == "win32":
        return
    os.mkfifo(tmp_path / "out.jsonl.part")
    with pytest.raises(WriteError, match="expected an ordinary file"):
        run_batch(model, job_of(tmp_path, chat("a")))
