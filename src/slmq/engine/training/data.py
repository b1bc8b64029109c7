"""Texts to learn from: what files of four shapes say, as tokens of which some are targets.

A folder holds ``train``, and for evaluation ``valid`` and ``test``, each as ``.jsonl``, ``.csv`` or
``.txt``. A line of JSON is a chat (``messages``, and ``tools`` if it has them), a ``prompt`` with
its ``completion``, or a ``text``; a row of CSV is a prompt with its completion. A ``.txt`` is one
running text, which is cut into samples of the longest length: nothing of it is lost.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmq.errors import DataError, TemplateError, TokenizerError
from slmq.tokenizer import Tokenizer

__all__ = ["Samples", "read_samples"]

I32 = npt.NDArray[np.int32]
ENDINGS = (".jsonl", ".csv", ".txt")
MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Sample:
    """A text.

    Attributes
    ----------
    tokens : int32[n]
    first : int
        The first token that is a target, at least 1: those before are given.
    """

    tokens: I32
    first: int

    @property
    def rows(self) -> int:
        """Rows that a model computes for it: its last token is only a target."""
        return len(self.tokens) - 1


@dataclass
class Samples:
    """The texts of a file.

    Attributes
    ----------
    path : Path
    samples : list of Sample
    too_long, cut, empty : int
        Texts that were left out or cut for their length; that have no target.
    """

    path: Path
    samples: list[Sample] = field(default_factory=list)
    too_long: int = 0
    cut: int = 0
    empty: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    def said(self, limit: int) -> str:
        """How many there are, and what was done to others."""
        parts = [f"{len(self.samples)} samples"]
        if self.too_long:
            parts.append(
                f"{self.too_long} longer than {limit} tokens left out (--truncate cuts them)"
            )
        if self.cut:
            parts.append(f"{self.cut} cut to {limit} tokens")
        if self.empty:
            parts.append(f"{self.empty} without a token to learn left out")
        return f"{self.path.name}: " + ", ".join(parts)


def read_samples(
    folder: Path,
    split: str,
    tokenizer: Tokenizer,
    *,
    limit: int,
    truncate: bool,
    mask_prompt: bool,
) -> Samples | None:
    """Read a split of a folder; None if it is not there.

    Raises
    ------
    DataError
        With file and line, if something cannot be read.
    """
    found = [path for ending in ENDINGS if (path := folder / f"{split}{ending}").exists()]
    if not found:
        return None
    if len(found) > 1:
        raise DataError(
            f"{folder}: expected one file of {split!r}, found {found[0].name} and {found[1].name}"
        )
    (path,) = found
    text = _read(path)
    read = Samples(path)
    if path.suffix == ".txt":
        pieces = _running(text, tokenizer, limit, path)
    else:
        records = _json_lines(text, path) if path.suffix == ".jsonl" else _csv_rows(text, path)
        pieces = _encoded(records, tokenizer, mask_prompt=mask_prompt)
    for sample in pieces:
        if len(sample.tokens) > limit and not truncate:
            read.too_long += 1
            continue
        read.cut += len(sample.tokens) > limit
        kept = Sample(sample.tokens[:limit], sample.first)
        if kept.first >= len(kept.tokens):
            read.empty += 1
        else:
            read.samples.append(kept)
    if not read.samples:
        raise DataError(f"{path}: expected samples to learn from; {read.said(limit)}")
    return read


def _read(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(f"{path}: expected at most {MOST_BYTES:,} bytes, found {size:,}")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, found another byte at {error.start}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


# ------------------------------------------------------------------ records of files

Record = tuple[str, dict[str, Any]]  # where it stands, what it says


def _json_lines(text: str, path: Path) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: expected a line of JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected an object, got {line.strip()!r:.60}")
        yield where, record


def _csv_rows(text: str, path: Path) -> Iterator[Record]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = next(rows, [])
        if {"prompt", "completion"} <= set(names):
            columns = [names.index("prompt"), names.index("completion")]
        elif len(names) == 2:
            columns = [0, 1]
        else:
            raise DataError(
                f"{path}, line 1: expected two named columns, or columns named prompt and "
                f"completion, got {', '.join(names)!r:.100}"
            )
        for row in rows:
            if not row:
                continue
            where = f"{path}, line {rows.line_num}"
            if len(row) != len(names):
                raise DataError(f"{where}: expected {len(names)} columns, got {len(row)}")
            yield where, {"prompt": row[columns[0]], "completion": row[columns[1]]}
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: expected CSV: {error}") from error


# ------------------------------------------------------------------ records to tokens


def _encoded(
    records: Iterator[Record], tokenizer: Tokenizer, *, mask_prompt: bool
) -> Iterator[Sample]:
    for where, record in records:
        try:
            tokens, first = _tokens_of(record, tokenizer, where)
        except (TypeError, ValueError, TemplateError, TokenizerError) as error:
            raise DataError(f"{where}: {error}") from error
        yield Sample(np.array(tokens, np.int32), max(1, first if mask_prompt else 1))


def _tokens_of(
    record: Mapping[str, Any], tokenizer: Tokenizer, where: str
) -> tuple[list[int], int]:
    """The tokens of a record, and how many of them are given."""
    if "messages" in record:
        return _chat(record["messages"], record.get("tools"), tokenizer, where)
    if "prompt" in record and "completion" in record:
        prompt, completion = (_text(record, key, where) for key in ("prompt", "completion"))
        if tokenizer.chat_template is None:
            given = tokenizer.encode(prompt)
            while given and given[-1] in tokenizer.eos_ids:  # some are put behind every text
                given.pop()
            rest = tokenizer.encode(completion, add_special=False)
            return _ended([*given, *rest], tokenizer), len(given)
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": completion},
        ]
        return _chat(messages, record.get("tools"), tokenizer, where)
    if "text" in record:
        return _ended(tokenizer.encode(_text(record, "text", where)), tokenizer), 1
    raise DataError(
        f"{where}: expected the keys messages, prompt and completion, or text, got "
        f"{', '.join(record) or 'none'!r:.100}"
    )


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise DataError(f"{where}: {key}: expected a string, got {value!r:.60}")
    return value


def _chat(messages: Any, tools: Any, tokenizer: Tokenizer, where: str) -> tuple[list[int], int]:
    """A chat; all but its last message, and the opening of that, is given."""
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: messages: expected a list of messages, got {messages!r:.60}")
    whole = tokenizer.encode_chat(messages, add_generation_prompt=False, tools=tools)
    answers = isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"
    if len(messages) == 1 or not answers:
        return whole, 1
    before = tokenizer.encode_chat(messages[:-1], add_generation_prompt=True, tools=tools)
    same = 0
    while same < min(len(before), len(whole)) and before[same] == whole[same]:
        same += 1
    return whole, same


def _ended(tokens: list[int], tokenizer: Tokenizer) -> list[int]:
    """With the token that ends texts, if the tokenizer has put none there."""
    ends = tokenizer.eos_ids
    if not ends or (tokens and tokens[-1] in ends):
        return tokens
    end = tokenizer.id_of("eos_token")
    return [*tokens, min(ends) if end is None else end]


def _running(text: str, tokenizer: Tokenizer, limit: int, path: Path) -> Iterator[Sample]:
    try:
        tokens = tokenizer.encode(text)
    except (ValueError, TokenizerError) as error:
        raise DataError(f"{path}: {error}") from error
    for begin in range(0, len(tokens), limit):
        part = tokens[begin : begin + limit]
        if len(part) > 1:
            yield Sample(np.array(part, np.int32), 1)
