"""What a caller may ask of an answer: every sampling parameter with its check and its help."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypedDict

from slmq.settings import (
    check_options,
    from_keywords,
    integer,
    number,
    option,
    shown,
    truth,
)
from slmq.tools.tool import Tool, tools_of
from slmq.tools.wish import Wish

__all__ = [
    "CHAT_LIMIT",
    "DRAW",
    "SHAPE",
    "TALK",
    "TEXT_LIMIT",
    "SamplingArgs",
    "SamplingParams",
]

MAX_STOPS = 64
# Tokens of an answer whose caller named no limit. Nothing ends a text that is completed verbatim; a
# chat has an end token, but small models may loop, and models that think write long.
TEXT_LIMIT, CHAT_LIMIT = 512, 4096
DRAW = "draw"  # the group of what the sampler reads: how a token is drawn from logits
SHAPE = "shape"  # the group of what an answer may be
TALK = "talk"  # the group of what only chats have: tools and reasoning


class SamplingArgs(TypedDict, total=False):
    """The keyword arguments of `SamplingParams`, for type checkers."""

    max_tokens: int | Literal["auto"] | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    adapter: str | None
    seed: int | None
    stop: str | int | Iterable[str | int] | None
    ignore_eos: bool
    logprobs: int | None
    schema: Any
    regex: str | None
    grammar: str | None
    choices: Iterable[str] | None
    json: bool
    lenient: bool
    tools: Iterable[Any] | None
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    dialect: str | None
    thinking: bool | None


COUNT = integer("an int >= 0", low=0)
OPTIONAL_COUNT = integer("an int >= 0", low=0, optional=True)
OPTIONAL_LIMIT = integer("an int >= 0, -1 (no limit), None or 'auto'", low=0, optional=True)
BIAS = number("a finite number or -inf")


def _limit(name: str, value: object) -> int | str | None:
    if value == "auto":
        return "auto"
    if isinstance(value, Integral) and value == -1:  # as llama.cpp and ollama spell it
        return None
    limit: int | None = OPTIONAL_LIMIT(name, value)
    return limit


def _biases(_name: str, value: object) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"logit_bias: expected a mapping of int to float, got {shown(value)}")
    biases = {}
    for key, bias in value.items():
        token = COUNT("logit_bias key", key)
        if isinstance(bias, Real) and float(bias) == -math.inf:
            biases[token] = -math.inf
        else:
            biases[token] = BIAS(f"logit_bias[{token}]", bias)
    return biases


def _stops(_name: str, value: object) -> tuple[str | int, ...]:
    if value is None:
        return ()
    single = isinstance(value, (str, Integral))
    if not single and (isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable)):
        raise TypeError(f"stop: expected a str, a token id, or a list of them, got {shown(value)}")
    items: list[object] = [value] if single or not isinstance(value, Iterable) else list(value)
    if len(items) > MAX_STOPS:
        raise ValueError(f"stop: expected at most {MAX_STOPS} entries, got {len(items)}")
    stops: list[str | int] = []
    for item in items:
        if not isinstance(item, str):
            stops.append(COUNT("stop token", item))
        elif item:
            stops.append(item)
        else:
            raise ValueError("stop: expected non-empty strings, got ''")
    return tuple(stops)


def _texts_of_bias(texts: list[str]) -> dict[int, float]:
    """The biases of texts such as "198=-inf"."""
    found = {}
    for text in texts:
        token, separator, value = text.partition("=")
        try:
            if not separator:
                raise ValueError
            found[int(token)] = float(value)
        except ValueError:
            raise ValueError(
                f"logit_bias: expected ID=VALUE, such as 198=-inf; got {text!r}"
            ) from None
    return found


def _text(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, got {shown(value)}")
    if not value:
        raise ValueError(f"{name}: expected a text, got ''")
    return value


def _choices(_name: str, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"choices: expected a list of strings, got {shown(value)}")
    choices = tuple(value)
    for choice in choices:
        if not isinstance(choice, str):
            raise TypeError(f"choices: expected strings, got {shown(choice)}")
    if not choices or "" in choices:
        raise ValueError(f"choices: expected non-empty strings, got {choices!r:.80}")
    return choices


def _choices_of_texts(texts: list[str]) -> list[str]:
    """Of one option, what commas divide; of several, each."""
    return texts if len(texts) > 1 else [text.strip() for text in texts[0].split(",")]


def _file_text(name: str) -> Callable[[list[str]], str]:
    def read(texts: list[str]) -> str:
        if len(texts) > 1:
            raise ValueError(f"{name}: given {len(texts)} times")
        try:
            return Path(texts[0]).read_text("utf-8")
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ValueError(f"{name}: cannot read {texts[0]!r}: {reason}") from None

    return read


def _json_of_file(name: str) -> Callable[[list[str]], Any]:
    def read(texts: list[str]) -> Any:
        text = _file_text(name)(texts)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: {texts[0]!r} is no JSON: {error}") from None

    return read


def _tools(_name: str, value: object) -> tuple[Tool, ...]:
    return () if value is None else tools_of(value)


def _tool_choice(_name: str, value: object) -> str:
    """A word, or the name of a tool, which OpenAI's API puts into an object."""
    if isinstance(value, Mapping):
        inner = value.get("function", value)
        value = inner.get("name") if isinstance(inner, Mapping) else value
    if not isinstance(value, str):
        raise TypeError(f"tool_choice: expected 'auto' or the name of a tool, got {shown(value)}")
    return value


def _optional_truth(name: str, value: object) -> bool | None:
    return None if value is None else truth(name, value)


def _on_or_off(name: str) -> Callable[[list[str]], bool]:
    def read(texts: list[str]) -> bool:
        if texts not in (["on"], ["off"]):
            raise ValueError(f"{name}: expected on or off, got {' '.join(texts)}")
        return texts == ["on"]

    return read


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of an answer are chosen and when it ends.

    The steps run in the order of transformers: logit bias, penalties, temperature, top-k, top-p,
    min-p, draw. The default is greedy, as in mlx-lm: the same prompt gives the same answer.

    Parameters
    ----------
    max_tokens : int or "auto", optional
        Most tokens to generate; 0 only reads the prompt. "auto" (default) is 512 for text and token
        ids, which nothing else may end, and 4,096 for messages, or less where the context ends
        before. None (or -1) goes on until an end token or until the context is full.
    temperature : float
        Divides the logits. 0 (default) is greedy: the greatest logit, the lowest id among equals.
    top_k : int
        Keep the k most likely tokens; 0 (default) keeps all.
    top_p : float
        Keep the smallest set of most likely tokens that holds this share of the probability left
        by top-k, in (0, 1]; 1 (default) keeps all.
    min_p : float
        Keep tokens at least this fraction as likely as the most likely one, in [0, 1].
    repetition_penalty : float
        Divides positive and multiplies negative logits of tokens in prompt or answer, > 0;
        1 (default) changes nothing.
    presence_penalty, frequency_penalty : float
        Subtracted from the logits of tokens in the answer, once, and once per occurrence;
        in [-2, 2].
    logit_bias : mapping of int to float, optional
        Token id to a value that is added to its logit; ``-inf`` bans the token.
    adapter : str, optional
        The name of an adapter (see `Model.load_adapter`) to answer with; None: the model as it is.
    seed : int, optional
        0 to 2**64 - 1. The same seed gives the same text. None takes a fresh one from the
        operating system; the result tells which.
    stop : str, int, or iterable of them, optional
        Strings at which the answer ends (they are cut from it), and ids of tokens that end it
        like the end token of the model. At most 64.
    ignore_eos : bool
        Go on after end tokens of the model (stop strings and stop tokens still end the answer).
    logprobs : int, optional
        How many of the most likely tokens to report beside every chosen one (0: the chosen one
        only). Values are natural logarithms of the model's own probabilities, before bias,
        penalties, temperature and filters. None (default) reports nothing.
    schema : mapping or type, optional
        What the answer may be, as a JSON schema, a pydantic model, a dataclass, a TypedDict or
        another type. The answer is JSON; `GenerationResult.parsed` is its value.
    regex : str, optional
        A regular expression that the whole answer matches.
    grammar : str, optional
        A context-free grammar of the answer, in the syntax of Lark or GBNF.
    choices : iterable of str, optional
        Texts, one of which is the answer.
    json : bool
        Whether the answer is any JSON object. At most one of these five is given.
    lenient : bool
        Whether keywords of a schema that cannot be enforced are left out; else they are an error.
    tools : iterable, optional
        What a chat may call: Python functions with type hints, JSON schemas, or `Tool` objects.
        Calls come back in `GenerationResult.tool_calls`; chats of `Model.chat` run them.
    tool_choice : str
        "auto" (default) leaves it to the model, "required" makes it call one, "none" hides the
        tools, and the name of a tool makes it call that one.
    parallel_tool_calls : bool
        Whether one answer may have several calls.
    dialect : str, optional
        How the model writes calls, if the chat template should not tell: such as "hermes".
    thinking : bool, optional
        Whether the model reasons before it answers, where its chat template leaves the choice.

    Raises
    ------
    TypeError
        If a value has the wrong type.
    ValueError
        If a value is out of range.
    """

    max_tokens: int | Literal["auto"] | None = option(
        "auto",
        f"Maximum length of the answer in tokens; -1: until the model stops or the context is "
        f"full. Default: {CHAT_LIMIT:,} in a chat, {TEXT_LIMIT} for a prompt completed verbatim.",
        _limit,
    )
    temperature: float = option(
        0.0,
        "Sampling temperature; 0 always takes the most likely token. Default: what the catalogue "
        "suggests for the model (--top-p and others likewise), otherwise 0.",
        number("a finite number >= 0", low=0),
        group=DRAW,
    )
    top_k: int = option(0, "Sample from the k most likely tokens.", COUNT, group=DRAW)
    top_p: float = option(
        1.0,
        "Sample from the most likely tokens whose probabilities add up to this.",
        number("a number above 0 and at most 1", above=0, high=1),
        group=DRAW,
    )
    min_p: float = option(
        0.0,
        "Drop tokens less likely than this fraction of the most likely one.",
        number("a number from 0 to 1", low=0, high=1),
        group=DRAW,
    )
    repetition_penalty: float = option(
        1.0,
        "Values above 1 discourage tokens already in the prompt or answer.",
        number("a finite number > 0", above=0),
        group=DRAW,
    )
    presence_penalty: float = option(
        0.0,
        "-2 to 2; positive values discourage tokens already in the answer.",
        number("a number from -2 to 2", low=-2, high=2),
        group=DRAW,
    )
    frequency_penalty: float = option(
        0.0,
        "-2 to 2; positive values discourage tokens, more so the more often the answer has them.",
        number("a number from -2 to 2", low=-2, high=2),
        group=DRAW,
    )
    logit_bias: Mapping[int, float] | None = option(
        None,
        "Add VALUE to the logit of token ID; -inf bans it. Repeatable.",
        _biases,
        metavar="ID=VALUE",
        parse=_texts_of_bias,
        group=DRAW,
    )
    adapter: str | None = option(
        None,
        "Low-rank adapter to answer with: a folder of PEFT or mlx-lm, or a GGUF file.",
        _text,
        metavar="PATH",
    )
    seed: int | None = option(
        None,
        "Random seed; the same seed gives the same text.",
        integer("an int from 0 to 2**64 - 1, or None", low=0, high=2**64 - 1, optional=True),
    )
    stop: str | int | Iterable[str | int] | None = option(
        None, "Text that ends the answer. Repeatable.", _stops, metavar="TEXT", parse=list
    )
    ignore_eos: bool = option(False, "Continue past end tokens.", truth)
    logprobs: int | None = option(
        None,
        "With --json: log-probabilities of each token and of this many most likely ones.",
        OPTIONAL_COUNT,
    )
    schema: Any = option(
        None,
        "File with a JSON schema that the answer fulfils.",
        lambda _name, value: value,
        metavar="FILE",
        parse=_json_of_file("schema"),
        group=SHAPE,
    )
    regex: str | None = option(
        None, "Regular expression that the whole answer matches.", _text, group=SHAPE
    )
    grammar: str | None = option(
        None,
        "File with a grammar of the answer (Lark or GBNF).",
        _text,
        metavar="FILE",
        parse=_file_text("grammar"),
        group=SHAPE,
    )
    choices: Iterable[str] | None = option(
        None,
        "Texts, one of which is the answer: with commas between them, or repeat it.",
        _choices,
        metavar="TEXT,TEXT",
        parse=_choices_of_texts,
        group=SHAPE,
    )
    json: bool = option(
        False, "The answer is a JSON object.", truth, flag="--json-object", group=SHAPE
    )
    lenient: bool = option(
        False,
        "Leave out what cannot be enforced of a schema, instead of refusing it.",
        truth,
        group=SHAPE,
    )
    tools: Iterable[Any] | None = option(
        None,
        "File with a list of JSON schemas of functions that the model may call.",
        _tools,
        metavar="FILE",
        parse=_json_of_file("tools"),
        group=TALK,
    )
    tool_choice: str | Mapping[str, Any] = option(
        "auto",
        "Whether the model may call a tool, has to, or which: auto, required, none or a name.",
        _tool_choice,
        metavar="WORD",
        parse=lambda texts: texts[-1],
        group=TALK,
    )
    parallel_tool_calls: bool = option(
        True,
        "Whether one answer may have several calls. Default: on.",
        truth,
        metavar="on|off",
        parse=_on_or_off("parallel_tool_calls"),
        group=TALK,
    )
    dialect: str | None = option(
        None, "How the model writes calls, such as hermes. Default: found.", _text, group=TALK
    )
    thinking: bool | None = option(
        None,
        "Whether a model that can leave it reasons first.",
        _optional_truth,
        metavar="on|off",
        parse=_on_or_off("thinking"),
        group=TALK,
    )

    def __post_init__(self) -> None:
        check_options(self)
        given = self.shape_names
        if len(given) > 1:
            raise ValueError(
                f"{given[0]}: expected one constraint, got also {', '.join(given[1:])}"
            )
        if given and self.ignore_eos:
            raise ValueError(f"ignore_eos: an answer with {given[0]}= ends where that ends")
        if self.lenient and self.schema is None:
            raise ValueError("lenient: expected a schema, too")
        if self.wish.callable and (given or self.ignore_eos):
            other = f"{given[0]}=" if given else "ignore_eos="
            raise ValueError(f"tools: an answer that may be a call cannot have {other}, too")

    @property
    def wish(self) -> Wish:
        """What is asked of tools and reasoning."""
        assert isinstance(self.tools, tuple)  # __post_init__ made it one
        assert isinstance(self.tool_choice, str)
        return Wish(
            self.tools, self.tool_choice, self.parallel_tool_calls, self.dialect, self.thinking
        )

    @property
    def shape_names(self) -> list[str]:
        """Which constraint is given: none or one."""
        named = {name: getattr(self, name) for name in ("schema", "regex", "grammar", "choices")}
        return [name for name, value in named.items() if value is not None] + ["json"] * self.json

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> SamplingParams:
        """Build from keyword arguments; an unknown one is named beside its nearest neighbour."""
        return from_keywords(cls, kwargs)

    @property
    def limit(self) -> int | None:
        """The limit that the caller named; None if there is none, or the usual one."""
        return self.max_tokens if isinstance(self.max_tokens, int) else None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Stop strings."""
        return tuple(stop for stop in self._stops if isinstance(stop, str))

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Ids of the stop tokens."""
        return frozenset(stop for stop in self._stops if isinstance(stop, int))

    @property
    def _stops(self) -> tuple[str | int, ...]:
        assert isinstance(self.stop, tuple)  # __post_init__ made it one
        return self.stop

    def check_vocabulary(self, n_vocab: int) -> None:
        """Raise ValueError if a token id or a count lies outside a vocabulary of this size."""
        for name, ids in (("logit_bias", self.logit_bias or ()), ("stop", self.stop_tokens)):
            for token in ids:
                if token >= n_vocab:
                    raise ValueError(
                        f"{name}: expected token ids from 0 to {n_vocab - 1}, got {token}"
                    )
        if self.logprobs is not None and self.logprobs > n_vocab:
            raise ValueError(f"logprobs: expected at most {n_vocab}, got {self.logprobs}")
