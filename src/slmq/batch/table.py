"""Rows of a table: CSV, TSV or lines of JSON, read and written in the same form."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from slmq.errors import DataError

__all__ = ["read_table", "written_rows"]

Row = dict[str, Any]
DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_table(path: Path, *, header: bool = True) -> Iterator[Row]:
    """The rows of a file ending in .csv or .tsv, or of lines of JSON objects.

    Parameters
    ----------
    path : Path
    header : bool
        Whether the first row of CSV or TSV names the columns; else they are "1", "2", ...

    Raises
    ------
    DataError
        If the file cannot be read, or a row is wrong; the message has its number.
    """
    delimiter = DELIMITERS.get(path.suffix.lower())
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _objects(file) if delimiter is None else _cells(file, delimiter, header)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, got {error.reason}") from None
    except (csv.Error, DataError) as error:
        raise DataError(f"{path}: {error}") from None


def _objects(file: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {number}: expected JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"line {number}: expected an object, got {type(row).__name__}")
        yield row


def _cells(file: Iterable[str], delimiter: str, header: bool) -> Iterator[Row]:
    if delimiter == "\t":  # such files are written without quotes more often than with them
        rows = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    for number, cells in enumerate(rows, 1):
        if not cells:
            continue
        if names is None:
            names = cells if header else [str(i + 1) for i in range(len(cells))]
            if len(set(names)) < len(names):
                raise DataError(f"two columns have the same name in {names}")
            if header:
                continue
        if len(cells) != len(names):
            raise DataError(f"row {number}: expected {len(names)} cells, got {len(cells)}")
        yield dict(zip(names, cells, strict=True))


def written_rows(rows: Iterable[Mapping[str, Any]], suffix: str) -> Iterator[bytes]:
    """Lines of a file with this ending, for rows with the same columns."""
    delimiter = DELIMITERS.get(suffix.lower())
    first = True
    for row in rows:
        if delimiter is None:
            yield json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
            continue
        text = io.StringIO()
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
        if first:
            writer.writerow(row)
            first = False
        writer.writerow(row.values())
        yield text.getvalue().encode("utf-8", "surrogatepass")
