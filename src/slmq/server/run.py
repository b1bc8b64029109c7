"""Starts a server: the first model loaded and tried, the address open, then requests."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from slmq.errors import WriteError
from slmq.machine.disk import readable_bytes
from slmq.server.app import build_app
from slmq.server.files import Files
from slmq.server.requestlog import RequestLog
from slmq.server.routing import AUTO, Routing
from slmq.server.service import POOL, Service
from slmq.server.shelf import Shelf
from slmq.server.wire import wire_for

if TYPE_CHECKING:
    from slmq.embedding.routing.router import Router
    from slmq.generation.model import Model
    from slmq.server.limits import Limits
    from slmq.server.shelf import Book, EncoderBook

__all__ = ["open_socket", "serve_models"]

TRIAL_TOKENS = 17
BACKLOG = 256
SWITCH_S = 0.0005


def open_socket(host: str, port: int, path: Path | None = None) -> tuple[socket.socket, str]:
    """An address for clients to come to, and how it is written.

    Parameters
    ----------
    host : str
    port : int
        0 takes a free one.
    path : Path, optional
        Of a Unix socket, instead.

    Raises
    ------
    WriteError
        If it is taken.
    """
    where = str(path) if path is not None else f"{host}:{port}"
    try:
        if path is not None:
            return _unix_socket(path), f"unix:{path}"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, port))
        except BaseException:
            found.close()
            raise
    except OSError as error:
        raise WriteError(f"{where}: cannot be opened: {error.strerror or error}") from None
    shown = f"[{host}]" if ":" in host else host
    return found, f"http://{shown}:{found.getsockname()[1]}"


def serve_models(
    books: Sequence[Book],
    address: tuple[socket.socket, str],
    limits: Limits,
    *,
    budget_bytes: int | None = None,
    log_path: Path | None = None,
    aliases: Mapping[str, str] | None = None,
    encoders: Sequence[EncoderBook] = (),
    router: Router | None = None,
    tell: Callable[[str], None],
) -> None:
    """Serve models until a signal comes.

    Parameters
    ----------
    books : sequence of Book
        The first is loaded and tried before anybody is let in.
    address : tuple of socket and str
        As `open_socket` gives it.
    limits : Limits
    budget_bytes : int, optional
        Memory that loaded models may take together.
    log_path : Path, optional
        File that gets a line for each request.
    aliases : mapping of str to str
        Further names of models.
    encoders : sequence of EncoderBook
        What answers requests for vectors and rankings.
    router : Router, optional
        What chooses for requests for the model "auto"; closed at the end.
    tell : callable
        Called with the line that says what is served, and where.
    """
    found, shown = address
    log = RequestLog(log_path)
    # How long a thread that computes keeps the others waiting, each time that they need the GIL.
    sys.setswitchinterval(SWITCH_S)
    with closing(found), closing(log), ThreadPoolExecutor(POOL, "slmq-server") as pool:
        try:
            shelf = Shelf(
                books, budget_bytes=budget_bytes, pool=pool, aliases=aliases, encoders=encoders
            )
            service = Service(shelf, limits, pool, log)
            asyncio.run(_serve(service, found, shown, router, tell))
        finally:
            if found.family == getattr(socket, "AF_UNIX", None):
                with suppress(OSError):
                    Path(shown.removeprefix("unix:")).unlink()


async def _serve(
    service: Service,
    found: socket.socket,
    shown: str,
    router: Router | None,
    tell: Callable[[str], None],
) -> None:
    shelf, limits = service.shelf, service.limits
    if router is not None:
        service.routing = Routing(service, router)

    def drain() -> None:
        service.draining = True

    folder = TemporaryDirectory(prefix="slmq-", ignore_cleanup_errors=True)
    files = Files(service, Path(folder.name))
    app = build_app(service, files)
    wire = wire_for(app, limits, service.health, on_drain=drain, on_end=service.end_answers)
    # From here on, so that no signal falls between the line that says it serves and serving.
    with folder, wire.capture_signals():
        try:
            line = f"{AUTO}: {router!r}; serving at {shown}"
            if shelf.books:
                async with shelf.use(None) as book:
                    assert book.loaded is not None
                    speed = await service.run(_tried, book.loaded.model)
                    line = start_line(book, speed, shown)
                    for adapter in [other for other in shelf.books if other.base is book]:
                        async with shelf.used(adapter):  # one that does not fit is told now
                            pass
            # What is here stays: collections look at what requests leave behind, and are short.
            gc.collect()
            gc.freeze()
            if wire.should_exit:
                return
            found.listen(BACKLOG)
            tell(line)
            await wire.serve([found])
        finally:
            if service.routing is not None:
                service.routing.close()
            shelf.close()
            files.close()


def start_line(book: Book, speed: float, shown: str) -> str:
    """What is served, how, and where."""
    assert book.loaded is not None
    engine = book.loaded.model.engine
    info = engine.info
    main = max(info.formats, key=info.formats.__getitem__, default="")
    cache = readable_bytes(engine.plan.cache.limit * engine.page_bytes)
    return (
        f"{book.name}: {info.architecture}, {main}, {info.threads} threads ({info.isa}), context "
        f"{engine.n_ctx}, up to {cache} of keys and values ({engine.plan.cache_type}), "
        f"{speed:.0f} tokens/s for one; serving at {shown}"
    )


def _tried(model: Model) -> float:
    """Tokens per second of a short answer: what was loaded does work."""
    prompt = [model.tokenizer.bos_id or 0]
    return model.generate(prompt, max_tokens=TRIAL_TOKENS, ignore_eos=True).generation_tps


def _unix_socket(path: Path) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise OSError("this system has no Unix sockets")
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and _is_dead(path):
            path.unlink()
        found.bind(str(path))
        path.chmod(0o600)
    except BaseException:
        found.close()
        raise
    return found


def _is_dead(path: Path) -> bool:
    """Whether a Unix socket was left behind by a server that is gone."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as trial:
        try:
            trial.connect(str(path))
        except ConnectionRefusedError:
            return True
        return False
