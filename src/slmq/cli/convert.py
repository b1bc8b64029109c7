"""`slmq convert`: a model as a folder of packed weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slmq.cli import options as o
from slmq.cli.models import stored_bytes
from slmq.cli.output import Bar, Downloads, print_json, write

__all__ = ["convert"]


def convert(
    src: Annotated[
        str, typer.Argument(metavar="SRC", help="Catalogue name, hub id, folder or .gguf file.")
    ],
    dst: Annotated[str, typer.Argument(metavar="DST", help="The folder to make.")],
    *,
    quant: o.Quant = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a folder that an earlier convert wrote.")
    ] = False,
    threads: o.Threads = None,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Write a model as a folder of packed weights, and print where it lies.

    The folder answers as the source does, bit for bit, and loads in a fraction of the time.
    """
    from slmq import hub
    from slmq.conversion import convert as write_folder

    with Downloads() as progress:
        found = hub.resolve(src, revision=revision, local_files_only=offline, progress=progress)
    with Bar("bytes") as bar:
        path = write_folder(
            found.path,
            Path(dst),
            quant=quant,
            force=force,
            n_threads=threads,
            progress=lambda done, total: bar.update(f"converting {found.name}", done, total),
        )
    if as_json:
        print_json({"name": found.name, "path": str(path), "bytes": stored_bytes(path)})
    else:
        write(f"{path}\n")
