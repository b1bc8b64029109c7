"""The requests of a file: lines of JSON, or rows of CSV.

A line that is wrong is still a line: it has a fault, which becomes its answer.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmq.errors import DataError

__all__ = ["CHAT", "COMPLETIONS", "Line", "Plain", "read_json", "read_lines"]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
ID_COLUMN = "custom_id"
DEEPEST = 64
TOO_DEEP = f"expected at most {DEEPEST} levels of nesting"


@dataclass(frozen=True)
class Line:
    """A request as it stands in the file.

    Attributes
    ----------
    number : int
        Of the line, or of the row below the headings; from 1.
    custom_id : str or None
        None if the line has none that can be read.
    url : str
    body : dict
    fault : str or None
        What is wrong with the line as such.
    repeats : bool
        Whether an earlier line has the same `custom_id`.
    """

    number: int
    custom_id: str | None = None
    url: str = ""
    body: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None
    repeats: bool = False


@dataclass(frozen=True)
class Plain:
    """What becomes of a plain prompt: a user message of a chat, or a text to complete."""

    chat: bool
    system: str | None = None

    def request(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Address and body for fields that hold "prompt" or "messages"."""
        if "messages" in body:
            return CHAT, body
        prompt = body.get("prompt")
        if not (self.chat and isinstance(prompt, str)):
            return COMPLETIONS, body
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        rest = {name: value for name, value in body.items() if name != "prompt"}
        return CHAT, {"messages": [*system, {"role": "user", "content": prompt}], **rest}


def read_lines(path: Path, plain: Plain, column: str | None = None) -> Iterator[Line]:
    """Read a file line by line.

    Parameters
    ----------
    path : Path
    plain : Plain
    column : str, optional
        The file is CSV, and this column holds prompts; without it, it holds lines of JSON.

    Raises
    ------
    DataError
        If the file cannot be read, or is not CSV with this column.
    """
    lines = _json_lines(path, plain) if column is None else _rows(path, plain, column)
    seen: dict[str, int] = {}
    try:
        for line in lines:
            if line.custom_id is None:
                yield line
                continue
            first = seen.setdefault(line.custom_id, line.number)
            if first == line.number:
                yield line
            else:
                fault = f"custom_id {line.custom_id!r} is already that of line {first}"
                yield Line(line.number, line.custom_id, fault=fault, repeats=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _json_lines(path: Path, plain: Plain) -> Iterator[Line]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            text = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if text.strip():
                yield _json_line(number, text, plain)


def _json_line(number: int, text: bytes, plain: Plain) -> Line:
    try:
        found = read_json(text)
    except ValueError as error:
        return Line(number, fault=f"line {number}: {error}")
    if not isinstance(found, dict):
        kind = type(found).__name__
        return Line(number, fault=f"line {number}: expected a JSON object, got {kind}")
    custom_id = found.get("custom_id")
    if custom_id is not None and (not isinstance(custom_id, str) or not custom_id):
        return Line(number, fault=f"line {number}: custom_id: expected a string, got {custom_id!r}")
    if "prompt" in found or "messages" in found:
        rest = {name: value for name, value in found.items() if name != "custom_id"}
        return Line(number, custom_id or f"line-{number}", *plain.request(rest))
    return _request(number, custom_id, found)


def _request(number: int, custom_id: str | None, found: dict[str, Any]) -> Line:
    """A line of OpenAI's batch format."""
    where = f"line {number}"
    if custom_id is None:
        return Line(number, fault=f"{where}: expected custom_id, or prompt or messages; got none")
    method, url, body = found.get("method"), found.get("url"), found.get("body")
    if method != "POST":
        fault = f"{where}: method: expected 'POST', got {method!r}"
    elif url not in (CHAT, COMPLETIONS):
        fault = f"{where}: url: expected {CHAT!r} or {COMPLETIONS!r}, got {url!r}"
    elif not isinstance(body, dict):
        fault = f"{where}: body: expected a JSON object, got {type(body).__name__}"
    else:
        return Line(number, custom_id, url, body)
    return Line(number, custom_id, fault=fault)


def read_json(data: bytes) -> Any:
    """The value of a text from a stranger; raises ValueError if it is not JSON, or nested deep."""
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8, got {error.reason}") from None
    except ValueError as error:
        raise ValueError(f"expected JSON: {error}") from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if _deep(found):
        raise ValueError(TOO_DEEP)
    return found


def _deep(found: Any) -> bool:
    """Whether something is nested deeper than what handles it later can follow."""
    level = [found]
    for _ in range(DEEPEST):
        inside = (item for item in level if isinstance(item, dict | list))
        level = [v for i in inside for v in (i.values() if isinstance(i, dict) else i)]
    return bool(level)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _rows(path: Path, plain: Plain, column: str) -> Iterator[Line]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            names = list(rows.fieldnames or ())
            if column not in names:
                raise DataError(f"{path}: expected a column {column!r}, got {names}")
            for number, row in enumerate(rows, 1):
                custom_id = row.get(ID_COLUMN) or f"line-{number}"
                prompt = row[column]
                if prompt is None:  # a short row
                    fault = f"line {number}: column {column!r} is missing"
                    yield Line(number, custom_id, fault=fault)
                else:
                    yield Line(number, custom_id, *plain.request({"prompt": prompt}))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, got {error.reason}") from None
    except csv.Error as error:
        raise DataError(f"{path}: is not CSV: {error}") from None
