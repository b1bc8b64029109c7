"""Labels for the rows of a file, resumable; and how often they are right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq.batch.confusion import Confusion
from slmq.batch.part import Part
from slmq.batch.table import read_table, written_rows
from slmq.errors import DataError, WriteError
from slmq.generation.labels import Label

if TYPE_CHECKING:
    from slmq.generation.model import Model

__all__ = ["LabelJob", "Labelled", "label_file"]

ADDED = ("predicted", "probability", "probabilities")
WRITTEN = 32  # rows between two writes to the disk
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LabelJob:
    """What to label, and how.

    Attributes
    ----------
    source, target : Path
        CSV, TSV or lines of JSON, each by its ending.
    column : str
        The column with the texts.
    labels : sequence of str
    options : mapping
        `instruction`, `examples` and `calibrate` of `Model.label`.
    true : str, optional
        The column with the right labels, or with their numbers from 0.
    header : bool
        Whether CSV and TSV name their columns; else these are "1", "2", ...
    settings : mapping
        How the model was loaded, as far as labels depend on it.
    """

    source: Path
    target: Path
    column: str
    labels: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    true: str | None = None
    header: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> int:
        """See that files and columns are there before a model is loaded; the number of rows.

        Raises
        ------
        DataError, WriteError
        """
        if not self.target.parent.is_dir():
            raise WriteError(f"{self.target}: the folder {self.target.parent} does not exist")
        if self.target.is_dir() or (
            self.target.exists() and self.source.exists() and self.target.samefile(self.source)
        ):
            raise WriteError(f"{self.target}: expected another file to write to")
        return sum(1 for _ in self.rows())

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the source; each has a text, and a right label if there is a column."""
        for number, row in enumerate(read_table(self.source, header=self.header), 1):
            where = f"{self.source}: row {number}"
            for name in (self.column, self.true):
                if name is not None and name not in row:
                    raise DataError(f"{where}: expected a column {name!r}, got {list(row)}")
            for name in ADDED:
                if name in row:
                    raise DataError(f"{where}: has a column {name!r}, which would be written over")
            if not isinstance(row[self.column], str):
                raise DataError(
                    f"{where}: {self.column!r}: expected a text, got {row[self.column]!r:.80}"
                )
            if self.true is not None and self.right(row) is None:
                raise DataError(
                    f"{where}: {self.true!r}: expected one of {', '.join(self.labels)}, or a "
                    f"number from 0, got {row[self.true]!r:.80}"
                )
            yield row

    def right(self, row: Mapping[str, Any]) -> str | None:
        """The right label of a row; None if its column has another text."""
        said = str(row[self.true or ""]).strip()
        if said in self.labels:
            return said
        if said.isdecimal() and int(said) < len(self.labels):
            return self.labels[int(said)]
        return None


@dataclass(frozen=True)
class Labelled:
    """What came of a job.

    Attributes
    ----------
    rows, resumed : int
        Rows of the output, and how many of them an earlier run had labelled.
    counts : dict of str to int
        How often each label was given.
    confusion : Confusion or None
        Against the column with the right labels, if there is one.
    """

    rows: int
    resumed: int
    counts: dict[str, int]
    confusion: Confusion | None


def label_file(model: Model, job: LabelJob, progress: Progress | None = None) -> Labelled:
    """Label the texts of a file.

    Each row of the output is one of the input with `predicted`, `probability` and `probabilities`.
    Finished rows are kept in ``OUT.part``; a run that was interrupted goes on from there.

    Raises
    ------
    DataError
        If the file cannot be read, or lacks a column.
    WriteError
        If the output cannot be written.
    ContextOverflowError
        If a text does not fit into the context.
    BusyError
        If another process runs this job.
    """
    total = job.check()
    report = progress or (lambda _done, _total: None)
    with Part(job.target) as part:
        ids = [_row_id(model, job, number, row) for number, row in enumerate(job.rows())]
        missing = [i for i, row_id in enumerate(ids) if row_id not in part]
        resumed = done = total - len(missing)
        report(done, total)
        for lines in _in_groups(_found(model, job, ids, missing)):
            part.append_all(lines)
            done += len(lines)
            report(done, total)
        found = [_kept(line) for line in part.lines(ids)]
        rows = _rows(job, found)
        part.publish_as(written_rows(rows, job.target.suffix))
    counts = {label: sum(one.label == label for one in found) for label in job.labels}
    confusion = None
    if job.true is not None:
        pairs = zip((job.right(row) or "" for row in job.rows()), found, strict=True)
        confusion = Confusion.of(job.labels, ((right, one.label) for right, one in pairs))
    return Labelled(total, resumed, counts, confusion)


def _found(
    model: Model, job: LabelJob, ids: Sequence[str], missing: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """A line of the part for each row that has none yet."""
    wanted = set(missing)
    texts = (row[job.column] for i, row in enumerate(job.rows()) if i in wanted)
    labeller = model.labeller(job.labels, **job.options)
    for i, label in zip(missing, labeller(texts), strict=True):
        assert isinstance(label, Label)
        yield {"id": ids[i], "label": label.label, "probabilities": label.probabilities}


def _in_groups(lines: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while group := list(islice(lines, WRITTEN)):
        yield group


def _kept(line: Mapping[str, Any]) -> Label:
    probabilities = dict(line["probabilities"])
    return Label(line["label"], probabilities[line["label"]], probabilities)


def _rows(job: LabelJob, found: Sequence[Label]) -> Iterator[dict[str, Any]]:
    """The rows of the output; cells of CSV are texts."""
    plain = job.target.suffix.lower() not in (".csv", ".tsv")
    for row, one in zip(job.rows(), found, strict=True):
        each: Any = one.probabilities
        if not plain:
            each = json.dumps(one.probabilities, ensure_ascii=False)
        yield {**row, **dict(zip(ADDED, (one.label, one.probability, each), strict=True))}


def _row_id(model: Model, job: LabelJob, number: int, row: Mapping[str, Any]) -> str:
    """What a label depends on, as a hash."""
    options = {name: value for name, value in job.options.items() if value}
    asked = [model.name, dict(job.settings), list(job.labels), options, number, row[job.column]]
    text = json.dumps(asked, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
