"""`router.toml`: models with their prices, what is wanted of them, and rules."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from slmq.errors import DataError
from slmq.machine.disk import read_regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["MODES", "Policy", "RoutedModel", "RouterConfig", "Rule", "read_config"]

MAX_BYTES = 1 << 20
MODES = ("cheapest", "balanced", "quality")
TAG = "tag:"


@dataclass(frozen=True)
class RoutedModel:
    """A model that may answer.

    Attributes
    ----------
    name : str
    target : str or None
        Of ours: a name of the catalogue, a hub id or a folder.
    url : str or None
        Of others: the address of an OpenAI-compatible API, up to ``/v1``.
    model : str
        What it is called there.
    key_env : str or None
        The environment variable with its key.
    price_in, price_out : float
        For a million tokens of prompt and answer, in any currency.
    context : int or None
        Tokens of prompt and answer together.
    tags : tuple of str
    quality : float or None
        The share of questions such as MMLU's that it answers right; None if heads were trained for
        it.
    """

    name: str
    target: str | None = None
    url: str | None = None
    model: str = ""
    key_env: str | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    context: int | None = None
    tags: tuple[str, ...] = ()
    quality: float | None = None

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """The price of so many tokens."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


@dataclass(frozen=True)
class Policy:
    """What is wanted.

    Attributes
    ----------
    mode : {"cheapest", "balanced", "quality"}
        The cheapest model that is likely enough right; the best of likelihood less cost; the
        likeliest to be right.
    target : float
        How likely the cheapest one has to be right.
    weight : float
        Balanced: by how much the cost of the dearest model counts against being right.
    answer_tokens : int
        How long answers are taken to be if a request sets no limit.
    shadow : bool
        The reference model answers everything; what would have been chosen is only written down.
    timeout_s : float
        For the first byte of another server's answer.
    """

    mode: str = "cheapest"
    target: float = 0.8
    weight: float = 0.3
    answer_tokens: int = 300
    shadow: bool = False
    timeout_s: float = 60.0


@dataclass(frozen=True)
class Rule:
    """Which models may answer requests of a kind; the first rule that fits counts.

    Attributes
    ----------
    name : str
    use : tuple of str
        Names of models, and ``tag:NAME`` for all with a tag.
    match : re.Pattern or None
        Found in the last message.
    languages, domains, tasks : tuple of str
        Any of them.
    min_tokens, max_tokens : int or None
        Of the prompt.
    tools : bool or None
        Whether functions are offered.
    """

    name: str
    use: tuple[str, ...]
    match: re.Pattern[str] | None = None
    languages: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    min_tokens: int | None = None
    max_tokens: int | None = None
    tools: bool | None = None


@dataclass(frozen=True)
class RouterConfig:
    """All of it.

    Attributes
    ----------
    models : tuple of RoutedModel
    policy : Policy
    rules : tuple of Rule
    reference : str
        The model that saving and quality are measured against.
    encoder : str or None
        None takes that of the heads.
    heads : Path or None
        A file that `slmq route train` wrote; None takes those of the package.
    log : Path or None
        File that gets a line for each request.
    log_text : bool
        Whether prompts are in these lines; training needs them.
    """

    models: tuple[RoutedModel, ...]
    policy: Policy
    rules: tuple[Rule, ...]
    reference: str
    encoder: str | None = None
    heads: Path | None = None
    log: Path | None = None
    log_text: bool = False

    def model(self, name: str) -> RoutedModel:
        """A model by its name."""
        return next(model for model in self.models if model.name == name)

    def named(self, use: tuple[str, ...]) -> list[str]:
        """Names of the models that a rule means, in their own order."""
        tags = {item[len(TAG) :] for item in use if item.startswith(TAG)}
        return [m.name for m in self.models if m.name in use or tags.intersection(m.tags)]


class _Table:
    """A table of the file, whose keys are taken one by one; what is left is unknown."""

    def __init__(self, where: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise DataError(f"{where}: expected a table, got {values!r:.80}")
        self.where = where
        self._left = dict(values)

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A value of this type; an integer is a number, too."""
        value = self._left.pop(key, None)
        if value is None:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, kinds):
            names = " or ".join(one.__name__ for one in kinds)
            raise DataError(f"{self.where}: {key}: expected {names}, got {value!r:.80}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> Any:
        """A number in a range."""
        value = self.take(key, (int, float), default)
        if value is not None and not low <= value <= high:
            raise DataError(f"{self.where}: {key}: expected {low:g}..{high:g}, got {value!r}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings, or one of them."""
        value = self.take(key, (list, str), [])
        found = [value] if isinstance(value, str) else value
        if not all(isinstance(item, str) for item in found):
            raise DataError(f"{self.where}: {key}: expected a list of strings, got {value!r:.80}")
        return tuple(found)

    def end(self) -> None:
        """Refuse what nobody has asked for."""
        if self._left:
            raise DataError(f"{self.where}: unknown key {next(iter(self._left))!r:.80}")


def read_config(path: str | os.PathLike[str]) -> RouterConfig:
    """Read a configuration; paths in it are relative to its folder.

    Raises
    ------
    DataError
        If it cannot be read, or a value is missing or wrong.
    """
    file = Path(path)
    try:
        values = tomllib.loads(read_regular(file, MAX_BYTES).decode("utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # UnicodeDecodeError and TOMLDecodeError are such
        raise DataError(f"{file}: expected TOML: {error}") from None
    try:
        return _config(values, file.parent)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


def _config(values: Mapping[str, Any], folder: Path) -> RouterConfig:
    table = _Table("the top", values)
    listed = table.take("models", list, [])
    models = tuple(_model(_Table(f"models[{i}]", one)) for i, one in enumerate(listed))
    if not models:
        raise DataError("expected at least one [[models]]")
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two models are called {name!r}")
    policy = _policy(_Table("policy", table.take("policy", dict, {})))
    rules = tuple(
        _rule(_Table(f"rules[{i}]", one), models)
        for i, one in enumerate(table.take("rules", list, []))
    )
    dearest = max(models, key=lambda model: (model.price_in + model.price_out, model.quality or 0))
    reference = table.take("reference", str, dearest.name)
    if reference not in names:
        raise DataError(f"reference: expected one of {', '.join(names)}, got {reference!r:.80}")
    heads, log = table.take("heads", str), table.take("log", str)
    found = RouterConfig(
        models,
        policy,
        rules,
        reference,
        table.take("encoder", str),
        None if heads is None else folder / heads,
        None if log is None else folder / log,
        table.take("log_text", bool, False),
    )
    table.end()
    return found


def _model(table: _Table) -> RoutedModel:
    name = table.take("name", str)
    if not name or name.startswith(("auto", TAG)):
        raise DataError(f'{table.where}: name: expected one that is not "auto", got {name!r:.80}')
    table.where = f"model {name!r}"
    target, url = table.take("target", str), table.take("url", str)
    if (target is None) == (url is None):
        raise DataError(f"{table.where}: expected either target, a model of ours, or url")
    prices = [table.number(key, 0, 1e9) for key in ("price_in", "price_out")]
    if url is not None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise DataError(f"{table.where}: url: expected http(s)://..., got {url!r:.80}")
        for key, price in zip(("price_in", "price_out"), prices, strict=True):
            if price is None:
                raise DataError(
                    f"{table.where}: {key} is missing: what a million tokens cost; 0 if nothing"
                )
    found = RoutedModel(
        name,
        target,
        None if url is None else url.rstrip("/"),
        table.take("model", str, name),
        table.take("key_env", str),
        prices[0] or 0.0,
        prices[1] or 0.0,
        table.number("context", 1, 1 << 31),
        table.texts("tags"),
        table.number("quality", 0.01, 0.99),
    )
    table.end()
    return found


def _policy(table: _Table) -> Policy:
    usual = Policy()
    mode = table.take("mode", str, usual.mode)
    if mode not in MODES:
        raise DataError(f"policy: mode: expected one of {', '.join(MODES)}; got {mode!r:.80}")
    found = Policy(
        mode,
        table.number("target", 0, 1, usual.target),
        table.number("weight", 0, 100, usual.weight),
        int(table.number("answer_tokens", 1, 1 << 20, usual.answer_tokens)),
        table.take("shadow", bool, usual.shadow),
        table.number("timeout_s", 0.01, 3600, usual.timeout_s),
    )
    table.end()
    return found


def _rule(table: _Table, models: tuple[RoutedModel, ...]) -> Rule:
    name = table.take("name", str, table.where)
    pattern = table.take("match", str)
    try:
        match = None if pattern is None else re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise DataError(f"{table.where}: match: {pattern!r:.80}: {error}") from None
    known = {m.name for m in models} | {TAG + tag for m in models for tag in m.tags}
    use = table.texts("use")
    for item in use or ("",):
        if item not in known:
            raise DataError(
                f"{table.where}: use: expected a name or tag of a model "
                f"({', '.join(sorted(known))}), got {item!r:.80}"
            )
    found = Rule(
        name,
        use,
        match,
        table.texts("languages"),
        table.texts("domains"),
        table.texts("tasks"),
        table.number("min_tokens", 0, 1 << 31),
        table.number("max_tokens", 0, 1 << 31),
        table.take("tools", bool),
    )
    table.end()
    if found == Rule(name, use):
        raise DataError(f"{table.where}: expected a condition, such as match or languages")
    return found
