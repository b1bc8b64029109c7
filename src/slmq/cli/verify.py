"""`slmq verify`: whether an answer is what a model says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from slmq.cli import options as o
from slmq.cli.loading import load_model
from slmq.cli.output import note, write
from slmq.engine.options import LoadOptions

__all__ = ["verify"]


def verify(
    receipt: Annotated[
        Path, typer.Argument(metavar="RECEIPT", help="File with a receipt; - reads standard input.")
    ],
    *,
    model: Annotated[
        str | None,
        typer.Option(
            help="Catalogue name, hub id, folder or .gguf file. Default: the name in the receipt.",
            autocompletion=o.complete_model,
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="The adapter that the answer was made with, if there was one."
        ),
    ] = None,
    revision: o.Revision = None,
    offline: o.Offline = False,
) -> None:
    """Ask a model again what a receipt says, and compare the bytes.

    `slmq serve` gives a receipt for each answer at /v1/receipts/ID, where ID is the answer's header
    x-request-id. Exit code 1 if anything differs.
    """
    from slmq.batch.lines import read_json
    from slmq.batch.receipts import LOADING, check_receipt
    from slmq.errors import DataError

    data = sys.stdin.buffer.read() if str(receipt) == "-" else receipt.read_bytes()
    try:
        found: Any = read_json(data)
    except ValueError as error:
        raise DataError(f"{receipt}: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{receipt}: expected an object, got {type(found).__name__}")
    told = found.get("loading") or {}
    options = LoadOptions(**{name: told[name] for name in LOADING if told.get(name) is not None})
    name = model if model is not None else str(found.get("model"))
    with load_model(name, options, revision=revision, offline=offline) as loaded:
        if adapter is not None:
            loaded.load_adapter(adapter)
        checked = check_receipt(loaded, found)
    if not checked.same:
        note(checked.text)
        raise typer.Exit(1)
    write(f"{checked.text}\n")
