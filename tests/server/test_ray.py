"""Rows and requests on a local cluster of two of Ray's nodes, one of whose workers is killed.

pip install "slmq[ray]" && pytest tests/server/test_ray.py
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from live_server import wait_until

pytest.importorskip("ray.serve")
pytest.importorskip("ray.data")

import ray
from ray import cloudpickle

from slmq.batch.requests import seed_of
from slmq.generation.model import Model
from slmq.server.ray import ProcessorConfig, build_application, build_processor
from slmq.server.ray.deployment import beginning_of

pytestmark = pytest.mark.slow

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find tests

ROWS, N = 64, 24
PORT = 18181
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes on this machine, each with processors of its own, as far as Ray knows."""
    from ray.cluster_utils import Cluster

    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False}
    )
    found.add_node(num_cpus=3)
    found.wait_for_nodes()
    ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


def workers(title: str) -> list[int]:
    """Processes of this cluster by what Ray calls them."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                said = (process / "cmdline").read_text()
            except OSError:
                continue
            if said.startswith("ray::") and title in said:
                found.append(int(process.name))
    return found


def questions() -> list[dict[str, Any]]:
    return [{"custom_id": f"r{i}", "question": f"What is {i}?"} for i in range(ROWS)]


def messages(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_rows_are_the_same_when_a_worker_is_killed(
    cluster: Any, tiny_model_path: Path, model: Model
) -> None:
    sampling = {"temperature": 0.8, "max_tokens": N}
    answered = build_processor(
        ProcessorConfig(
            tiny_model_path,
            engine_kwargs={"n_ctx": 2048},
            sampling_params=sampling,
            batch_size=4,
            concurrency=2,
            max_concurrent_batches=2,
        ),
        preprocess=lambda row: {"messages": messages(row["question"])},
        postprocess=lambda row: {"id": row["custom_id"], "text": row["generated_text"]},
    )
    found: dict[str, str] = {}
    killed = []
    for row in answered(ray.data.from_items(questions())).iter_rows():
        found[row["id"]] = row["text"]
        if not killed:
            killed = workers("_Engine")[:1]
            assert killed, "the models have no workers"
            os.kill(killed[0], signal.SIGKILL)
    wanted = {
        row["custom_id"]: model.generate(
            messages(row["question"]), seed=seed_of(row["custom_id"]), **sampling
        ).text
        for row in questions()
    }
    assert found == wanted
    assert len(set(found.values())) > ROWS // 2  # they were drawn, each by itself


def test_a_row_that_fails_has_a_message_and_the_others_an_answer(
    cluster: Any, tiny_model_path: Path, model: Model
) -> None:
    rows = [
        {"prompt": "Once", "sampling_params": {"max_tokens": 4, "n": 1}},
        {"prompt": "Once", "sampling_params": {"max_tokens": 4, "n": 2}},
        {"prompt": "Once", "sampling_params": {"max_tokens": -7, "n": 1}},
        {"prompt": "One two " * 3000, "sampling_params": {"max_tokens": 4, "n": 1}},
    ]
    config = ProcessorConfig(tiny_model_path, engine_kwargs={"n_ctx": 2048})
    found = build_processor(config)(ray.data.from_items(rows)).take_all()
    errors = {row["__inference_error__"][:50] for row in found}
    assert len(errors) == len(rows), errors
    assert "" in errors
    assert any("expected one answer for each row" in error for error in errors)
    assert any(error.startswith("ContextOverflowError") for error in errors)
    (good,) = (row for row in found if not row["__inference_error__"])
    assert good["generated_text"] == model.generate("Once", max_tokens=4).text
    assert (good["num_generated_tokens"], good["finish_reason"]) == (4, "length")
    assert good["prompt"] == "Once"


def test_wrong_configurations_are_refused_where_they_are_made() -> None:
    for wrong in ({"concurrency": (3, 2)}, {"batch_size": 0}, {"engine_kwargs": {"n_ctx": -1}}):
        with pytest.raises((ValueError, TypeError)):
            ProcessorConfig("tiny", **wrong)  # type: ignore[arg-type]


def test_the_turns_of_a_conversation_begin_alike() -> None:
    system = {"role": "system", "content": "Be short."}
    first = [system, *messages("Name a colour.")]
    later = [*first, {"role": "assistant", "content": "Red."}, *messages("Another one.")]
    begun = [said({"messages": turn, "temperature": i}) for i, turn in enumerate((first, later))]
    assert begun[0] == begun[1]
    others = (
        {"messages": [system, *messages("Name a bird.")]},
        {"messages": first, "model": "another"},
        {"messages": first, "tools": [{"type": "function"}]},
        {"prompt": "Once"},
        {"input": "Once"},
        {"model": None},
    )
    beginnings = [said(other) for other in others]
    assert begun[0] not in beginnings
    assert beginnings[3] == beginnings[4]
    assert len(set(beginnings)) == len(others) - 1
    assert beginning_of(b"{") == beginning_of(b"[1]") == ""


def said(body: Any) -> str:
    return beginning_of(json.dumps(body).encode())


def ask(path: str, body: Any = None) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", PORT, timeout=60)
    data = None if body is None else json.dumps(body)
    headers = {"content-type": "application/json"} if data else {}
    connection.request("GET" if data is None else "POST", path, data, headers)
    response = connection.getresponse()
    try:
        return response.status, response.read()
    finally:
        connection.close()


def test_a_conversation_stays_with_its_copy_and_outlives_it(
    cluster: Any, tiny_model_path: Path, model: Model
) -> None:
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(
        build_application(tiny_model_path, num_replicas=2, engine_kwargs={"n_ctx": 2048}),
        name="slmq",
    )
    try:
        first = messages("Name three colours, slowly and one by one, please.")
        asked = {"messages": first, "max_tokens": N, "temperature": 0.8, "seed": 5}
        wanted = model.generate(first, max_tokens=N, temperature=0.8, seed=5).text
        cached = []
        for _ in range(6):
            status, data = ask(CHAT, asked)
            assert status == 200, data
            body = json.loads(data)
            assert body["choices"][0]["message"]["content"] == wanted
            cached.append(body["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert cached[0] == 0
        assert min(cached[1:]) == body["usage"]["prompt_tokens"] - 1  # always the same copy
        assert streamed({**asked, "stream": True}) == wanted
        assert ask(CHAT, {**asked, "temperature": -1})[0] == 400
        assert ask("/v1/nothing")[0] == 404
        assert ask("/v1/files")[0] == 501
        for copy in workers("slmq:slmq")[:1] or workers("ServeReplica:slmq:slmq")[:1]:
            os.kill(copy, signal.SIGKILL)
        wait_until(lambda: ask(CHAT, asked)[0] == 200)
        for _ in range(6):
            assert json.loads(ask(CHAT, asked)[1])["choices"][0]["message"]["content"] == wanted
    finally:
        serve.shutdown()


def streamed(body: Any) -> str:
    status, data = ask(CHAT, body)
    assert status == 200, data
    events = [x[6:] for x in data.decode("ascii").split("\n") if x.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return "".join(json.loads(x)["choices"][0]["delta"].get("content") or "" for x in events)
