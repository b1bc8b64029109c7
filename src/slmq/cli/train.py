"""`slmq train`: an adapter, or a whole model, trained here."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmq.cli import options as o
from slmq.cli.output import Downloads, note, print_json, spinner
from slmq.cli.train_config import TrainConfig, read_config
from slmq.engine.training.options import TrainOptions, Types
from slmq.machine.disk import readable_bytes
from slmq.settings import WeightFormat

if TYPE_CHECKING:
    from slmq.engine.training.data import Samples
    from slmq.engine.training.events import Event, Forecast, Report

__all__ = ["train_adapter"]

TRAINING = o.Bundle("training", TrainOptions, "Training", without=("type",))
PAGE, ADAPTERS = "training.html", "adapters"
NOTHING = TrainConfig(None, None, None, {})
CURVE = 24  # reports whose losses are drawn on the line


@TRAINING
def train_adapter(
    model: o.MaybeModel = None,
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with train.jsonl, and valid.jsonl and test.jsonl if there are such.",
            show_default=False,
        ),
    ] = None,
    adapter_path: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder to write the adapter, or the model, to.",
            show_default="adapters",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="YAML or JSON with the keys of mlx-lm; what is given here goes before.",
            show_default=False,
        ),
    ] = None,
    fine_tune_type: Annotated[
        Types | None,
        typer.Option(
            "--fine-tune-type",
            "--type",
            metavar="TYPE",
            help="What is trained: lora (an adapter) or full (all weights, of floats).",
            show_default="lora",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --adapter-path.")
    ] = False,
    format: Annotated[
        WeightFormat | None,
        typer.Option(
            metavar="FORMAT",
            help="Format of the weights that are trained on. Default: as stored.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Learn what this model expects of every next token, not what the texts have.",
            show_default=False,
        ),
    ] = None,
    training: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Train a low-rank adapter of a model, or all of its weights, on your own texts.

    Lines of JSON are chats ("messages"), "prompt" and "completion", or "text". What is written is a
    folder of PEFT: use it with --adapter. With --type full it is a model: use it as one. A run that
    was interrupted goes on with --resume, to the same bytes as one that was not.
    """
    import slmq.hub as hub

    said = NOTHING if config is None else read_config(config)
    kind = {} if fine_tune_type is None else {"type": fine_tune_type}
    options = TrainOptions(**(said.options | kind | training))
    source = model or said.model
    if source is None:
        raise typer.BadParameter("expected a model, here or in --config", param_hint="MODEL")
    texts = data or (None if said.data is None else Path(said.data))
    if texts is None:
        raise typer.BadParameter("expected a folder, here or in --config", param_hint="--data")
    target = adapter_path or Path(said.adapter_path or ADAPTERS)
    with Downloads() as progress:
        found = hub.resolve(source, revision=revision, local_files_only=offline, progress=progress)
        if teacher is not None:
            theirs = hub.resolve(teacher, local_files_only=offline, progress=progress).path
    from slmq.engine.training.files import STATE, write_text
    from slmq.engine.training.page import loss_page
    from slmq.engine.training.run import Run

    told = Told()
    with spinner(f"loading {found.name}"):
        run = Run(
            found.path,
            texts,
            target,
            options,
            name=found.name,
            format=format,
            resume=resume,
            listener=told,
            teacher=None if teacher is None else theirs,
        )
    for split in (run.train, run.valid, run.test):
        say_samples(split, options)
    try:
        done = run.finish()
    except KeyboardInterrupt:
        told.end_line()
        whole = (target / STATE).exists()
        cure = "the same command with --resume goes on" if whole else "nothing was saved yet"
        note(f"{target}: interrupted after batch {run.iteration}; {cure}")
        raise
    told.end_line()
    write_text(target / PAGE, loss_page(found.name, done))
    if as_json:
        print_json({**asdict(done), "path": str(done.path)})
        return
    note(
        f"{target}: {done.iterations} batches, {done.tokens:,} tokens, "
        f"{minutes(done.seconds)}; loss over time: {target / PAGE}"
    )


def say_samples(split: Samples | None, options: TrainOptions) -> None:
    """How many samples a file has, and how many were left out."""
    if split is not None:
        note(split.said(options.max_seq_length))


class Told:
    """Shows what a run tells: a line that changes on a terminal, lines elsewhere."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._open = False

    def __call__(self, event: Event) -> None:
        """Show an event."""
        from slmq.engine.training import events

        if isinstance(event, events.Forecast):
            self._line(forecast_line(event))
        elif isinstance(event, events.Report):
            self._losses.append(event.loss)
            self._report(event)
        elif isinstance(event, events.Evaluation):
            self._line(f"batch {event.iteration}: loss {event.loss:.4f} on {event.split}")

    def end_line(self) -> None:
        """Leave the line that changes."""
        if self._open:
            sys.stderr.write("\n")
            self._open = False

    def _line(self, text: str) -> None:
        self.end_line()
        note(text)

    def _report(self, report: Report) -> None:
        text = report_line(report)
        if not sys.stderr.isatty():
            note(text)
            return
        from slmq.engine.training.page import sparkline

        sys.stderr.write(f"\r\x1b[2K{text}  {sparkline(self._losses, CURVE)}")
        sys.stderr.flush()
        self._open = True


def forecast_line(event: Forecast) -> str:
    """What a run will take."""
    return (
        f"{event.parameters:,} parameters to train; {event.iters} batches, {event.tokens:,} "
        f"tokens: about {minutes(event.seconds)} and {readable_bytes(event.memory_bytes)}"
    )


def report_line(report: Report) -> str:
    """The latest batches in a line."""
    peak = "" if report.peak_bytes is None else f", {readable_bytes(report.peak_bytes)}"
    return (
        f"batch {report.iteration}/{report.iters}: loss {report.loss:.4f}, "
        f"{report.tokens_per_s:.0f} tokens/s{peak}, {minutes(report.seconds_left)} left"
    )


def minutes(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
