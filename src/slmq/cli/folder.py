"""Commands that write a model as a folder: their arguments, finding SRC, reporting DST."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmq.cli.models import stored_bytes
from slmq.cli.output import Bar, Downloads, print_json, write

if TYPE_CHECKING:
    from slmq.hub import ResolvedModel

__all__ = ["Force", "Source", "Target", "find", "make_folder"]

Source = Annotated[
    str, typer.Argument(metavar="SRC", help="Catalogue name, hub id, folder or .gguf file.")
]
Target = Annotated[str, typer.Argument(metavar="DST", help="Folder to write.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite DST if slmq wrote it.")]


def find(src: str, *, revision: str | None, offline: bool) -> ResolvedModel:
    """Where a model is; downloaded first if need be."""
    import slmq.hub as hub

    with Downloads() as downloads:
        return hub.resolve(src, revision=revision, local_files_only=offline, progress=downloads)


def make_folder(
    src: str,
    doing: str,
    make: Callable[[Path, Callable[[int, int], None]], Path],
    *,
    revision: str | None,
    offline: bool,
    as_json: bool,
) -> None:
    """Write a model as a folder with a progress bar, and report its path.

    `make` takes the source and whom to tell (bytes done, bytes in all), and returns the folder.
    """
    found = find(src, revision=revision, offline=offline)
    with Bar("bytes") as bar:
        path = make(
            found.path, lambda done, total: bar.update(f"{doing} {found.name}", done, total)
        )
    if as_json:
        print_json({"name": found.name, "path": str(path), "bytes": stored_bytes(path)})
    else:
        write(f"{path}\n")
