"""Decisions: typed questions about an input, answered with probabilities; nothing is generated.

Two APIs ask the same: OpenAI's (predicate, choice, score) and System One (noul, choice, score).
Each option is scored as the model's answer, as `Model.label` does, so any model can decide.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from slmq.batch.requests import RequestError
from slmq.generation.labels import Label, Labeller, Question
from slmq.server.exchange import ignored_header, only
from slmq.server.guard import body_of
from slmq.server.replies import Reply, until_gone

if TYPE_CHECKING:
    from starlette.requests import Request

    from slmq.generation.model import Model
    from slmq.server.service import Service

__all__ = ["Decisions"]

MOST_QUESTIONS, MOST_OPTIONS = 400, 255
TOGETHER = 16  # questions that keep the engine from everybody else at a time,
OPTIONS_TOGETHER = 64  # and how many options all of them may have
YES, NO = "Yes", "No"
IGNORED = ("prompt_cache_key", "prompt_cache_options", "safety_identifier")
TEXTS = ("input_text", "output_text", "text")


@dataclass(frozen=True)
class Asked:
    """A question in the words of neither API.

    Attributes
    ----------
    kind : str
        As its API calls it.
    name : str or None
    instruction : str
    options : tuple of str
        What may be answered.
    told : tuple
        What these options are called in an answer.
    """

    kind: str
    name: str | None
    instruction: str
    options: tuple[str, ...]
    told: tuple[Any, ...]


class Decisions:
    """Endpoints.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._turn = asyncio.Lock()  # one at a time: the others need the threads of the pool

    async def create(self, request: Request) -> Reply:
        """POST /v1/decisions."""
        body = body_of(request.scope)
        given = only(body, ("model", "input", "questions", *IGNORED))
        questions = _list(given, "questions", 1, MOST_QUESTIONS)
        asked = [_openai_question(one, f"questions[{i}]") for i, one in enumerate(questions)]
        text = _input_text(given.get("input"))
        name, labels, tokens = await self._decide(request, given.get("model"), text, asked)
        answers = [
            {"name": one.name, **_openai_answer(one, label)}
            for one, label in zip(asked, labels, strict=True)
        ]
        usage = {
            **_usage(tokens),
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        ignored = [field for field in IGNORED if field in given]
        return Reply(
            {"answers": answers, "model": name, "usage": usage}, 200, ignored_header(ignored)
        )

    async def system_one(self, request: Request) -> Reply:
        """POST /v1/systemone."""
        given = only(body_of(request.scope), ("model", "state", "questions"))
        questions = _object(given.get("questions"), 1, MOST_QUESTIONS, "questions")
        asked = [_system_one_question(name, one) for name, one in questions.items()]
        text = _plain(given.get("state"), "state")
        name, labels, tokens = await self._decide(request, given.get("model"), text, asked)
        answers = {
            one.name: _system_one_answer(one, label)
            for one, label in zip(asked, labels, strict=True)
        }
        return Reply({"model": name, "answers": answers, "usage": _usage(tokens)})

    async def _decide(
        self, request: Request, model: Any, text: str, asked: Sequence[Asked]
    ) -> tuple[str, list[Label], int]:
        """The model's name, an answer to each question, and how many tokens were read."""
        self._service.require_open()
        labels: list[Label] = []
        tokens = 0
        async with self._service.shelf.use(model) as book:
            assert book.loaded is not None
            for group in _groups(asked):
                async with self._turn:
                    work = self._service.run(partial(_answers, book.loaded.model, text, group))
                    found, count = await until_gone(request.receive, work)
                labels += found
                tokens += count
            return book.name, labels, tokens


def _answers(model: Model, text: str, asked: Sequence[Asked]) -> tuple[list[Label], int]:
    questions: dict[str, Question] = {
        f"questions[{i}]": (one.instruction, one.options) for i, one in enumerate(asked)
    }
    labeller = Labeller.asking(model.exclusive, model.engine, questions)
    (found,) = labeller([text])
    assert isinstance(found, dict)
    return list(found.values()), labeller.prompt_tokens(text)


def _groups(asked: Sequence[Asked]) -> Iterator[list[Asked]]:
    """Questions that are answered together; others get their turn in between."""
    group: list[Asked] = []
    for one in asked:
        options = sum(len(other.options) for other in (*group, one))
        if group and (len(group) >= TOGETHER or options > OPTIONS_TOGETHER):
            yield group
            group = []
        group.append(one)
    yield group


# Questions ------------------------------------------------------------------------------------


def _question(
    kind: str, name: str | None, asked: str, where: str, options: Sequence[tuple[str, str, Any]]
) -> Asked:
    """A question from what it asks and its options: text, description and name."""
    texts = tuple(text for text, _, _ in options)
    if len(set(texts)) < len(texts):
        raise RequestError(f"{where}: expected options that differ as texts", where)
    lines = [f"- {text}: {told}" if told else f"- {text}" for text, told, _ in options]
    instruction = "\n".join([asked, "Answer with one of these only:", *lines])
    return Asked(kind, name, instruction, texts, tuple(told for _, _, told in options))


def _openai_question(question: Any, where: str) -> Asked:
    kind = question.get("type") if isinstance(question, dict) else None
    if kind not in ("predicate", "choice", "score"):
        raise RequestError(f"{where}.type: expected predicate, choice or score", where)
    name = question.get("name")
    if name is not None and not isinstance(name, str):
        raise RequestError(f"{where}.name: expected a string", where)
    asked = _parts(question.get("instructions"), f"{where}.instructions")
    if kind == "predicate":
        only(question, ("type", "name", "instructions"), f"{where}.")
        return _question(kind, name, asked, where, [(YES, "", True), (NO, "", False)])
    field, told = ("choices", "value") if kind == "choice" else ("levels", "label")
    only(question, ("type", "name", "instructions", field), f"{where}.")
    options = []
    for i, option in enumerate(_list(question, field, 2, MOST_OPTIONS, f"{where}.")):
        place = f"{where}.{field}[{i}]"
        value = option.get(told) if isinstance(option, dict) else None
        if not isinstance(value, (str, bool) if kind == "choice" else str):
            raise RequestError(f"{place}.{told}: expected a string", place)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        options.append((text, _described(option.get("description"), place), value))
    return _question(kind, name, asked, where, options)


def _system_one_question(name: str, question: Any) -> Asked:
    where = f"questions.{name:.80}"
    kind = question.get("type") if isinstance(question, dict) else None
    if kind not in ("noul", "choice", "score"):
        raise RequestError(f"{where}.type: expected noul, choice or score", where)
    given = only(question, ("type", "instructions", "criteria"), f"{where}.")
    asked = _plain(given.get("instructions"), f"{where}.instructions")
    criteria = given.get("criteria")
    place = f"{where}.criteria"
    if kind == "noul":
        meant = only(_object(criteria or {}, 0, 2, place), ("true", "false"), f"{place}.")
        yes, no = (_described(meant.get(key), place) for key in ("true", "false"))
        return _question(kind, name, asked, where, [(YES, yes, True), (NO, no, False)])
    if kind == "choice":
        found = _object(criteria, 2, MOST_OPTIONS, place)
        options = [(key, _described(told, place), key) for key, told in found.items()]
        return _question(kind, name, asked, where, options)
    levels = _list(given, "criteria", 2, MOST_OPTIONS, f"{where}.")
    texts = [_plain(level, f"{place}[{i}]") for i, level in enumerate(levels)]
    return _question(kind, name, asked, where, [(text, "", text) for text in texts])


def _described(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RequestError(f"{where}: expected descriptions as strings", where)
    return value


def _list(given: Mapping[str, Any], name: str, least: int, most: int, where: str = "") -> list[Any]:
    value = given.get(name)
    if not isinstance(value, list) or not least <= len(value) <= most:
        place = f"{where}{name}"
        raise RequestError(f"{place}: expected a list of {least} to {most}", place)
    return value


def _object(value: Any, least: int, most: int, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not least <= len(value) <= most:
        raise RequestError(f"{where}: expected an object of {least} to {most}", where)
    return value


# Inputs ---------------------------------------------------------------------------------------


def _plain(value: Any, where: str) -> str:
    """A text as it is, and any other value as JSON."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, (dict, list)) and value:
        return json.dumps(value, ensure_ascii=False)
    raise RequestError(f"{where}: expected a text that is not empty, an object or a list", where)


def _parts(value: Any, where: str) -> str:
    """A text, or the texts and values of a list of parts."""
    if not isinstance(value, list):
        return _plain(value, where)
    found = []
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        place = f"{where}[{i}]"
        if kind == "input_json":
            found.append(_plain(part.get("data"), place))
        elif kind in TEXTS:
            found.append(_plain(part.get("text"), place))
        elif kind == "refusal":
            found.append(_plain(part.get("refusal"), place))
        else:
            raise RequestError(
                f"{place}: expected text or JSON, got a part of type {kind!r:.40}", where
            )
    return _plain("\n".join(found), where)


def _input_text(value: Any) -> str:
    """An input as a text: a single message is its text, several are told one after another."""
    if not isinstance(value, list):
        return _plain(value, "input")
    lines = [_item(item, f"input[{i}]") for i, item in enumerate(value)]
    if len(lines) == 1 and value[0].get("role") == "user":
        return lines[0][1]
    return _plain("\n\n".join(f"{who}: {text}" for who, text in lines), "input")


def _item(item: Any, where: str) -> tuple[str, str]:
    """Who says what in an item of an input."""
    if not isinstance(item, dict):
        raise RequestError(f"{where}: expected a message, a call or its output", where)
    kind = item.get("type", "message")
    if kind == "message" and item.get("role") in ("user", "assistant", "system", "developer"):
        return str(item["role"]), _parts(item.get("content"), f"{where}.content")
    if kind in ("function_call", "custom_tool_call"):
        given = item.get("arguments" if kind == "function_call" else "input")
        return f"call of {item.get('name')}", _plain(given, where)
    if kind in ("function_call_output", "custom_tool_call_output"):
        return "result", _parts(item.get("output"), f"{where}.output")
    raise RequestError(f"{where}: expected a message, a call or its output", where)


# Answers --------------------------------------------------------------------------------------


def _openai_answer(asked: Asked, label: Label) -> dict[str, Any]:
    values = list(label.probabilities.values())
    if asked.kind == "predicate":
        return {"type": asked.kind, "probability": values[0]}
    sure = {"type": asked.kind, "confidence": _confidence(values)}
    if asked.kind == "choice":
        each = [
            {"value": told, "probability": p} for told, p in zip(asked.told, values, strict=True)
        ]
        return {**sure, "choice": _best(asked, label), "probabilities": each}
    each = [
        {"value": i, "label": told, "probability": p}
        for i, (told, p) in enumerate(zip(asked.told, values, strict=True))
    ]
    return {**sure, "score": _expected(values), "probabilities": each}


def _system_one_answer(asked: Asked, label: Label) -> dict[str, Any]:
    values = list(label.probabilities.values())
    if asked.kind == "noul":
        return {"type": asked.kind, "noul": values[0]}
    sure = {"type": asked.kind, "confidence": _confidence(values)}
    if asked.kind == "choice":
        each = dict(zip(asked.told, values, strict=True))
        return {**sure, "choice": _best(asked, label), "probabilities": each}
    return {
        **sure,
        "score": _expected(values),
        "legend": {str(i): told for i, told in enumerate(asked.told)},
        "probabilities": {str(i): p for i, p in enumerate(values)},
    }


def _best(asked: Asked, label: Label) -> Any:
    return asked.told[asked.options.index(label.label)]


def _confidence(values: Sequence[float]) -> float:
    """1 where one option has it all, 0 where all are alike."""
    n = len(values)
    return max(0.0, (n * max(values) - 1) / (n - 1))


def _expected(values: Sequence[float]) -> float:
    return sum(i * p for i, p in enumerate(values))


def _usage(tokens: int) -> dict[str, int]:
    return {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}
