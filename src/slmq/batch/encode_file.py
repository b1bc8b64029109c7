"""What an encoder makes of the texts of a file, written as they come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slmq.batch.table import read_table, written_rows
from slmq.disk import create, publish, remove
from slmq.errors import DataError, WriteError

if TYPE_CHECKING:
    from slmq.embedding.encoder import Encoder

__all__ = ["EncodeJob", "classify_file", "embed_file", "texts_of"]

VECTORS, TEXT = ".npy", ".txt"
Report = Callable[[int, int | None], None]


@dataclass(frozen=True)
class EncodeJob:
    """Which texts, and where what comes of them goes.

    Attributes
    ----------
    source : Path
        .csv, .tsv, .txt with a text a line, or lines of JSON.
    out : Path
        .csv, .tsv or lines of JSON; of vectors also .npy.
    column : str
        With the texts; of no effect for .txt.
    header : bool
        Whether the first row of CSV or TSV names the columns.
    truncate : bool
        Whether texts that are too long are cut off.
    """

    source: Path
    out: Path
    column: str
    header: bool = True
    truncate: bool = False

    def check(self) -> int:
        """Count the texts, and look for what would stop the job.

        Raises
        ------
        DataError
            If the file cannot be read, a row is wrong or has no text.
        WriteError
            If `out` has no folder, or is the file itself.
        """
        if not self.out.parent.is_dir():
            raise WriteError(f"{self.out}: the folder {self.out.parent} does not exist")
        if self.out.exists() and self.out.samefile(self.source):
            raise WriteError(f"{self.out}: expected another file than the one that is read")
        return sum(1 for _ in self.rows())

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the file, whose texts are there."""
        return texts_of(self.source, self.column, header=self.header)


def texts_of(source: Path, column: str, *, header: bool = True) -> Iterator[dict[str, Any]]:
    """The rows of a file, each with a text in `column`; raises DataError."""
    if source.suffix.lower() == TEXT:
        yield from _lines(source, column)
        return
    for number, row in enumerate(read_table(source, header=header), 1):
        if column not in row:
            raise DataError(
                f"{source}: row {number} has no column {column!r}, only {', '.join(row):.200}"
            )
        if not isinstance(row[column], str):
            raise DataError(
                f"{source}: row {number}: expected a text in {column!r}, got {row[column]!r:.80}"
            )
        yield row


def embed_file(
    encoder: Encoder,
    job: EncodeJob,
    report: Report,
    *,
    prompt: str | None = None,
    normalize: bool | None = None,
    dimensions: int | None = None,
) -> int:
    """Write the vector of every text; returns how many.

    Into .npy as one array of float32, elsewhere as a column "vector" beside the others.
    """
    total = job.check()
    read, kept = tee(job.rows())
    vectors = encoder.embed_stream(
        (row[job.column] for row in read),
        prompt=prompt,
        normalize=normalize,
        dimensions=dimensions,
        truncate=job.truncate,
    )
    if job.out.suffix.lower() == VECTORS:
        width = encoder.dimensions if dimensions is None else dimensions
        pieces = _array((total, width), vectors)
    else:
        rows = (
            {**row, "vector": _written(vector.tolist(), job.out)}
            for row, vector in zip(kept, vectors, strict=True)
        )
        pieces = written_rows(rows, job.out.suffix)
    _write(job.out, _reported(pieces, report, total))
    return total


def classify_file(
    encoder: Encoder, job: EncodeJob, report: Report, *, pair: str | None = None
) -> dict[str, int]:
    """Write the likeliest label of every text and its score; returns how often each came.

    `pair` is the column of a second text beside the first.
    """
    total = job.check()
    counts = dict.fromkeys(encoder.labels, 0)

    def rows() -> Iterator[dict[str, Any]]:
        read, kept = tee(job.rows())
        inputs = ((row[job.column], row[pair]) if pair else row[job.column] for row in read)
        for row, (best, *_) in zip(
            kept, encoder.classify_stream(inputs, truncate=job.truncate), strict=True
        ):
            counts[best.label] += 1
            yield {**row, "label": best.label, "score": best.score}

    _write(job.out, _reported(written_rows(rows(), job.out.suffix), report, total))
    return counts


def _lines(source: Path, column: str) -> Iterator[dict[str, Any]]:
    try:
        with source.open(encoding="utf-8-sig") as file:
            for line in file:
                yield {column: line.rstrip("\n")}
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: expected UTF-8, got {error.reason}") from None


def _array(shape: tuple[int, int], vectors: Iterable[Any]) -> Iterator[bytes]:
    """The bytes of a .npy file: its header, and every vector."""
    fields = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    head = b"\x93NUMPY\x01\x00"
    length = -(-(len(head) + 2 + len(fields) + 1) // 64) * 64 - len(head) - 2
    first = head + length.to_bytes(2, "little") + fields.ljust(length - 1).encode("ascii") + b"\n"
    for vector in vectors:
        yield first + np.asarray(vector, "<f4").tobytes()
        first = b""
    if first:
        yield first


def _written(vector: list[float], out: Path) -> Any:
    """A vector as a cell: a list in JSON, its JSON elsewhere."""
    return json.dumps(vector) if out.suffix.lower() in (".csv", ".tsv") else vector


def _reported(pieces: Iterable[bytes], report: Report, total: int) -> Iterator[bytes]:
    report(0, total)
    for done, piece in enumerate(pieces, 1):
        yield piece
        report(done, total)


def _write(out: Path, pieces: Iterator[bytes]) -> None:
    """A file that is there when it is whole."""
    temporary = out.with_name(out.name + ".tmp")
    try:
        with create(temporary, out.parent) as file:
            for piece in pieces:
                file.write(piece)
            publish(file, temporary, out, out.parent)
    except OSError as error:
        raise WriteError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        remove(temporary, out.parent)
