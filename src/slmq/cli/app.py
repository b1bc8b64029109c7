"""The commands and their names."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from typing import Annotated

import typer

from slmq.cli.batch import batch
from slmq.cli.chat import chat
from slmq.cli.convert import convert
from slmq.cli.doctor import doctor
from slmq.cli.encode import classify, embed, rerank, train_head
from slmq.cli.errors import Commands
from slmq.cli.label import label
from slmq.cli.measure import bench
from slmq.cli.models import list_models, pull, remove, show
from slmq.cli.output import write
from slmq.cli.profile import profile
from slmq.cli.quality import compare, evaluate, perplexity
from slmq.cli.quantize import dequantize, merge, quantize
from slmq.cli.route import report, route, train
from slmq.cli.run import run
from slmq.cli.search import ask, index
from slmq.cli.serve import serve
from slmq.cli.train import train_adapter
from slmq.cli.verify import verify

__all__ = ["app"]

COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "chat": chat,
    "batch": batch,
    "label": label,
    "embed": embed,
    "rerank": rerank,
    "classify": classify,
    "classify train": train_head,
    "index": index,
    "ask": ask,
    "serve": serve,
    "route": route,
    "route train": train,
    "route report": report,
    "verify": verify,
    "pull": pull,
    "list": list_models,
    "show": show,
    "rm": remove,
    "convert": convert,
    "train": train_adapter,
    "quantize": quantize,
    "dequantize": dequantize,
    "merge": merge,
    "perplexity": perplexity,
    "compare": compare,
    "eval": evaluate,
    "bench": bench,
    "profile": profile,
    "doctor": doctor,
}
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run small language models on an ordinary CPU.",
)


def show_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        from importlib.metadata import version

        write(f"slmq {version('slmq')}\n")
        raise typer.Exit


@app.callback()
def common(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Run small language models on an ordinary CPU."""
    level = os.environ.get("SLMQ_LOG_LEVEL", "").upper()
    if level:
        if level not in LOG_LEVELS:
            raise ValueError(
                f"SLMQ_LOG_LEVEL: expected one of {', '.join(LOG_LEVELS)}, got {level!r}"
            )
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("slmq").setLevel(level)


def unwrapped(function: Callable[..., None]) -> str:
    """The docstring of a command with one line for each paragraph: terminals wrap it anew."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


for name, function in COMMANDS.items():
    app.command(name, help=unwrapped(function))(function)
