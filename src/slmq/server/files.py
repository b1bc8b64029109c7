"""OpenAI's files and batches, on `slmq.batch`; they live as long as the server."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq.batch import Job, run_batch
from slmq.batch.lines import CHAT, COMPLETIONS, Plain, read_lines
from slmq.batch.requests import RequestError
from slmq.errors import DataError, Error
from slmq.server.exchange import only
from slmq.server.faults import RefusedError
from slmq.server.guard import body_of
from slmq.server.replies import Reply

if TYPE_CHECKING:
    from starlette.requests import Request

    from slmq.server.service import Service
    from slmq.server.shelf import Book

__all__ = ["Files"]

MOST_FILES = 100
MOST_WAITING = 100
OVER = ("completed", "failed", "cancelled")
JSONL = "application/jsonl"


class CancelledError(Exception):
    """A batch is not wanted any more."""


@dataclass
class _File:
    id: str
    path: Path
    name: str
    purpose: str
    created: int

    @property
    def body(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.path.stat().st_size,
            "created_at": self.created,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass
class _Batch:
    id: str
    source: str
    endpoint: str
    metadata: Any
    created: int
    status: str = "validating"
    done: int = 0
    failed: int = 0
    total: int = 0
    output: str | None = None
    errors: list[str] = field(default_factory=list)
    times: dict[str, int] = field(default_factory=dict)

    def turn(self, status: str) -> None:
        """From now on it is in this state."""
        self.status = status
        self.times[f"{status}_at"] = int(time.time())

    @property
    def body(self) -> dict[str, Any]:
        faults = [{"code": "invalid", "message": text, "line": None} for text in self.errors]
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": faults} if faults else None,
            "input_file_id": self.source,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output,
            "error_file_id": None,
            "created_at": self.created,
            **self.times,
            "request_counts": {
                "total": self.total,
                "completed": self.done - self.failed,
                "failed": self.failed,
            },
            "metadata": self.metadata,
        }


class Files:
    """Endpoints.

    Parameters
    ----------
    service : Service
    folder : Path
        Where files are kept.
    """

    def __init__(self, service: Service, folder: Path) -> None:
        self._service = service
        self._folder = folder
        self._files: dict[str, _File] = {}
        self._batches: dict[str, _Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._one = asyncio.Lock()  # batches run one after another
        self._thread = ThreadPoolExecutor(1, "slmq-batch")

    async def upload(self, request: Request) -> Reply:
        """POST /v1/files."""
        from starlette.requests import Request as Multipart

        data: bytes = request.scope.get("slmq.body", b"")

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": data, "more_body": False}

        async with Multipart(request.scope, receive).form(max_files=1, max_fields=8) as form:
            upload, purpose = form.get("file"), form.get("purpose")
            if purpose != "batch":
                raise RequestError(f"purpose: expected 'batch', got {purpose!r:.40}", "purpose")
            if upload is None or isinstance(upload, str):
                raise RequestError("file: is missing", "file")
            content = await upload.read()
            kept = self._keep(upload.filename or "file", "batch")
            await self._service.run(kept.path.write_bytes, content)
        self._files[kept.id] = kept
        return Reply(kept.body)

    async def files(self, _request: Request) -> Reply:
        """GET /v1/files."""
        return _listed([entry.body for entry in reversed(self._files.values())])

    async def file(self, request: Request) -> Reply:
        """GET /v1/files/{id}."""
        return Reply(self._file(request.path_params["id"]).body)

    async def content(self, request: Request) -> Reply:
        """GET /v1/files/{id}/content."""
        path = self._file(request.path_params["id"]).path
        return Reply(await self._service.run(path.read_bytes), kind=JSONL)

    async def delete(self, request: Request) -> Reply:
        """DELETE /v1/files/{id}."""
        found = self._file(request.path_params["id"])
        using = [b.id for b in self._batches.values() if b.source == found.id and not _over(b)]
        if using:
            raise RefusedError(409, f"the file is read by the batch {using[0]}")
        del self._files[found.id]
        found.path.unlink(missing_ok=True)
        return Reply({"id": found.id, "object": "file", "deleted": True})

    async def create(self, request: Request) -> Reply:
        """POST /v1/batches."""
        names = ("input_file_id", "endpoint", "completion_window", "metadata")
        given = only(body_of(request.scope), names)
        if given.get("endpoint") not in (CHAT, COMPLETIONS):
            raise RequestError(f"endpoint: expected {CHAT} or {COMPLETIONS}", "endpoint")
        source = self._file(given.get("input_file_id"))
        if sum(not _over(batch) for batch in self._batches.values()) >= MOST_WAITING:
            raise RefusedError(429, f"{MOST_WAITING} batches wait already")
        batch = _Batch(
            f"batch_{os.urandom(12).hex()}",
            source.id,
            given["endpoint"],
            given.get("metadata"),
            int(time.time()),
        )
        self._batches[batch.id] = batch
        task = asyncio.create_task(self._run(batch, source))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Reply(batch.body)

    async def batches(self, _request: Request) -> Reply:
        """GET /v1/batches."""
        return _listed([batch.body for batch in reversed(self._batches.values())])

    async def batch(self, request: Request) -> Reply:
        """GET /v1/batches/{id}."""
        return Reply(self._batch(request.path_params["id"]).body)

    async def cancel(self, request: Request) -> Reply:
        """POST /v1/batches/{id}/cancel."""
        batch = self._batch(request.path_params["id"])
        if _over(batch):
            raise RefusedError(409, f"the batch is {batch.status} already")
        batch.turn("cancelling")
        return Reply(batch.body)

    def close(self) -> None:
        """Wait for the thread, whose model was closed, and forget what still waits."""
        for task in self._tasks:
            task.cancel()
        self._thread.shutdown()

    async def _run(self, batch: _Batch, source: _File) -> None:
        """Answer a file, when those before it are done."""
        try:
            async with self._one:
                book = await self._service.run(self._book_of, batch, source)
                async with self._service.shelf.used(book):
                    kept = self._keep(f"{batch.id}_output.jsonl", "batch_output")
                    job = Job(source.path, kept.path, defaults=self._defaults(book))
                    loop = asyncio.get_running_loop()
                    await loop.run_in_executor(self._thread, self._answer, batch, book, job)
            self._files[kept.id] = kept
            batch.output = kept.id
            batch.turn("completed")
        except CancelledError:
            batch.turn("cancelled")
        except (Error, OSError, ValueError, TypeError) as error:
            batch.errors.append(str(error))
            batch.turn("failed")

    def _book_of(self, batch: _Batch, source: _File) -> Book:
        """The model that all lines ask for."""
        if batch.status == "cancelling":
            raise CancelledError
        found: Book | None = None
        for line in read_lines(source.path, Plain(True)):
            batch.total += 1
            if line.fault is not None:
                continue
            book = self._service.shelf.find(line.body.get("model"))
            if found is not None and found is not book:
                raise DataError(
                    f"line {line.number}: expected the model of the lines before it, "
                    f"{found.name!r}, got {book.name!r}"
                )
            if line.url != batch.endpoint:
                raise DataError(
                    f"line {line.number}: expected the endpoint of the batch, {batch.endpoint}, "
                    f"got {line.url}"
                )
            found = book
        return found or self._service.shelf.find(None)

    def _answer(self, batch: _Batch, book: Book, job: Job) -> None:
        """In a thread of its own: the answers of a batch wait behind all others."""
        assert book.loaded is not None

        def report(done: int, total: int | None) -> None:
            if batch.status == "cancelling":
                raise CancelledError
            batch.done, batch.total = done, total or 0

        report(0, batch.total)
        batch.turn("in_progress")
        batch.failed = run_batch(book.loaded.model, job, report).failed

    def _defaults(self, book: Book) -> Mapping[str, Any]:
        assert book.loaded is not None
        return book.loaded.suggested

    def _keep(self, name: str, purpose: str) -> _File:
        if len(self._files) >= MOST_FILES:
            raise RefusedError(413, f"{MOST_FILES} files are kept already; delete some")
        file_id = f"file-{os.urandom(12).hex()}"
        return _File(file_id, self._folder / file_id, name[:200], purpose, int(time.time()))

    def _file(self, file_id: Any) -> _File:
        found = self._files.get(file_id) if isinstance(file_id, str) else None
        if found is None:
            raise RefusedError(404, f"there is no file {file_id!r:.80}", code="not_found")
        return found

    def _batch(self, batch_id: str) -> _Batch:
        found = self._batches.get(batch_id)
        if found is None:
            raise RefusedError(404, f"there is no batch {batch_id!r:.80}", code="not_found")
        return found


def _over(batch: _Batch) -> bool:
    return batch.status in OVER


def _listed(found: list[dict[str, Any]]) -> Reply:
    """All of a kind, with the ids between which they are: texts always, as OpenAI describes it."""
    ids = [one["id"] for one in found] or [""]
    ends = {"first_id": ids[0], "last_id": ids[-1]}
    return Reply({"object": "list", "data": found, "has_more": False, **ends})
