"""A batch job: read the requests, answer those that are not answered yet, put them in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from slmq.batch.answers import answer_line, error_line, fault_line
from slmq.batch.lines import Line, Plain, read_lines
from slmq.batch.part import Part, ids_of
from slmq.batch.requests import Asked, RequestError, read_request, seed_of
from slmq.errors import ClosedError, DataError, Error, WriteError
from slmq.generation.results import GenerationResult

if TYPE_CHECKING:
    from slmq.generation.bars import Report
    from slmq.generation.model import Model
    from slmq.generation.window import Outcome, Start

__all__ = ["Job", "Summary", "run_batch"]


@dataclass(frozen=True)
class Job:
    """What to answer, and how.

    Attributes
    ----------
    source, target : Path
        The file of requests, and the file of answers.
    column : str, optional
        `source` is CSV with prompts in this column.
    system : str, optional
        System message of plain prompts.
    raw : bool
        Whether plain prompts are completed verbatim, without the chat template.
    defaults : mapping
        Sampling parameters of requests that do not set them.
    settings : mapping
        How the model was loaded, as far as answers depend on it: those of a run with other settings
        are not taken over.
    """

    source: Path
    target: Path
    column: str | None = None
    system: str | None = None
    raw: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """See that the files can be what they should, before a model is loaded.

        Raises
        ------
        DataError, WriteError
        """
        if not self.source.is_file():
            raise DataError(f"{self.source}: expected a file of requests; there is none")
        if not self.target.parent.is_dir():
            raise WriteError(f"{self.target}: the folder {self.target.parent} does not exist")
        if self.target.is_dir():
            raise WriteError(f"{self.target}: expected a file, got a folder")
        if self.target.exists() and self.target.samefile(self.source):
            raise WriteError(f"{self.target}: is the file of requests; choose another name")


@dataclass(frozen=True)
class Summary:
    """What came of a job.

    Attributes
    ----------
    lines, failed : int
        Lines of the output, and how many of them hold an error.
    resumed : int
        Lines that an earlier run had answered.
    """

    lines: int
    failed: int
    resumed: int


def run_batch(model: Model, job: Job, progress: Report | None = None) -> Summary:
    """Answer a file of requests, as a batch: whoever asks the model otherwise goes first.

    Finished lines are kept in ``OUT.part``, and a run that was interrupted or killed goes on from
    there when it is repeated. The output appears only when it is complete, in the order of the
    input, and has the same bytes however often it was interrupted.

    Parameters
    ----------
    model : Model
    job : Job
    progress : callable, optional
        Called with (lines done, lines in all).

    Raises
    ------
    DataError
        If the requests cannot be read.
    WriteError
        If the disk is full, or the output exists and is not the answer to these requests.
    BusyError
        If another process runs this job.
    ClosedError
        If the model is closed meanwhile.
    """
    job.check()
    return _Run(model, job, progress or (lambda _done, _total: None)).run()


@dataclass
class _Open:
    """A line whose answers are under way."""

    line_id: str
    line: Line
    asked: Asked | None
    outcomes: list[Outcome | None]

    @property
    def complete(self) -> bool:
        return None not in self.outcomes


class _Run:
    def __init__(self, model: Model, job: Job, report: Report) -> None:
        template = model.tokenizer.chat_template is not None
        if job.system is not None and (job.raw or not template):
            raise ValueError("system: needs a chat template; raw leaves it out, or there is none")
        self._model = model
        self._job = job
        self._report = report
        self._plain = Plain(template and not job.raw, job.system)
        self._open: dict[int, tuple[_Open, int]] = {}  # by the number of the answer
        self._ids = [self._id_of(line) for line in self._lines()]
        if not self._ids:
            raise DataError(f"{job.source}: expected at least one request, got an empty file")

    def run(self) -> Summary:
        target = self._job.target
        if target.exists() and not self._is_complete(target):
            raise WriteError(
                f"{target}: exists and does not answer these requests with this model and these "
                "settings; remove it or choose another name"
            )
        if target.exists():
            # A run that was killed just after it had finished leaves this behind.
            target.with_name(f"{target.name}.part").unlink(missing_ok=True)
            return self._summary(len(self._ids))
        with Part(target) as part:
            resumed = sum(line_id in part for line_id in self._ids)
            self._answer(part, resumed)
            part.publish(self._ids)
        return self._summary(resumed)

    def _answer(self, part: Part, done: int) -> None:
        self._report(done, len(self._ids))
        with closing(self._model.submit_all(self._starts(part))) as found:
            for number, outcome in found:
                if isinstance(outcome, Exception) and _ends_the_job(outcome):
                    raise outcome
                entry, place = self._open.pop(number)
                entry.outcomes[place] = outcome
                if entry.complete:
                    part.append(self._line_of(entry))
                    done += 1
                    self._report(done, len(self._ids))

    def _starts(self, part: Part) -> Iterator[Start]:
        """A function for every answer that is not there yet, which submits it."""
        number = 0
        for line_id, line in zip_longest(self._ids, self._lines()):
            if line is None or line_id != self._id_of(line):
                raise DataError(f"{self._job.source}: was changed while it was read")
            if line_id in part:
                continue
            entry, starts = self._begin(line_id, line)
            for place, start in enumerate(starts):
                self._open[number] = entry, place
                number += 1
                yield start

    def _begin(self, line_id: str, line: Line) -> tuple[_Open, list[Start]]:
        try:
            if line.fault is not None:
                raise RequestError(line.fault)
            assert line.custom_id is not None  # such a line has a fault
            seed = seed_of(line.custom_id)
            asked = read_request(line.url, line.body, seed, self._job.defaults)
        except RequestError as error:
            return _Open(line_id, line, None, [None]), [partial(_refuse, error)]
        starts: list[Start] = [
            partial(
                self._model.submit,
                prompt,
                params,
                chat_template_kwargs=asked.template,
                batch=True,
                whole=True,
            )
            for prompt, params in asked.answers()
        ]
        return _Open(line_id, line, asked, [None] * len(starts)), starts

    def _line_of(self, entry: _Open) -> dict[str, Any]:
        digest, line = entry.line_id.removeprefix("batch_req_"), entry.line
        if line.fault is not None:
            return fault_line(digest, line.custom_id, line.fault)
        assert line.custom_id is not None
        results = [found for found in entry.outcomes if isinstance(found, GenerationResult)]
        # The first in order, not in time, so that another run says the same.
        for found in entry.outcomes:
            if isinstance(found, Exception):
                return error_line(digest, line.custom_id, found)
        assert entry.asked is not None
        model = self._model
        return answer_line(
            digest, line.custom_id, entry.asked, results, model.name, model.tokenizer
        )

    def _lines(self) -> Iterator[Line]:
        return read_lines(self._job.source, self._plain, self._job.column)

    def _id_of(self, line: Line) -> str:
        """A hash of all that the answer to a line depends on."""
        job = self._job
        alone = line.custom_id is not None and not line.repeats
        content = [
            line.custom_id,
            None if alone else line.number,
            line.url,
            line.body,
            line.fault,
            self._model.name,
            _plain_json(job.defaults),
            _plain_json(job.settings),
        ]
        text = json.dumps(content, sort_keys=True)
        return f"batch_req_{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def _is_complete(self, target: Path) -> bool:
        pairs = zip_longest(self._ids, ids_of(target))
        return all(wanted == found for wanted, found in pairs)

    def _summary(self, resumed: int) -> Summary:
        failed = 0
        with self._job.target.open("rb") as file:
            for data in file:
                response = json.loads(data)["response"]
                failed += response is None or response["status_code"] != 200
        return Summary(len(self._ids), failed, resumed)


def _ends_the_job(error: Exception) -> bool:
    """Whether an error is not about one request: it would be the same for all that follow."""
    if isinstance(error, Error):
        return isinstance(error, ClosedError)
    return isinstance(error, OSError | MemoryError)


def _refuse(error: RequestError) -> NoReturn:
    raise error


def _plain_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with string keys throughout and no infinity, as JSON wants it."""
    return {
        name: _plain_json({str(k): v for k, v in value.items()})
        if isinstance(value, Mapping)
        else (repr(value) if isinstance(value, float) else value)
        for name, value in values.items()
    }
