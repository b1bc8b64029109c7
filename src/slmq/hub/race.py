"""Get a catalogue model from whichever of its sources answers first.

All sources are asked at once, each in its own thread and with a deadline: one that hangs (even in
the name lookup, which no socket timeout covers) delays nobody and is named.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from slmq.errors import DownloadError
from slmq.hub.background import in_background
from slmq.hub.cache import make_folder
from slmq.hub.catalogue import FileEntry
from slmq.hub.download import Retry
from slmq.hub.progress import Progress
from slmq.hub.settings import hub_is_offline
from slmq.hub.sources import Job, Source, sources_of
from slmq.hub.web import Remote, SourceError
from slmq.machine.disk import remove, remove_tree

__all__ = ["PROBE_S", "Answer", "Race", "fetch_entry"]

PROBE_S = 5.0
"""Seconds that a source has to answer the first question, the name lookup included."""


@dataclass(frozen=True)
class Answer:
    """What a source said: an address, or the reason why not."""

    source: Source
    said: Remote | SourceError


class Race:
    """Asks all sources at once; iterating yields their answers, good ones as they come in.

    Parameters
    ----------
    sources : sequence of Source
        Who is asked.
    favourites : sequence of Source
        Those that are waited for (until the deadline) before another's good answer is used:
        a part of the file that an earlier run left is worth a few seconds.
    deadline_s : float
        Seconds after which a source counts as silent.

    Attributes
    ----------
    pending : list of Source
        Those that have not answered yet.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        favourites: Sequence[Source] = (),
        deadline_s: float = PROBE_S,
    ) -> None:
        self.pending = list(sources)
        self._favourites = favourites
        self._deadline_s = deadline_s
        self._started = time.monotonic()
        self._replies: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        for source in sources:
            in_background(partial(self._ask, source))

    def _ask(self, source: Source) -> None:
        try:
            self._replies.put(Answer(source, source.probe(self._deadline_s)))
        except SourceError as error:
            self._replies.put(Answer(source, error))
        except Exception as error:  # an address that makes no sense, above all
            wrapped = SourceError(f"{source.label}: {type(error).__name__}: {error}")
            self._replies.put(Answer(source, wrapped))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the sources were asked."""
        return time.monotonic() - self._started

    def __iter__(self) -> Iterator[Answer]:
        good: list[Answer] = []
        while self.pending or good:
            best_known = bool(good) and good[0].source in self._favourites
            hoping = any(source in self._favourites for source in self.pending)
            wait = not good or (hoping and not best_known)
            left = max(0.0, self._deadline_s - self.elapsed_s) if wait else 0.0
            try:
                answer = self._replies.get(timeout=left)
            except queue.Empty:
                if not good:
                    break
                yield good.pop(0)
                continue
            self.pending.remove(answer.source)
            if isinstance(answer.said, SourceError):
                yield answer
            elif answer.source in self._favourites:
                good.insert(0, answer)
            else:
                good.append(answer)
        for source in self.pending:
            silent = f"{source.label} did not answer within {self._deadline_s:g} s"
            yield Answer(source, SourceError(silent))


def fetch_entry(entry: FileEntry, folder: Path, progress: Progress, retry: Retry | None) -> None:
    """Bring the file of a catalogue entry into `folder`. The caller holds the lock of the model.

    Raises
    ------
    DownloadError
        When no source delivers; the message names each with its reason.
    CacheError
        When the disk is full or refuses.
    """
    make_folder(folder)
    job = Job(entry, folder, progress, retry or Retry())
    racing, last, wants_pip = sources_of(entry)
    failures: list[SourceError] = []
    if hub_is_offline():
        failures.append(SourceError("the hub: skipped, because HF_HUB_OFFLINE is set"))
    favourites = [source for source in racing if source.has_part(job)]
    if _run(Race(racing, favourites), job, failures):
        return
    wants_pip = wants_pip or any(failure.use_pip for failure in failures)
    if wants_pip and _run(Race(last), job, failures):
        return
    lines = "".join(f"\n  - {failure}" for failure in failures)
    raise DownloadError(f"could not download {entry.name}:{lines}")


def _run(race: Race, job: Job, failures: list[SourceError]) -> bool:
    """Let the sources do the work in the order of their answers; False when all fail."""
    for answer in race:
        if isinstance(answer.said, SourceError):
            failures.append(answer.said)
            continue
        news = [f"downloading {answer.source.offer} from {answer.source.label}"]
        news += [str(failure) for failure in failures if failure.notable]
        news += [
            f"{source.label} has not answered after {race.elapsed_s:.1f} s"
            for source in race.pending
        ]
        job.progress.message(f"{job.entry.name}: {'; '.join(news)}")
        try:
            answer.source.fetch(answer.said, job)
        except SourceError as error:
            failures.append(error)
            job.progress.message(str(error))
            continue
        _tidy(job)
        return True
    return False


def _tidy(job: Job) -> None:
    """Delete what other sources left of the model that is now whole."""
    for path in job.folder.iterdir():
        if path.suffix == ".tmp" and path.is_dir():
            with suppress(OSError):
                remove_tree(path, job.folder)
        elif path.name.endswith((".part", ".part.json", ".tmp")):
            remove(path, job.folder)
