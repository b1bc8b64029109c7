"""Typed questions, answered with probabilities: OpenAI's Decisions and System One."""

from __future__ import annotations

import math
from typing import Any

import pytest
from live_server import LiveServer

DECISIONS, SYSTEM_ONE = "/v1/decisions", "/v1/systemone"
TEXT = "The parcel came late, and the box was wet."
LATE = {"type": "predicate", "name": "late", "instructions": "The parcel was late."}
TEAM = {
    "type": "choice",
    "instructions": "Which team is this for?",
    "choices": [{"value": "refunds", "description": "money back"}, {"value": True}],
}
ANGER = {
    "type": "score",
    "name": "anger",
    "instructions": "How angry is the customer?",
    "levels": [{"label": "calm"}, {"label": "cross"}, {"label": "furious"}],
}


def test_each_question_is_answered_as_its_type_says(server: LiveServer) -> None:
    asked = {"model": "tiny", "input": TEXT, "questions": [LATE, TEAM, ANGER]}
    answered = server.ask(DECISIONS, asked)
    assert answered.status == 200
    late, team, anger = answered.body["answers"]
    wanted = server.model.label(
        TEXT,
        ["Yes", "No"],
        instruction="The parcel was late.\nAnswer with one of these only:\n- Yes\n- No",
    )
    assert late == {"type": "predicate", "name": "late", "probability": wanted.probabilities["Yes"]}
    assert team["name"] is None
    assert [one["value"] for one in team["probabilities"]] == ["refunds", True]
    values = [one["probability"] for one in team["probabilities"]]
    assert math.isclose(sum(values), 1.0)
    assert team["choice"] == ("refunds" if values[0] >= values[1] else True)
    assert math.isclose(team["confidence"], abs(2 * values[0] - 1))
    assert [(p["value"], p["label"]) for p in anger["probabilities"]] == [
        (0, "calm"), (1, "cross"), (2, "furious"),
    ]  # fmt: skip
    assert anger["score"] == sum(p["value"] * p["probability"] for p in anger["probabilities"])
    assert answered.body["usage"]["input_tokens"] > len(TEXT.split())


def test_answers_depend_on_no_other_question(server: LiveServer) -> None:
    alone = server.ask(DECISIONS, {"input": TEXT, "questions": [ANGER]}).body["answers"]
    many = server.ask(DECISIONS, {"input": TEXT, "questions": [LATE, TEAM, ANGER] * 12}).body
    assert many["answers"][2::3] == alone * 12


def test_system_one_says_the_same(server: LiveServer) -> None:
    questions = {
        "late": {"type": "noul", "instructions": LATE["instructions"]},
        "anger": {
            "type": "score",
            "instructions": ANGER["instructions"],
            "criteria": ["calm", "cross", "furious"],
        },
        "team": {
            "type": "choice",
            "instructions": TEAM["instructions"],
            "criteria": {"refunds": "money back", "true": None},
        },
    }
    found = server.ask(SYSTEM_ONE, {"state": TEXT, "questions": questions}).body["answers"]
    asked = {"input": TEXT, "questions": [LATE, TEAM, ANGER]}
    late, team, anger = server.ask(DECISIONS, asked).body["answers"]
    assert found["late"] == {"type": "noul", "noul": late["probability"]}
    assert found["anger"]["score"] == anger["score"]
    assert found["anger"]["legend"] == {"0": "calm", "1": "cross", "2": "furious"}
    assert list(found["anger"]["probabilities"]) == ["0", "1", "2"]
    assert list(found["team"]["probabilities"].values()) == [
        one["probability"] for one in team["probabilities"]
    ]


def test_inputs_of_several_items(server: LiveServer) -> None:
    said = [{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}]
    plain = server.ask(DECISIONS, {"input": TEXT, "questions": [LATE]}).body["answers"]
    assert server.ask(DECISIONS, {"input": said, "questions": [LATE]}).body["answers"] == plain
    items = [
        *said,
        {"type": "function_call", "name": "find", "call_id": "1", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "late"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "It is late."}]},
    ]
    told = server.ask(DECISIONS, {"input": items, "questions": [LATE]}).body["answers"]
    whole = f"user: {TEXT}\n\ncall of find: {{}}\n\nresult: late\n\nassistant: It is late."
    assert told == server.ask(DECISIONS, {"input": whole, "questions": [LATE]}).body["answers"]


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"questions": []}, "questions"),
        ({"input": ""}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"questions": [{**LATE, "type": "noul"}]}, "questions[0]"),
        ({"questions": [{**TEAM, "choices": [{"value": "a"}]}]}, "questions[0].choices"),
        ({"questions": [{**TEAM, "choices": [{"value": "a"}] * 2}]}, "questions[0]"),
        ({"questions": [{**LATE, "colour": 1}]}, "questions[0].colour"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_faults_have_names(server: LiveServer, changed: dict[str, Any], param: str) -> None:
    answered = server.ask(DECISIONS, {"input": TEXT, "questions": [LATE], **changed})
    assert answered.status == 400
    assert answered.body["error"]["param"] == param


def test_openai_decides(server: LiveServer) -> None:
    module = pytest.importorskip("openai")
    client = module.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    if not hasattr(client, "decisions"):
        pytest.skip("this client has no decisions")
    found = client.decisions.create(model="tiny", input=TEXT, questions=[LATE, TEAM, ANGER])
    assert [answer.type for answer in found.answers] == ["predicate", "choice", "score"]
