"""Files that say how to train, in the words of mlx-lm: its keys in a simple YAML, or JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

from slmq.engine.training.options import TrainOptions, Types
from slmq.errors import DataError
from slmq.settings import shown

__all__ = ["TrainConfig", "read_config"]

LARGEST = 1 << 20  # bytes
KEY = re.compile(r"([A-Za-z_][\w\-]*)\s*:(?:\s+(.*))?$")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
# Our options under their own names.
OWN = frozenset(TrainOptions.__dataclass_fields__)
# What is said of other programs, of a machine, or of nothing that changes the result.
IGNORED = frozenset({"test", "test_batches", "project_name", "clear_cache_threshold"})
SCHEDULES = {"cosine_decay": "cosine", "linear_schedule": "linear", "constant": "constant"}
SAID = "{}: {}: expected {}, got {}"


class Line(NamedTuple):
    """A line that says something."""

    number: int
    indent: int
    text: str


class TrainConfig(NamedTuple):
    """What a file says.

    Attributes
    ----------
    model, data, adapter_path : str or None
    options : dict
        Of `TrainOptions`, by name.
    """

    model: str | None
    data: str | None
    adapter_path: str | None
    options: dict[str, Any]


def read_config(path: Path) -> TrainConfig:
    """Read such a file.

    Raises
    ------
    DataError
        A line is not understood, or asks for what is not done; file, line and key are named.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if len(raw) > LARGEST:
        raise DataError(f"{path}: expected at most {LARGEST} bytes, got {len(raw)}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path}: expected UTF-8") from None
    found = _json(path, text) if text.lstrip().startswith("{") else _yaml(path, text)
    return _understood(path, found)


def _understood(path: Path, found: dict[str, Any]) -> TrainConfig:
    options: dict[str, Any] = {}
    places: dict[str, str | None] = {"model": None, "data": None, "adapter_path": None}
    for key, value in found.items():
        if key in places:
            if not isinstance(value, str):
                raise DataError(SAID.format(path, key, "a text", shown(value)))
            places[key] = value
        elif key == "lora_parameters":
            if found.get("fine_tune_type") != "full":  # as mlx-lm, which does not look at them
                options |= _low_rank(path, value)
        elif key == "fine_tune_type":
            if value not in get_args(Types):
                wanted = " or ".join(map(repr, get_args(Types)))
                raise DataError(SAID.format(path, key, wanted, shown(value)))
            options["type"] = value
        elif key == "lr_schedule":
            options |= _schedule(path, value)
        elif key == "optimizer_config":
            options |= _decay(path, value)
        elif key in ("train", "resume_adapter_file", "report_to"):
            _require(path, key, value)
        elif key in OWN:
            options[key] = tuple(value) if isinstance(value, list) else value
        elif key not in IGNORED:
            raise DataError(f"{path}: {key}: not known; `slmq train --help` lists what is")
    return TrainConfig(places["model"], places["data"], places["adapter_path"], options)


def _require(path: Path, key: str, value: object) -> None:
    wanted = {"train": True}.get(key)
    if value != wanted:
        said = "nothing" if wanted is None else f"{wanted!r}".lower()
        raise DataError(SAID.format(path, key, said, shown(value)))


def _mapping(path: Path, key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(SAID.format(path, key, "keys and values", shown(value)))
    return dict(value)


def _low_rank(path: Path, value: object) -> dict[str, Any]:
    """mlx-lm's scale counts by itself, ours by the rank."""
    given = _mapping(path, "lora_parameters", value)
    options: dict[str, Any] = {}
    if given.pop("dropout", 0) not in (0, 0.0):
        raise DataError(f"{path}: lora_parameters: dropout is not done; expected 0")
    if "keys" in given:
        keys = given.pop("keys")
        options["keys"] = tuple(keys) if isinstance(keys, list) else keys
    if "rank" in given:
        options["rank"] = given.pop("rank")
    if "scale" in given:
        scale, rank = given.pop("scale"), options.get("rank", TrainOptions.rank)
        if not isinstance(scale, (int, float)) or not isinstance(rank, int):
            raise DataError(SAID.format(path, "lora_parameters: scale", "a number", shown(scale)))
        options["alpha"] = scale * rank
    for key in given:
        raise DataError(f"{path}: lora_parameters: {key}: not known")
    return options


def _schedule(path: Path, value: object) -> dict[str, Any]:
    given = _mapping(path, "lr_schedule", value)
    name, arguments = given.pop("name", None), given.pop("arguments", [])
    if name not in SCHEDULES:
        raise DataError(SAID.format(path, "lr_schedule: name", ", ".join(SCHEDULES), shown(name)))
    if given.pop("warmup_init", 0) not in (0, 0.0):
        raise DataError(f"{path}: lr_schedule: warmup_init: a warm-up begins at 0")
    options = {"schedule": SCHEDULES[name], "warmup": given.pop("warmup", 0)}
    if arguments:
        options["learning_rate"] = arguments[0]
    for key in given:
        raise DataError(f"{path}: lr_schedule: {key}: not known")
    return options


def _decay(path: Path, value: object) -> dict[str, Any]:
    options = {}
    for name, given in _mapping(path, "optimizer_config", value).items():
        for key, said in (_mapping(path, name, given) if given else {}).items():
            if key != "weight_decay":
                raise DataError(f"{path}: optimizer_config: {name}: {key}: not known")
            options["weight_decay"] = said
    return options


# ------------------------------------------------------------------ JSON and YAML


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {error}") from None
    return _mapping(path, "the file", found)


def _yaml(path: Path, text: str) -> dict[str, Any]:
    lines = [line for line in _lines(text) if line.text not in ("---", "...")]
    if not lines:
        return {}
    value, rest = _block(path, lines, lines[0].indent)
    if rest:
        raise _odd(path, rest[0])
    return _mapping(path, "the file", value)


def _lines(text: str) -> Iterator[Line]:
    for number, line in enumerate(text.splitlines(), 1):
        bare = _without_comment(line).rstrip()
        if bare.strip():
            yield Line(number, len(bare) - len(bare.lstrip(" ")), bare.strip())


def _without_comment(line: str) -> str:
    quote = ""
    for i, c in enumerate(line):
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c == "#" and (i == 0 or line[i - 1].isspace()):
            return line[:i]
    return line


def _block(path: Path, lines: list[Line], indent: int) -> tuple[Any, list[Line]]:
    """Keys, or items of a list, that are indented so; and the lines behind them."""
    if lines[0].text.startswith("- "):
        items = []
        while lines and lines[0].indent == indent and lines[0].text.startswith("- "):
            items.append(_scalar(path, lines[0], lines[0].text[2:].strip()))
            lines = lines[1:]
        return items, lines
    found: dict[str, Any] = {}
    while lines and lines[0].indent == indent:
        line, lines = lines[0], lines[1:]
        split = KEY.match(line.text)
        if split is None or split[1] in found:
            raise _odd(path, line)
        inner = bool(lines) and (
            lines[0].indent > indent
            or (lines[0].indent == indent and lines[0].text.startswith("- "))
        )
        if split[2]:
            found[split[1]] = _scalar(path, line, split[2].strip())
        elif inner:
            found[split[1]], lines = _block(path, lines, lines[0].indent)
        else:
            found[split[1]] = None
    if lines and lines[0].indent > indent:
        raise _odd(path, lines[0])
    return found, lines


def _scalar(path: Path, line: Line, text: str) -> Any:
    if text.startswith("["):
        inner = text[1:-1].strip()
        if not text.endswith("]") or "[" in inner:
            raise _odd(path, line)
        return [_scalar(path, line, part.strip()) for part in inner.split(",")] if inner else []
    if text[0] in "'\"":
        if len(text) < 2 or text[-1] != text[0] or text[0] in text[1:-1] or "\\" in text:
            raise _odd(path, line)
        return text[1:-1]
    if text[0] in "{&*!|>@`%":
        raise _odd(path, line)
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    if NUMBER.match(text):
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    return text


def _odd(path: Path, line: Line) -> DataError:
    return DataError(
        f"{path}: line {line.number}: expected keys with values, lists and keys below them, got "
        f"{line.text!r:.80}"
    )
