"""Receipts that anybody can check, seeds and names in headers, and what a request has cost."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from live_server import Answered, LiveServer, live_server, wait_until
from typer.testing import CliRunner

import slmq
from slmq.batch.receipts import check_receipt
from slmq.cli.app import app
from slmq.generation.model import Model
from slmq.server.limits import Limits
from slmq.server.receipts import Receipts

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "Hi"}]
DRAWN: dict[str, Any] = {"messages": HI, "max_tokens": 12, "temperature": 1.1}
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


def receipt_of(server: LiveServer, answered: Answered) -> Any:
    path = f"/v1/receipts/{answered.headers['x-request-id']}"
    wait_until(lambda: server.ask(path).status == 200)
    return server.ask(path).body


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, DRAWN),
        (CHAT, {**DRAWN, "stream": True}),
        (CHAT, {**DRAWN, "n": 3, "stop": "e", "logprobs": True}),
        (CHAT, {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {
            "schema": SCHEMA}}}),
        (TEXT, {"prompt": ["Once", [5, 6, 7]], "max_tokens": 9, "temperature": 2, "seed": 2**60}),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 9, "temperature": 1}),
        ("/v1/messages", {"messages": HI, "max_tokens": 9, "temperature": 1}),
        ("/api/generate", {"prompt": "Hi", "options": {"num_predict": 9, "temperature": 1}}),
    ],
)  # fmt: skip
def test_an_answer_can_be_checked(server: LiveServer, path: str, body: dict[str, Any]) -> None:
    answered = server.ask(path, body)
    assert answered.status == 200
    receipt = receipt_of(server, answered)
    checked = check_receipt(server.model, receipt)
    assert checked.same, checked.text
    receipt["answers"][0]["text_sha256"] = "0" * 64
    assert not check_receipt(server.model, receipt).same


def test_the_seed_in_the_header_gives_the_answer_again(server: LiveServer) -> None:
    first = server.ask(CHAT, DRAWN)
    seed = int(first.headers["x-slmq-seed"])
    again = server.ask(CHAT, {**DRAWN, "seed": seed})
    assert again.body["choices"] == first.body["choices"]
    assert server.ask(CHAT, DRAWN).headers["x-slmq-seed"] != str(seed)
    assert "x-slmq-seed" not in server.ask(CHAT, {**DRAWN, "temperature": 0}).headers


def test_the_fingerprint_tells_models_apart(
    server: LiveServer, tiny_model_path: Path, tmp_path: Path
) -> None:
    answered = server.ask(CHAT, DRAWN)
    named = answered.body["system_fingerprint"]
    assert re.fullmatch("fp_[0-9a-f]{20}", named)
    assert answered.headers["x-slmq-fingerprint"] == named
    events = server.ask(CHAT, {**DRAWN, "stream": True}).events
    assert {event["system_fingerprint"] for event in events} == {named}
    receipt = receipt_of(server, answered)
    other = tmp_path / "other"
    shutil.copytree(tiny_model_path, other)
    config = json.loads((other / "tokenizer_config.json").read_text("utf-8"))
    config["chat_template"] = config.get("chat_template", "") + " "
    (other / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    different = [
        slmq.load(other, n_ctx=2048),
        slmq.load(tiny_model_path, n_ctx=2048, kv_dtype="int8"),
        slmq.load(tiny_model_path, n_ctx=2048, format="int4"),
    ]
    for model in different:
        with model:
            checked = check_receipt(model, receipt)
            assert not checked.same
            assert named in checked.text
    with slmq.load(tiny_model_path, n_ctx=2048, n_threads=1) as same:
        assert check_receipt(same, receipt).same


def test_slmq_verify(server: LiveServer, tiny_model_path: Path, tmp_path: Path) -> None:
    receipt = receipt_of(server, server.ask(CHAT, {**DRAWN, "ignore_eos": True}))
    receipt["loading"] = {"n_ctx": 2048}
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(receipt))
    command = ["verify", str(path), "--model", str(tiny_model_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "the same bytes: 12 tokens in 1 answers" in done.output
    receipt["seed"] += 1
    path.write_text(json.dumps(receipt))
    assert CliRunner().invoke(app, command).exit_code == 1
    for wrong in ("{", "[]", "{}"):
        path.write_text(wrong)
        assert CliRunner().invoke(app, command).exit_code == 1


def test_receipts_are_their_owners(model: Model) -> None:
    with live_server({"tiny": model}, Limits(keys=("one", "two"))) as server:
        mine, other = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
        answered = server.ask(CHAT, DRAWN, headers=mine)
        path = f"/v1/receipts/{answered.headers['x-request-id']}"
        wait_until(lambda: server.ask(path, headers=mine).status == 200)
        assert server.ask(path, headers=other).status == 404
        assert server.ask(path).status == 401


def test_old_receipts_make_room(server: LiveServer) -> None:
    answered = [server.ask(CHAT, DRAWN) for _ in range(3)]
    size = len(json.dumps(receipt_of(server, answered[0])))
    kept = server.service.receipts
    server.service.receipts = Receipts(kept_bytes=2 * size)
    try:
        latest = [server.ask(CHAT, DRAWN) for _ in range(4)]
        receipt_of(server, latest[-1])
        assert server.ask(f"/v1/receipts/{latest[0].headers['x-request-id']}").status == 404
    finally:
        server.service.receipts = kept


# Costs -----------------------------------------------------------------------------------------


@pytest.fixture
def logged(model: Model, tmp_path: Path) -> Iterator[LiveServer]:
    with live_server({"tiny": model}, log_path=tmp_path / "requests.jsonl") as server:
        yield server


def lines(path: Path, count: int) -> list[Any]:
    wait_until(lambda: path.exists() and path.read_text().count("\n") >= count)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_add_up_to_the_time_of_the_engine(logged: LiveServer, tmp_path: Path) -> None:
    logged.ask(CHAT, DRAWN)  # so that the model has a name: that takes a run of its own
    path = tmp_path / "requests.jsonl"
    lines(path, 1)
    before_s = logged.model.stats().busy_s
    with ThreadPoolExecutor(8) as pool:
        bodies = [{**DRAWN, "seed": i, "stream": i % 2 == 0} for i in range(11)]
        list(pool.map(lambda body: logged.ask(CHAT, body), bodies))
        list(pool.map(lambda _: logged.ask(CHAT, {**DRAWN, "seed": 99}), range(4)))
    with logged.send(
        CHAT, {**DRAWN, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    ) as gone:
        gone.recv(100)
    first, *found = lines(path, 17)
    assert [line["outcome"] for line in found].count("cancelled") == 1
    spent_ms = sum(line["prompt_ms"] + line["decode_ms"] for line in found)
    busy_ms = (logged.model.stats().busy_s - before_s) * 1e3
    assert math.isclose(spent_ms, busy_ms, abs_tol=0.001 * 2 * len(found))  # of rounding
    assert all(line["tokens"] <= 12 for line in found if line["outcome"] == "finished")
    assert "Hi" not in path.read_text()
    text = logged.ask("/metrics").data.decode()
    total = sum(
        float(re.search(rf'slmq:request_{name}_seconds_total{{model_name="tiny"}} (.+)', text)[1])  # type: ignore[index]
        for name in ("prompt", "decode")
    )
    spent_ms += first["prompt_ms"] + first["decode_ms"]
    assert math.isclose(total * 1e3, spent_ms, abs_tol=0.001 * 2 * len(found))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_full_disk_costs_lines_and_nothing_else(model: Model) -> None:
    with live_server({"tiny": model}, log_path=Path("/dev/full")) as server:
        for i in range(5):
            assert server.ask(CHAT, {**DRAWN, "seed": i}).status == 200
        wait_until(lambda: b"slmq:log_lines_lost_total 5" in server.ask("/metrics").data)


# What comes -------------------------------------------------------------------------------------


def test_what_cannot_come_in_time_is_refused_before_it_starts(server: LiveServer) -> None:
    answered = server.ask(CHAT, DRAWN, headers={"x-slmq-deadline-ms": "60000"})
    assert answered.status == 200
    assert int(answered.headers["x-slmq-expected-ms"]) < 60000
    before = server.model.stats()
    late = server.ask(CHAT, DRAWN, headers={"x-slmq-deadline-ms": "0.001"})
    assert late.status == 504
    assert late.headers["x-should-retry"] == "false"
    assert "expected" in late.body["error"]["message"]
    wait_until(lambda: server.idle)
    assert server.model.stats().generated_tokens == before.generated_tokens
    wrong = server.ask(CHAT, DRAWN, headers={"x-slmq-deadline-ms": "soon"})
    assert (wrong.status, wrong.body["error"]["param"]) == (400, "x-slmq-deadline-ms")
