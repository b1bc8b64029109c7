"""`slmq batch`: a file of requests, a file of answers."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmq.cli import options as o
from slmq.cli.loading import load_model
from slmq.cli.output import Bar, note
from slmq.engine.options import LoadOptions
from slmq.generation.params import SamplingParams

if TYPE_CHECKING:
    from slmq.generation.bars import Report

__all__ = ["batch", "shown_by"]

# Log-probabilities are asked for line by line, in the words of the format.
SAMPLING = o.Bundle("sampling", SamplingParams, "Sampling", without=("logprobs",))
WITHOUT_EFFECT = ("n_threads", "memory", *o.SERVING_ONLY)  # on answers
TELL_S = 30.0  # between two lines of progress where no bar can be shown


@SAMPLING
@o.LOADING
def batch(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Requests: lines of JSON, or CSV with --column.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write the answers to.")],
    *,
    model: Annotated[
        str,
        typer.Option(
            help="Catalogue name, hub id, folder or .gguf file.",
            show_default=False,
            autocompletion=o.complete_model,
        ),
    ],
    column: Annotated[
        str | None, typer.Option(help="Read CSV; this column holds the prompts.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message of plain prompts.")] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Complete plain prompts verbatim, without the chat template."),
    ] = False,
    sampling: o.Given,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
) -> None:
    """Answer a file of requests: OpenAI's batch format, {"prompt": ...} lines, or CSV.

    Sampling options apply to requests that do not set them. To resume an interrupted run, repeat
    it: finished answers are kept in OUT.part. OUT appears only when it is complete, in the order of
    IN.
    """
    from slmq.batch import Job, run_batch

    job = Job(source, target, column, system, raw)
    job.check()  # before anything is downloaded or loaded
    options = LoadOptions(**loading)
    loaded = load_model(model, options, revision=revision, offline=offline, sampling=sampling)
    settings = {name: value for name, value in loading.items() if name not in WITHOUT_EFFECT}
    settings["revision"] = revision
    if "adapter" in sampling:
        settings["adapter"] = loaded.adapters[sampling["adapter"]]
    job = replace(job, defaults={**loaded.suggested, **sampling}, settings=settings)
    try:
        with loaded as m, Bar() as bar:
            done = run_batch(m, job, shown_by(bar, "answers"))
    except KeyboardInterrupt:
        note(f"{target}: interrupted; the same command goes on from the finished answers")
        raise
    again = f", {done.resumed} of them from an earlier run" if done.resumed else ""
    failed = f"; {done.failed} of them failed" if done.failed else ""
    note(f"{target}: {done.lines} lines{again}{failed}")


def shown_by(bar: Bar, what: str) -> Report:
    """Moves a bar; where stderr is no terminal, writes a line now and then."""
    if sys.stderr.isatty():
        return lambda done, total: bar.update(what, done, total)
    began_s = told_s = time.monotonic()
    first: int | None = None

    def tell(done: int, total: int | None) -> None:
        nonlocal told_s, first
        now_s = time.monotonic()
        if first is None:
            first = done
        if now_s - told_s < TELL_S or done == first or total is None:
            return
        told_s = now_s
        left_s = (now_s - began_s) / (done - first) * (total - done)
        note(f"{done} of {total} {what}; about {left_s / 60:.0f} min left")

    return tell
