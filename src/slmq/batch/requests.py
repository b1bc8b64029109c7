"""From the body of a request to prompts and sampling parameters, for files and for the server.

Fields are those of OpenAI's chat and text completions, and the other sampling parameters of slmq.
A field that would change the answer, but has no effect here, is refused; the others are ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

from slmq.batch.lines import CHAT
from slmq.chat.messages import checked_content
from slmq.generation.mapping import sample_seeds
from slmq.generation.params import SHAPE, SamplingParams
from slmq.settings import names_of

if TYPE_CHECKING:
    from slmq.tokenizer import Tokenizer

__all__ = ["Asked", "RequestError", "ignored_fields", "read_request", "seed_of"]

# What is called the same here and there; the others have names of their own in these requests.
SAMPLING = tuple(
    entry.name for entry in fields(SamplingParams) if entry.name not in ("max_tokens", "logprobs")
)
SHAPES = set(names_of(SamplingParams, SHAPE))
FORMAT = "response_format"  # OpenAI's way to ask for JSON
FORMAT_FIELDS = {
    "text": {"type"},
    "json_object": {"type", "schema"},
    "json_schema": {"type", "json_schema"},
}
SCHEMA_FIELDS = {"name", "description", "schema", "strict"}
EFFORT = "reasoning_effort"  # and whether a model reasons
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
LIMITS = ("max_completion_tokens", "max_tokens")  # the first beats the second
IGNORED = {
    "cache_prompt", "id_slot", "metadata", "model", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "return_progress", "safety_identifier", "service_tier",
    "stream_options", "timings_per_token", "user", "verbosity",
}  # fmt: skip
# Names that other servers have for the same.
ALIASES = {
    "json_schema": "schema", "n_predict": "max_tokens", "repeat_penalty": "repetition_penalty",
}  # fmt: skip
# Fields with the only values that ask for what is done anyway.
INERT: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "store": (False,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "suffix": ("",),
}
MOST_ANSWERS = 128
MOST_TOP_LOGPROBS = 20


class RequestError(ValueError):
    """A request cannot be answered as it is; `param` names the field at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes
    ----------
    chat : bool
        Chat or text completion.
    prompts : list
        Of `slmq.generation.model.Prompt`; several only in a text completion.
    n : int
        Answers to each.
    params : dict
        Sampling parameters.
    template : dict, optional
        Variables of the chat template.
    echo : bool
        Whether answers begin with their prompts.
    """

    chat: bool
    prompts: list[Any]
    n: int
    params: dict[str, Any]
    template: dict[str, Any] | None = None
    echo: bool = False

    def said_before(self, index: int, tokenizer: Tokenizer) -> str:
        """What an answer begins with beside what the model said: its prompt, or nothing."""
        if not self.echo:
            return ""
        prompt = self.prompts[index // self.n]
        return prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special=False)

    def answers(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Prompt and parameters of every answer; each has a seed of its own."""
        seeds = sample_seeds(self.params.get("seed"))
        for prompt in self.prompts:
            for seed in islice(seeds, self.n):
                yield prompt, {**self.params, "seed": seed}


def read_request(
    url: str, body: Mapping[str, Any], seed: int | None, defaults: Mapping[str, Any]
) -> Asked:
    """Check a body.

    Parameters
    ----------
    url : str
    body : mapping
    seed : int, optional
        Of requests that set none, here or in `defaults`; None draws a fresh one.
    defaults : mapping
        Sampling parameters of requests that do not set them.

    Raises
    ------
    RequestError
    """
    chat = url == CHAT
    given = {ALIASES.get(name, name): value for name, value in body.items() if value is not None}
    _check_fields(given, chat)
    own = {name: given[name] for name in SAMPLING if name in given}
    if FORMAT in given:
        own |= _shape(given[FORMAT])
    shaped = FORMAT in given or any(name in own for name in SHAPES)
    params = {n: value for n, value in defaults.items() if not (shaped and n in SHAPES)} | own
    if EFFORT in given:
        params["thinking"] = _thinking(given[EFFORT])
    for name in reversed(LIMITS):
        if name in given:
            params["max_tokens"] = given[name]
    if "logit_bias" in given:
        params["logit_bias"] = _biases(given["logit_bias"])
    if "logprobs" in given or "top_logprobs" in given:
        params["logprobs"] = _logprobs(given, chat)
    if params.get("seed") is None:
        params["seed"] = seed
    try:
        SamplingParams.from_kwargs(params)
    except (TypeError, ValueError) as error:
        raise RequestError(str(error), str(error).partition(":")[0]) from None
    prompts = [_messages(given)] if chat else _prompts(given)
    n = _count(given, "n", 1, MOST_ANSWERS // len(prompts))
    if given.get("best_of", n) != n:
        raise RequestError(f"best_of: expected n ({n}), got {given['best_of']!r}", "best_of")
    return Asked(chat, prompts, n, params, _template(given), _echo(given, params))


def ignored_fields(body: Mapping[str, Any]) -> list[str]:
    """Fields of a body that have no effect, in the order of the alphabet."""
    return sorted(name for name in IGNORED if body.get(name) is not None)


def seed_of(custom_id: str) -> int:
    """The seed of a request that has none, so that another run draws the same."""
    digest = hashlib.sha256(custom_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big")


def _check_fields(given: Mapping[str, Any], chat: bool) -> None:
    known = {*SAMPLING, *LIMITS, *IGNORED, *INERT, FORMAT, "n", "logprobs"}
    if chat:
        known |= {"messages", "top_logprobs", "chat_template_kwargs", EFFORT}
    else:
        known |= {"prompt", "best_of", "echo"}
    for name, value in given.items():
        if name not in known:
            raise RequestError(f"{name:.80}: is not supported", name)
        if name in INERT and value not in INERT[name]:
            raise RequestError(f"{name}: {value!r:.80} is not supported", name)


def _echo(given: Mapping[str, Any], params: Mapping[str, Any]) -> bool:
    wanted = given.get("echo", False)
    if not isinstance(wanted, bool):
        raise RequestError(f"echo: expected true or false, got {wanted!r:.80}", "echo")
    if wanted and params.get("logprobs") is not None:
        raise RequestError("echo: is not supported beside logprobs", "echo")
    return wanted


def _thinking(effort: Any) -> bool:
    if effort not in EFFORTS:
        expected = ", ".join(EFFORTS)
        raise RequestError(f"{EFFORT}: expected one of {expected}; got {effort!r:.80}", EFFORT)
    return bool(effort != "none")


def _template(given: Mapping[str, Any]) -> dict[str, Any] | None:
    variables = given.get("chat_template_kwargs")
    if variables is not None and not isinstance(variables, dict):
        raise RequestError(
            f"chat_template_kwargs: expected an object, got {variables!r:.80}",
            "chat_template_kwargs",
        )
    return variables


def _messages(given: Mapping[str, Any]) -> Any:
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages: expected a list of at least one message", "messages")
    if not all(isinstance(message, dict) for message in messages):
        raise RequestError("messages: expected objects with role and content", "messages")
    return _with_one_system([_with_content(message) for message in messages])


def _with_content(message: dict[str, Any]) -> dict[str, Any]:
    """A message that only calls has null for its content, in which templates look for marks."""
    if message.get("tool_calls") and message.get("content") is None:
        return {**message, "content": ""}
    return message


def _with_one_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Developers' messages are the system's; several at the start are one, as templates want it."""
    renamed = [
        {**message, "role": "system"} if message.get("role") == "developer" else message
        for message in messages
    ]
    leading = list(takewhile(lambda message: message.get("role") == "system", renamed))
    if len(leading) < 2:
        return renamed
    parts = [
        checked_content(message.get("content"), f"messages[{i}].content")
        for i, message in enumerate(leading)
    ]
    return [{**leading[0], "content": "\n\n".join(parts)}, *renamed[len(leading) :]]


def _prompts(given: Mapping[str, Any]) -> list[Any]:
    prompt = given.get("prompt")
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, int) for item in prompt):
            return [prompt]
        if all(isinstance(item, str | list) for item in prompt) and len(prompt) <= MOST_ANSWERS:
            return prompt
    raise RequestError(
        f"prompt: expected a string, token ids, or a list of up to {MOST_ANSWERS} of them", "prompt"
    )


def _biases(value: Any) -> dict[int, Any]:
    try:
        return {int(token): bias for token, bias in value.items()}
    except (AttributeError, ValueError):
        raise RequestError(
            f"logit_bias: expected an object of token ids and numbers, got {value!r:.80}",
            "logit_bias",
        ) from None


def _shape(value: Any) -> dict[str, Any]:
    """The parameters that a `response_format` stands for."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in FORMAT_FIELDS:
        raise RequestError(
            f"{FORMAT}: expected the type text, json_object, or json_schema with "
            f"json_schema.schema, got {value!r:.80}",
            FORMAT,
        )
    _only_known(value, FORMAT_FIELDS[kind], FORMAT)
    if kind == "text":
        return {}
    if kind == "json_object" and value.get("schema") is None:
        return {"json": True}
    # llama.cpp and others have the schema beside the type json_object.
    wanted = value if kind == "json_object" else value.get("json_schema")
    if not isinstance(wanted, dict) or not isinstance(wanted.get("schema"), (dict, bool)):
        raise RequestError(
            f"{FORMAT}: expected a JSON schema in json_schema.schema, got {value!r:.80}", FORMAT
        )
    if kind == "json_schema":
        _only_known(wanted, SCHEMA_FIELDS, f"{FORMAT}.json_schema")
    return {"schema": wanted["schema"], "lenient": wanted.get("strict") is False}


def _only_known(given: Mapping[str, Any], known: set[str], where: str) -> None:
    """Refuse what would be without effect: a schema that is not heeded is worse than none."""
    for name, value in given.items():
        if name not in known and value is not None:
            raise RequestError(f"{where}.{name:.80}: is not supported", where.partition(".")[0])


def _logprobs(given: Mapping[str, Any], chat: bool) -> int | None:
    if not chat:
        return _count(given, "logprobs", 0, MOST_TOP_LOGPROBS)
    wanted = given.get("logprobs", False)
    if not isinstance(wanted, bool):
        raise RequestError(f"logprobs: expected true or false, got {wanted!r:.80}", "logprobs")
    if "top_logprobs" not in given:
        return 0 if wanted else None
    if not wanted:
        raise RequestError("top_logprobs: needs logprobs", "top_logprobs")
    return _count(given, "top_logprobs", 0, MOST_TOP_LOGPROBS)


def _count(given: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = given.get(name, least)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RequestError(f"{name}: expected {least} to {most}, got {value!r:.80}", name)
    return value
