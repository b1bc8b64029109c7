"""`slmq convert`: a model as a folder of packed weights."""

from __future__ import annotations

from pathlib import Path

from slmq.cli import options as o
from slmq.cli.folder import Force, Source, Target, make_folder

__all__ = ["convert"]


def convert(
    src: Source,
    dst: Target,
    *,
    quant: o.Quant = None,
    force: Force = False,
    threads: o.Threads = None,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Write a model as a folder of packed weights and print its path.

    The folder gives the same answers as the source, bit for bit, and loads in a fraction of the
    time.
    """
    from slmq.conversion.convert import convert as write_folder

    make_folder(
        src,
        "converting",
        lambda source, progress: write_folder(
            source, Path(dst), quant=quant, force=force, n_threads=threads, progress=progress
        ),
        revision=revision,
        offline=offline,
        as_json=as_json,
    )
