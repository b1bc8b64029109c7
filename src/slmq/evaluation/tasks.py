"""Tasks: files of questions with right answers, and the prompts that they become.

A prompt is a template's text up to ``{answer}``; the options are what may stand there. The space
before ``{answer}`` belongs to the options, because tokens begin with it. Examples (shots) come
first, with their answers, and blank lines between.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slmq.errors import DataError
from slmq.evaluation.table import Row, read_rows

if TYPE_CHECKING:
    import os

__all__ = ["TASKS", "Item", "Prompt", "Task", "prepare", "task_of"]

ANSWER = "{answer}"
BETWEEN_SHOTS = "\n\n"
SST2_LABELS = ("negative", "positive")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Item:
    """A question as its file has it.

    Attributes
    ----------
    text : str
        Context, sentence or question.
    options : tuple of str
        Answers to choose from; a single one if the task is to say it.
    answer : int
        The right one, from 0.
    place : str
        File and line.
    """

    text: str
    options: tuple[str, ...]
    answer: int
    place: str


@dataclass(frozen=True)
class Prompt:
    """What a model reads (`text`) and may continue with (`options`), and whose answer is known."""

    text: str
    options: tuple[str, ...]
    item: Item


@dataclass(frozen=True)
class Task:
    """A kind of question.

    Attributes
    ----------
    name : str
    field : str
        What the template calls the text of an item.
    template : str
        Ends with "{answer}".
    headerless : tuple of str
        Columns of a CSV or TSV file that does not name them.
    item_of : callable
        A row to its item; raises DataError for a row that is none.
    """

    name: str
    field: str
    template: str
    headerless: tuple[str, ...]
    item_of: Callable[[Row], Item]


def _lambada(row: Row) -> Item:
    if "context" in row.values or "text" not in row.values:
        return Item(row.text("context"), (row.text("continuation").lstrip(" "),), 0, row.place)
    context, _, word = row.text("text").rstrip().rpartition(" ")
    if not context:
        raise row.fail("column 'text': expected more than one word")
    return Item(context, (word,), 0, row.place)


def _sst2(row: Row) -> Item:
    label = row.values.get("label")
    known = {"0": 0, "1": 1, **{name: i for i, name in enumerate(SST2_LABELS)}}
    sentence = row.text("sentence").strip()
    if str(label) not in known:
        raise row.fail(f"column 'label': expected 0 (negative) or 1 (positive), got {label!r:.60}")
    return Item(sentence, SST2_LABELS, known[str(label)], row.place)


def _choices(row: Row) -> Item:
    question, options = row.text("question"), _options(row)
    if len(options) < 2:
        raise row.fail(f"expected two options or more, found {len(options)}")
    for i, option in enumerate(options):
        if not isinstance(option, str) or not option.strip():
            raise row.fail(f"option {i}: expected text, got {option!r:.60}")
    return Item(question, tuple(options), _right(row, options), row.place)


def _options(row: Row) -> list[str]:
    """Column `options`, a list, in CSV written as JSON; or columns A, B, C, ..."""
    found = row.values.get("options")
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError as error:
            raise row.fail(f"column 'options': expected a JSON list: {error}") from None
    if found is None:
        cells = [row.values[letter] for letter in LETTERS if letter in row.values]
        while cells and not cells[-1]:
            cells.pop()
        found = cells or None
    if not isinstance(found, list):
        names = ", ".join(map(repr, row.values)) or "none"
        raise row.fail(
            f"expected a column 'options' with a list, or columns 'A', 'B', ...; found {names}"
        )
    return found


def _right(row: Row, options: Sequence[str]) -> int:
    """Column `answer`: the text of an option, its letter, or its number from 0."""
    answer = row.values.get("answer")
    if isinstance(answer, str):
        if answer in options:
            return options.index(answer)
        if answer in LETTERS[: len(options)] and len(answer) == 1:
            return LETTERS.index(answer)
        if answer.isdecimal():
            answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return answer
    raise row.fail(
        f"column 'answer': expected a letter, a number from 0 to {len(options) - 1} or the text "
        f"of an option, got {answer!r:.60}"
    )


TASKS = {
    task.name: task
    for task in (
        Task("lambada", "context", "{context} {answer}", (), _lambada),
        Task(
            "sst2",
            "sentence",
            "{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer: {answer}",
            ("sentence", "label"),
            _sst2,
        ),
        Task("choices", "question", "Question: {question}\nAnswer: {answer}", (), _choices),
    )
}


def task_of(name: str) -> Task:
    """The task of this name; raises ValueError for another name."""
    if name not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}; got {name!r}")
    return TASKS[name]


def prepare(
    task: str,
    file: str | os.PathLike[str],
    *,
    shots: int = 0,
    train: str | os.PathLike[str] | None = None,
    seed: int = 0,
    limit: int | None = None,
    template: str | None = None,
) -> list[Prompt]:
    """The prompts of a file; parameters as in `slmq.evaluate`.

    Raises
    ------
    DataError
        If a file cannot be read, lacks a column, or has too few rows for the shots.
    ValueError
        If another argument is invalid.
    """
    kind = task_of(task)
    _check_counts(shots, limit)
    head, gap = _template(kind, template)
    items = [kind.item_of(row) for row in read_rows(file, kind.headerless)]
    if train is None:
        examples, items = items[:shots], items[shots:]
        if not items:
            raise DataError(
                f"{file}: {shots} examples leave none of the {len(examples)} rows to ask"
            )
    else:
        examples = _drawn(kind, train, file, shots, seed)
    shown = "".join(
        f"{head.replace(f'{{{kind.field}}}', item.text)}{gap}{item.options[item.answer]}"
        f"{BETWEEN_SHOTS}"
        for item in examples
    )
    return [
        Prompt(
            shown + head.replace(f"{{{kind.field}}}", item.text),
            tuple(gap + option for option in item.options),
            item,
        )
        for item in items[:limit]
    ]


def _check_counts(shots: int, limit: int | None) -> None:
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 0:
        raise ValueError(f"shots: expected an integer >= 0, got {shots!r}")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit: expected an integer >= 1, got {limit!r}")


def _template(kind: Task, template: str | None) -> tuple[str, str]:
    """What stands before the answer, and the space between."""
    template = kind.template if template is None else template
    head, found, tail = template.partition(ANSWER)
    if not found or tail or f"{{{kind.field}}}" not in head:
        raise ValueError(
            f"template: expected {{{kind.field}}} and, at the end, {ANSWER}; got {template!r:.100}"
        )
    return head.rstrip(" "), head[len(head.rstrip(" ")) :]


def _drawn(
    kind: Task,
    train: str | os.PathLike[str],
    file: str | os.PathLike[str],
    shots: int,
    seed: int,
) -> list[Item]:
    """Examples of another file, drawn in an order that only depends on the seed."""
    if Path(train).exists() and Path(file).exists() and Path(train).samefile(file):
        raise ValueError(
            f"train: expected a file other than {file}, which would give away the answers"
        )
    rows = read_rows(train, kind.headerless)
    if len(rows) < shots:
        raise DataError(f"{train}: expected at least {shots} rows for the shots, found {len(rows)}")
    order = sorted(
        range(len(rows)), key=lambda i: hashlib.sha256(f"{seed} {i}".encode("ascii")).digest()
    )
    return [kind.item_of(rows[i]) for i in order[:shots]]
