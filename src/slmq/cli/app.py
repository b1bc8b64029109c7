"""The commands and their names."""

from __future__ import annotations

import logging
import os
from typing import Annotated

import typer

from slmq.cli.chat import chat
from slmq.cli.convert import convert
from slmq.cli.doctor import doctor
from slmq.cli.errors import Commands
from slmq.cli.measure import bench
from slmq.cli.models import list_models, pull, remove, show
from slmq.cli.output import write
from slmq.cli.profile import profile
from slmq.cli.quality import compare, evaluate, perplexity
from slmq.cli.quantize import dequantize, quantize
from slmq.cli.run import run

__all__ = ["app"]

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Small language models on an ordinary CPU.",
)


def show_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        from importlib.metadata import version

        write(f"slmq {version('slmq')}\n")
        raise typer.Exit


@app.callback()
def common(
    _version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="And leave.")
    ] = False,
) -> None:
    """Small language models on an ordinary CPU."""
    level = os.environ.get("SLMQ_LOG_LEVEL", "").upper()
    if level:
        if level not in LOG_LEVELS:
            raise ValueError(
                f"SLMQ_LOG_LEVEL: expected one of {', '.join(LOG_LEVELS)}, got {level!r}"
            )
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("slmq").setLevel(level)


app.command()(run)
app.command()(chat)
app.command()(pull)
app.command("list")(list_models)
app.command()(show)
app.command("rm")(remove)
app.command()(convert)
app.command()(quantize)
app.command()(dequantize)
app.command()(perplexity)
app.command()(compare)
app.command("eval")(evaluate)
app.command()(bench)
app.command()(profile)
app.command()(doctor)
