"""What an encoder makes of the texts of a file; a run that was interrupted goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slmq.batch.records import Records
from slmq.batch.table import read_table, written_rows
from slmq.embedding.text_options import TextOptions
from slmq.errors import DataError, WriteError
from slmq.machine.disk import create, publish, remove, sha256_of

if TYPE_CHECKING:
    from slmq.embedding.encoder import Encoder
    from slmq.embedding.head import Head

__all__ = ["EncodeJob", "Encoded", "classify_file", "embed_file", "examples_of", "texts_of"]

VECTORS, TEXT = ".npy", ".txt"
LABEL, SCORE, VECTOR = "label", "score", "vector"  # columns that results are written to
WRITTEN_S = 0.5  # between two writes to the disk
PROBE = "a"  # a text by whose results a model is known
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
    options : TextOptions
    labels : bool
        Whether labels come of them; else vectors.
    """

    source: Path
    out: Path
    options: TextOptions
    labels: bool = False

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
        """The rows of the file, whose texts are there; none has a column of the results' names."""
        for number, row in enumerate(texts_of(self.source, self.options), 1):
            for name in self._added():
                if name in row:
                    raise DataError(
                        f"{self.source}: row {number}: has a column {name!r}, which would be "
                        f"written over; give it another name"
                    )
            yield row

    def _added(self) -> tuple[str, ...]:
        if self.labels:
            return (LABEL, SCORE)
        return () if self.out.suffix.lower() == VECTORS else (VECTOR,)


@dataclass(frozen=True)
class Encoded:
    """What came of a job.

    Attributes
    ----------
    rows, resumed : int
        Texts, and how many of them an earlier run had done.
    counts : dict of str to int
        How often each label came; empty for vectors.
    """

    rows: int
    resumed: int
    counts: dict[str, int]


def texts_of(source: Path, options: TextOptions) -> Iterator[dict[str, Any]]:
    """The rows of a file, each with a text in its column; raises DataError."""
    column = options.column
    if source.suffix.lower() == TEXT:
        yield from _lines(source, column)
        return
    for number, row in enumerate(read_table(source, header=not options.no_header), 1):
        if column not in row:
            raise DataError(
                f"{source}: row {number} has no column {column!r}, only {', '.join(row):.200}"
            )
        if not isinstance(row[column], str):
            raise DataError(
                f"{source}: row {number}: expected a text in {column!r}, got {row[column]!r:.80}"
            )
        yield row


def embed_file(encoder: Encoder, job: EncodeJob, report: Report, **options: Any) -> Encoded:
    """Write the vector of every text.

    Into .npy as one array of float32, elsewhere as a column "vector" beside the others. `options`
    are those of `Encoder.embed`.

    Raises
    ------
    DataError
        If the file cannot be read, or a row is wrong.
    WriteError
        If the output cannot be written.
    ContextOverflowError, ValueError
        As `Encoder.embed`.
    BusyError
        If another process runs this job.
    """
    width = options.get("dimensions") or encoder.dimensions
    cut = job.options.truncate

    def vectors(rows: Iterator[dict[str, Any]], done: int) -> Iterator[Any]:
        texts = (row[job.options.column] for row in rows)
        return encoder.embed_stream(texts, truncate=cut, first=done, **options)

    with _records(encoder, job, ("<f4", (width,)), options) as found:
        total, resumed = _fill(found, job, report, vectors)
        if job.out.suffix.lower() == VECTORS:
            _write(job.out, _array((total, width), found))
        else:
            _write(job.out, written_rows(_beside(job, found), job.out.suffix))
        found.remove()
    return Encoded(total, resumed, {})


def classify_file(
    encoder: Encoder,
    job: EncodeJob,
    report: Report,
    *,
    pair: str | None = None,
    head: Head | None = None,
) -> Encoded:
    """Write the likeliest label of every text and its score.

    `pair` is the column of a second text beside the first; `head` labels in place of the model's
    own head, and reads single texts. Errors as `embed_file`, and UnsupportedModelError if the model
    has no head for it.
    """
    job = replace(job, labels=True)
    labeller: Any = encoder if head is None else head
    names: list[str] = labeller.labels
    numbers = {name: i for i, name in enumerate(names)}
    options = {"pair": pair, "head": None if head is None else head.digest}

    def labels(rows: Iterator[dict[str, Any]], done: int) -> Iterator[Any]:
        inputs = (_input(job, row, pair) for row in rows)
        scored = labeller.classify_stream(inputs, truncate=job.options.truncate, first=done)
        return ((numbers[best.label], best.score) for best, *_ in scored)

    with _records(encoder, job, [(LABEL, "<i4"), (SCORE, "<f8")], options) as found:
        total, resumed = _fill(found, job, report, labels)
        counts = dict.fromkeys(names, 0)

        def rows() -> Iterator[dict[str, Any]]:
            for row, one in zip(job.rows(), found, strict=True):
                name = names[one[LABEL]]
                counts[name] += 1
                yield {**row, LABEL: name, SCORE: float(one[SCORE])}

        _write(job.out, written_rows(rows(), job.out.suffix))
        found.remove()
    return Encoded(total, resumed, counts)


def _records(encoder: Encoder, job: EncodeJob, kind: Any, options: dict[str, Any]) -> Records:
    """Where results are kept that depend on the texts, the model and the options."""
    texts = {"column": job.options.column, "no_header": job.options.no_header}
    given = {name: value for name, value in options.items() if value is not None}
    what = hashlib.sha256(encoder.states(PROBE).tobytes()).hexdigest()
    told = {"texts": sha256_of(job.source), **texts, **given, "cut": job.options.truncate}
    return Records(job.out, {**told, "model": what, "task": encoder.task}, kind)


def _fill(
    found: Records,
    job: EncodeJob,
    report: Report,
    results: Callable[[Iterator[dict[str, Any]], int], Iterator[Any]],
) -> tuple[int, int]:
    """Compute what is missing: how many rows there are, and how many there were."""
    total, resumed = job.check(), len(found)
    report(resumed, total)
    group: list[Any] = []
    written_s = time.monotonic()
    for result in results(islice(job.rows(), resumed, None), resumed):
        group.append(result)
        if time.monotonic() - written_s >= WRITTEN_S:
            found.append(np.array(group, found.kind.base))
            group, written_s = [], time.monotonic()
            report(len(found), total)
    if group:
        found.append(np.array(group, found.kind.base))
    report(total, total)
    return total, resumed


def _input(job: EncodeJob, row: dict[str, Any], pair: str | None) -> Any:
    """What is classified: a text, or two of them."""
    text = row[job.options.column]
    if pair is None:
        return text
    if not isinstance(row.get(pair), str):
        raise DataError(f"{job.source}: expected a text in {pair!r} of every row, got {row!r:.200}")
    return text, row[pair]


def _beside(job: EncodeJob, vectors: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for row, vector in zip(job.rows(), vectors, strict=True):
        yield {**row, VECTOR: _written(vector.tolist(), job.out)}


def examples_of(source: Path, options: TextOptions, label: str) -> tuple[list[str], list[str]]:
    """The texts of a file and their labels; raises DataError for a row that lacks one."""
    texts, labels = [], []
    for number, row in enumerate(texts_of(source, options), 1):
        if label not in row:
            raise DataError(
                f"{source}: row {number} has no column {label!r}, only {', '.join(row):.200}"
            )
        found = row[label]
        if isinstance(found, bool) or not isinstance(found, (str, int)) or not str(found).strip():
            raise DataError(
                f"{source}: row {number}: expected the name of a label in {label!r}, got "
                f"{found!r:.80}"
            )
        texts.append(row[options.column])
        labels.append(str(found).strip())
    return texts, labels


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
    yield head + length.to_bytes(2, "little") + fields.ljust(length - 1).encode("ascii") + b"\n"
    for vector in vectors:
        yield vector.tobytes()


def _written(vector: list[float], out: Path) -> Any:
    """A vector as a cell: a list in JSON, its JSON elsewhere."""
    return json.dumps(vector) if out.suffix.lower() in (".csv", ".tsv") else vector


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
