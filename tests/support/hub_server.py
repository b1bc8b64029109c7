"""A real HTTP server on 127.0.0.1 for the hub tests: a model hub, a package index, and bad days.

Every answer comes from a `Page`, whose fields say how it misbehaves; every request is kept in
`Server.requests`, so that a test can tell what was asked and what was not.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import ssl
import threading
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass
class Page:
    """What a path answers.

    Attributes
    ----------
    body : bytes
        The file.
    etag : str or None
        Its validator; ranges with another ``If-Range`` get the whole file.
    ranges : bool
        Whether ``Range`` is honoured.
    cuts : list of int
        Bytes after which the connection breaks, one for each GET that asks for more than a probe.
    failures : list of int
        Statuses to answer with before the page itself.
    hang : threading.Event or None
        Wait for it before any answer.
    stall_after : int or None
        Bytes after which the sender waits for `hang` instead of before the answer.
    authorization : str or None
        The header that a client must send.
    headers : mapping
        Further headers, or others than usual (None: not that one); with `status` 302 a
        ``Location``.
    raw : callable or None
        All that is sent instead, from the status line on, piece by piece; the connection breaks
        after the last.
    """

    body: bytes = b""
    kind: str = "application/octet-stream"
    etag: str | None = None
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    hang: threading.Event | None = None
    stall_after: int | None = None
    authorization: str | None = None
    status: int = 200
    headers: Mapping[str, str | None] = field(default_factory=dict)
    raw: Callable[[], Iterable[bytes]] | None = None


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: Message


class Server:
    """Pages by path; ``with Server() as server``. A certificate with its key makes it TLS."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[Request] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.host = f"127.0.0.1:{self._http.server_port}"
        self.url = f"http://{self.host}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
            self.url = f"https://{self.host}"

    def __enter__(self) -> Server:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for page in self.pages.values():
            if page.hang is not None:
                page.hang.set()
        self._http.shutdown()
        self._http.server_close()

    def gets(self, path: str) -> list[str | None]:
        """Return the ``Range`` of every GET of `path` that is not a probe."""
        ranges = [r.headers["Range"] for r in self.requests if (r.method, r.path) == ("GET", path)]
        return [asked for asked in ranges if asked != "bytes=0-0"]

    def add_wheel(self, filename: str, wheel: bytes, **page: Any) -> str:
        """Serve a wheel through a simple index at ``/simple`` and return the wheel's path."""
        project = filename.partition("-")[0].replace("_", "-")
        path = f"/files/{filename}"
        self.pages[path] = Page(wheel, **{"etag": '"w1"', **page})
        link = f'<a href="../../files/{filename}#sha256={hashlib.sha256(wheel).hexdigest()}">w</a>'
        self.pages[f"/simple/{project}/"] = Page(link.encode(), "text/html")
        return path

    def add_repository(
        self, repo: str, files: Mapping[str, bytes], commit: str, **page: Any
    ) -> None:
        """Serve a hub repository: its listing and every file under ``main`` and the commit."""
        siblings = []
        for name, body in files.items():
            digest = hashlib.sha256(body).hexdigest()
            etag = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
            sibling: dict[str, Any] = {"rfilename": name, "size": len(body), "blobId": etag}
            if name.endswith((".gguf", ".safetensors")):
                etag = digest
                sibling["lfs"] = {"sha256": digest, "size": len(body), "pointerSize": 134}
            siblings.append(sibling)
            headers = {"X-Repo-Commit": commit}
            for revision in ("main", commit):
                self.pages[f"/{repo}/resolve/{revision}/{name}"] = Page(
                    body, etag=f'"{etag}"', headers=headers, **page
                )
        listing = {"id": repo, "sha": commit, "siblings": siblings, "private": False, "tags": []}
        for path in (f"/api/models/{repo}", f"/api/models/{repo}/revision/{commit}"):
            self.pages[path] = Page(json.dumps(listing).encode(), "application/json")


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            server.requests.append(Request(self.command, path, self.headers))
            page = server.pages.get(path, Page(b"no such page", status=404))
            probe = self.headers["Range"] == "bytes=0-0"
            if page.hang is not None and page.stall_after is None:
                page.hang.wait()
            if page.authorization not in (None, self.headers["Authorization"]):
                page = Page(status=401, headers={"WWW-Authenticate": 'Basic realm="index"'})
            elif page.failures and not probe:
                page = Page(status=page.failures.pop(0))
            if page.raw is not None:
                self._send_raw(page.raw())
                return
            start, end = self._range(page)
            self.send_response(206 if (start, end) != (0, len(page.body)) else page.status)
            headers: dict[str, str | None] = {
                "Content-Type": page.kind,
                "Content-Length": str(end - start),
                "ETag": page.etag,
            }
            if (start, end) != (0, len(page.body)):
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(page.body)}"
            for name, value in {**headers, **page.headers}.items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            if body:
                self._send(page, page.body[start:end], probe)

        def _send_raw(self, pieces: Iterable[bytes]) -> None:
            self.close_connection = True
            with suppress(OSError):  # the client has had enough
                for piece in pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()

        def _range(self, page: Page) -> tuple[int, int]:
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
            same = self.headers["If-Range"] in (None, page.etag)
            if asked is None or not page.ranges or not same or page.status != 200:
                return 0, len(page.body)
            end = int(asked[2]) + 1 if asked[2] else len(page.body)
            return int(asked[1]), min(end, len(page.body))

        def _send(self, page: Page, body: bytes, probe: bool) -> None:
            try:
                if probe:
                    self.wfile.write(body)
                elif page.hang is not None and page.stall_after is not None:
                    self.wfile.write(body[: page.stall_after])
                    self.wfile.flush()
                    page.hang.wait()
                elif page.cuts:
                    self.wfile.write(body[: page.cuts.pop(0)])
                    self.close_connection = True
                else:
                    self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    return Handler


def make_wheel(
    project: str, version: str, members: Mapping[str, bytes], packing: int = zipfile.ZIP_DEFLATED
) -> tuple[str, bytes]:
    """Return file name and bytes of a wheel that pip accepts."""
    name = project.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
    about = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for member, body in members.items():
            archive.writestr(member, body)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", about)
        archive.writestr(f"{info}/RECORD", "")
    return f"{name}-{version}-py3-none-any.whl", buffer.getvalue()
