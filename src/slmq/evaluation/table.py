"""Rows of a JSONL, JSON, CSV or TSV file, with the place that errors name."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq.errors import DataError
from slmq.evaluation.windows import read_text

if TYPE_CHECKING:
    import os

__all__ = ["Row", "read_rows"]

SUFFIXES = ".jsonl, .json, .csv or .tsv"


@dataclass(frozen=True)
class Row:
    """One row: its values by column, and where it stands."""

    values: dict[str, Any]
    place: str

    def fail(self, message: str) -> DataError:
        """An error that names the place."""
        return DataError(f"{self.place}: {message}")

    def text(self, column: str) -> str:
        """The string of a column, which must not be blank.

        Raises
        ------
        DataError
            If there is none.
        """
        value = self.values.get(column)
        if value is None:
            found = ", ".join(map(repr, self.values)) or "none"
            raise self.fail(f"expected a column {column!r}, found {found}")
        if not isinstance(value, str) or not value.strip():
            raise self.fail(f"column {column!r}: expected text, got {value!r:.60}")
        return value


def read_rows(path: str | os.PathLike[str], headerless: tuple[str, ...] = ()) -> list[Row]:
    """All rows of a file.

    Parameters
    ----------
    path : str or path
        JSONL (an object a line), JSON (a list of objects), CSV (quoted as usual) or TSV (no
        quotes), told apart by the suffix. The first row of CSV and TSV names the columns.
    headerless : tuple of str
        Columns of a CSV or TSV file whose first row does not name any of them.

    Raises
    ------
    DataError
        If the file cannot be read, is of another kind, damaged, or has no rows.
    """
    suffix = Path(path).suffix.lower()
    readers = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_list}
    if suffix not in {*readers, ".csv", ".tsv"}:
        raise DataError(f"{path}: expected a {SUFFIXES} file")
    text = read_text(path).removeprefix("\ufeff")
    name = str(path)
    if suffix in readers:
        rows = [_row(value, place) for value, place in readers[suffix](text, name)]
    else:
        rows = list(_table(text, name, headerless, tabs=suffix == ".tsv"))
    if not rows:
        raise DataError(f"{path}: expected at least one row, found none")
    return rows


def _json_lines(text: str, name: str) -> Iterator[tuple[Any, str]]:
    # Not splitlines: strings of JSON may hold U+2028 and its like.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{name}, line {number}"
            yield _parsed(line, place), place


def _json_list(text: str, name: str) -> Iterator[tuple[Any, str]]:
    values = _parsed(text, name)
    if not isinstance(values, list):
        raise DataError(f"{name}: expected a list of objects, found {type(values).__name__}")
    for number, value in enumerate(values, 1):
        yield value, f"{name}, item {number}"


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON: {error}") from None


def _row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected an object, found {type(value).__name__}")
    return Row(value, place)


def _table(text: str, name: str, headerless: tuple[str, ...], *, tabs: bool) -> Iterator[Row]:
    style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **style)
    columns: list[str] = []
    try:
        for cells in reader:
            place = f"{name}, line {reader.line_num}"
            if not cells:
                continue
            if not columns:
                named = not headerless or bool(set(headerless) & set(cells))
                columns = cells if named else list(headerless)
                if named:
                    continue
            if len(cells) != len(columns):
                raise DataError(
                    f"{place}: expected {len(columns)} columns ({', '.join(columns)}), "
                    f"found {len(cells)}"
                )
            yield Row(dict(zip(columns, cells, strict=True)), place)
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: {error}") from None
