"""`slmq convert`: a model as a folder of packed weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slmq.cli import options as o
from slmq.cli.folder import Force, Source, Target, make_folder

__all__ = ["convert"]

Rounded = Annotated[str | None, typer.Option("--quant", hidden=True)]


@o.THREADS
def convert(
    src: Source,
    dst: Target,
    *,
    force: Force = False,
    threads: o.Given,
    quant: Rounded = None,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Write a model as a folder of packed weights and print its path.

    The folder gives the same answers as the source, bit for bit, and loads in a fraction of the
    time.
    """
    from slmq.conversion.convert import convert as write_folder

    if quant is not None:
        raise ValueError(
            f"--quant: convert only packs; run `slmq quantize --format {quant}` instead"
        )

    make_folder(
        src,
        "converting",
        lambda source, progress: write_folder(
            source, Path(dst), force=force, progress=progress, **threads
        ),
        revision=revision,
        offline=offline,
        as_json=as_json,
    )
