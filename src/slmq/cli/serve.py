"""`slmq serve`: models behind HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmq.cli import options as o
from slmq.cli.output import Downloads, note
from slmq.embedding.options import EncoderOptions
from slmq.engine.options import LoadOptions
from slmq.generation.params import SamplingParams
from slmq.machine.memory import available_memory_bytes
from slmq.settings import byte_count

if TYPE_CHECKING:
    from slmq.embedding.routing.config import RouterConfig
    from slmq.hub import ResolvedModel
    from slmq.server.shelf import Book

__all__ = ["serve"]

SAMPLING = o.Bundle("sampling", SamplingParams, "Sampling", without=("logprobs", "adapter"))
PANEL = "Server"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
SIZE = byte_count("a number of bytes, such as 500MB or 2GiB")
WEIGHTS = (".safetensors", ".bin", ".slmq", ".gguf")


@SAMPLING
@o.LOADING
def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Catalogue name, hub id, folder or .gguf file. The first one is the default. "
            "With --router there may be none.",
            autocompletion=o.complete_model,
        ),
    ] = (),  # type: ignore[assignment]
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen at.", rich_help_panel=PANEL)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port; 0 takes a free one.", rich_help_panel=PANEL)
    ] = 8080,
    unix_socket: Annotated[
        Path | None, typer.Option(help="Listen at a Unix socket instead.", rich_help_panel=PANEL)
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Key that clients must send. Repeatable. Default: SLMQ_API_KEY.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name by which clients may call the server. Repeatable.", rich_help_panel=PANEL
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin of a web page that may use the server. Repeatable.", rich_help_panel=PANEL
        ),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Encoder for /v1/embeddings and /v1/rerank. Repeatable.",
            rich_help_panel=PANEL,
            autocompletion=o.complete_model,
        ),
    ] = None,
    router: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='A router.toml; its models answer requests for the model "auto".',
            rich_help_panel=PANEL,
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a model, in the order of MODEL. Repeatable.", rich_help_panel=PANEL
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ALIAS[=NAME]",
            help="Further name of a model, the first one unless NAME says which. Repeatable.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[@MODEL]=PATH",
            help="Low-rank adapter of the first model, or of MODEL, served under a name of its "
            "own: a folder of PEFT or mlx-lm, or a GGUF file. Repeatable.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    adapter_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder whose adapters clients may load and unload (/v1/load_lora_adapter).",
            rich_help_panel=PANEL,
        ),
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of all loaded models, such as 6GiB. Default: what is free at the start.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    max_queue: Annotated[
        int, typer.Option(help="Requests that may wait.", min=0, rich_help_panel=PANEL)
    ] = 1024,
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds that an answer may take.", rich_help_panel=PANEL),
    ] = None,
    drain: Annotated[
        float,
        typer.Option(help="Seconds for running answers after SIGTERM.", rich_help_panel=PANEL),
    ] = 30.0,
    log_requests: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Append a line of JSON for each request: what it cost, not what was said.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    max_body: Annotated[
        str, typer.Option(metavar="SIZE", help="Longest request.", rich_help_panel=PANEL)
    ] = "4MB",
    sampling: o.Given,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
) -> None:
    """Serve models to programs that speak the APIs of OpenAI, Anthropic or ollama.

    Without --api-key, everybody who can reach the address may use it; by default, that is this
    machine. Sampling options apply to requests that do not set them. SIGTERM or Ctrl-C lets running
    answers end; a second one does not.
    """
    if not models and router is None:
        raise ValueError("expected a MODEL, or --router")
    options = LoadOptions(**loading)
    if adapter_dir is not None and not adapter_dir.is_dir():
        raise ValueError(f"--adapter-dir: there is no folder {str(adapter_dir)!r:.200}")
    keys = api_key or [key for key in [os.environ.get("SLMQ_API_KEY")] if key]
    budget = available_memory_bytes()
    if memory_budget is not None:
        budget = SIZE("--memory-budget", memory_budget)
    body = SIZE("--max-body", max_body)
    from slmq.embedding.loading import open_encoder

    with needs_extra():
        from slmq.batch.receipts import LOADING
        from slmq.server.adapters import adapter_book
        from slmq.server.limits import Limits
        from slmq.server.run import open_socket, serve_models
        from slmq.server.shelf import Book, EncoderBook, Loaded, LoadedEncoder
    limits = Limits(
        keys=tuple(keys),
        hosts=tuple(allow_host or ()),
        origins=tuple(allow_origin or ()),
        body_bytes=body,
        answer_s=timeout,
        drain_s=drain,
        adapters=adapter_dir,
    )

    def load(found: ResolvedModel, called: str) -> Loaded:
        from slmq.generation.loading import open_model

        renamed = replace(found, name=called)
        model = open_model(renamed, options, draft, most_waiting=max_queue)
        asked = {**model.suggested, **sampling}
        told = {name: getattr(options, name) for name in LOADING} | {"n_ctx": model.n_ctx}
        return Loaded(model, asked, told)

    draft = None
    if options.draft is not None:
        ((_, draft),) = found_models([os.fspath(options.draft)], [], revision=None, offline=offline)
    listed = found_models(models, name or [], revision=revision, offline=offline)
    opened = None
    if router is not None:
        from slmq.embedding.routing.router import Router

        opened = Router.open(router)
        listed += routed_models(opened.config, [called for called, _ in listed], offline=offline)
    books = [
        Book(called, partial(load, found, called), found.path, bytes_of(found.path))
        for called, found in listed
    ]
    books += [
        adapter_book(called, path, base) for called, path, base in adapters_of(adapter or [], books)
    ]
    aliases = aliases_of(alias or [], [book.name for book in books])
    read = EncoderOptions(
        n_threads=options.n_threads,
        activations="exact" if options.activations == "exact" else None,
    )

    def load_encoder(found: ResolvedModel, called: str) -> LoadedEncoder:
        return LoadedEncoder(open_encoder(found.path, read, name=called))

    encoders = [
        EncoderBook(called, partial(load_encoder, found, called), found.path, bytes_of(found.path))
        for called, found in found_models(encoder or [], [], revision=None, offline=offline)
    ]
    address = open_socket(host, port, unix_socket)
    if unix_socket is None and host not in LOOPBACK and not keys:
        note(f"everybody who can reach {host} may use this server; --api-key asks for a key")
    serve_models(
        books,
        address,
        limits,
        budget_bytes=budget,
        log_path=log_requests,
        aliases=aliases,
        encoders=encoders,
        router=opened,
        tell=note,
    )


def found_models(
    models: Sequence[str], names: Sequence[str], *, revision: str | None, offline: bool
) -> list[tuple[str, ResolvedModel]]:
    """The models on this disk, each with the name that requests have for it.

    Raises
    ------
    ValueError
        If two have the same name, or there are more names than models.
    """
    import slmq.hub as hub

    if len(names) > len(models):
        raise ValueError(f"--name: expected at most {len(models)}, one for each model")
    books: list[tuple[str, ResolvedModel]] = []
    for model, name in zip_longest(models, names):
        with Downloads() as progress:
            found = hub.resolve(
                model, revision=revision, local_files_only=offline, progress=progress
            )
        called = found.name if name is None else name
        if called in [other for other, _ in books]:
            raise ValueError(f"--name: two models are called {called!r}; give each its own")
        books.append((called, found))
    return books


def routed_models(
    config: RouterConfig, served: Sequence[str], *, offline: bool
) -> list[tuple[str, ResolvedModel]]:
    """The models of ours that a router names and that are not served anyway."""
    ours = [m for m in config.models if m.target is not None and m.name not in served]
    return found_models(
        [m.target or "" for m in ours], [m.name for m in ours], revision=None, offline=offline
    )


def adapters_of(given: Sequence[str], books: Sequence[Book]) -> list[tuple[str, Path, Book]]:
    """Names, paths and models of adapters.

    Raises
    ------
    ValueError
        If a name is taken, or there is no such model or path.
    """
    found: list[tuple[str, Path, Book]] = []
    by_name = {book.name: book for book in books}
    for text in given:
        called, _, path = text.partition("=")
        name, _, model = called.partition("@")
        if not name or not path:
            raise ValueError(f"--adapter: expected NAME=PATH or NAME@MODEL=PATH, got {text!r:.200}")
        if name in [*by_name, *(other for other, _, _ in found)]:
            raise ValueError(f"--adapter: expected a name that is free, got {name!r:.80}")
        base = by_name.get(model) if model else next(iter(books), None)
        if base is None:
            names = ", ".join(by_name) or "none"
            raise ValueError(f"--adapter: expected one of the models ({names}), got {model!r:.80}")
        if not Path(path).exists():
            raise ValueError(f"--adapter: there is no {path!r:.200}")
        found.append((name, Path(path), base))
    return found


def aliases_of(given: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Names of models by their aliases.

    Raises
    ------
    ValueError
        If an alias is of no model, or is a name already.
    """
    found: dict[str, str] = {}
    for text in given:
        alias, _, name = text.partition("=")
        name = name or names[0]
        if name not in names:
            raise ValueError(f"--alias: expected one of {', '.join(names)}, got {name!r:.80}")
        if not alias or alias in names or alias in found:
            raise ValueError(f"--alias: expected a name that is free, got {alias!r:.80}")
        found[alias] = name
    return found


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of the weights in a folder."""
    files = [path] if path.is_file() else [p for p in path.iterdir() if p.suffix in WEIGHTS]
    return sum(file.stat().st_size for file in files)


@contextmanager
def needs_extra() -> Iterator[None]:
    """Says how to install what the server needs, if that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "h11"):
            raise
        raise ImportError(f"slmq serve needs {error.name}: pip install 'slmq[server]'") from None
