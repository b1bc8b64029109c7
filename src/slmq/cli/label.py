"""`slmq label`: a label for each row of a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slmq.cli import options as o
from slmq.cli.batch import WITHOUT_EFFECT, shown_by
from slmq.cli.loading import load_model
from slmq.cli.output import Bar, note, print_json, print_table, write
from slmq.engine.options import LoadOptions

if TYPE_CHECKING:
    from slmq.batch.label_file import Labelled

__all__ = ["label"]


@o.LOADING
def label(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="Texts: .csv, .tsv, or lines of JSON.")
    ],
    *,
    model: Annotated[
        str,
        typer.Option(
            help="Catalogue name, hub id, folder or .gguf file.",
            show_default=False,
            autocompletion=o.complete_model,
        ),
    ],
    column: Annotated[str, typer.Option(help="Column with the texts.", show_default=False)],
    labels: Annotated[
        str, typer.Option(help="The labels, with commas between them.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="File to write to: .csv, .tsv, or lines of JSON.",
            show_default=False,
        ),
    ],
    instruction: Annotated[
        str | None, typer.Option(help='What is asked, such as "Is this review good or bad?".')
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=TEXT", help="A text with its label, shown first. Repeatable."),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Take out what the model prefers without a text.")
    ] = False,
    true: Annotated[
        str | None,
        typer.Option(help="Column with the right labels, or their numbers from 0: measures them."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="With --true: draw the confusion matrix (.svg, .png, .pdf).")
    ] = None,
    no_header: Annotated[
        bool, typer.Option("--no-header", help="Columns have no names; they are 1, 2, ...")
    ] = False,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Label the texts of a file, each with the probability of every label.

    Rows keep their columns and get predicted, probability and probabilities. To resume an
    interrupted run, repeat it: finished rows are kept in OUT.part.
    """
    from slmq.batch.label_file import LabelJob, label_file
    from slmq.speed.pictures import check_picture

    if plot is not None and true is None:
        raise ValueError("--plot needs --true")
    if plot is not None:
        check_picture(plot)
    named = [name.strip() for name in labels.split(",")]
    asked = {"instruction": instruction, "examples": _examples(example), "calibrate": calibrate}
    settings = {name: value for name, value in loading.items() if name not in WITHOUT_EFFECT}
    settings["revision"] = revision
    job = LabelJob(source, out, column, named, asked, true, not no_header, settings)
    job.check()  # before anything is downloaded or loaded
    loaded = load_model(model, LoadOptions(**loading), revision=revision, offline=offline)
    began_s = time.monotonic()
    try:
        with loaded as m, Bar() as bar:
            done = label_file(m, job, shown_by(bar, "labels"))
    except KeyboardInterrupt:
        note(f"{out}: interrupted; the same command goes on from the finished rows")
        raise
    _show(done, out, time.monotonic() - began_s, as_json=as_json)
    if plot is not None and done.confusion is not None:
        done.confusion.draw(plot, f"{source.name}, {model}")


def _examples(given: list[str] | None) -> list[tuple[str, str]]:
    found = []
    for one in given or ():
        name, separator, text = one.partition("=")
        if not separator:
            raise ValueError(f"--example: expected LABEL=TEXT, got {one!r:.80}")
        found.append((text, name.strip()))
    return found


def _show(done: Labelled, out: Path, seconds: float, *, as_json: bool) -> None:
    again = f", {done.resumed} of them from an earlier run" if done.resumed else ""
    speed = (done.rows - done.resumed) / seconds if seconds > 0 else 0.0
    note(f"{out}: {done.rows} rows{again}; {speed:.1f} rows/s")
    if as_json:
        summary: dict[str, Any] = {"rows": done.rows, "counts": done.counts, "rows_per_s": speed}
        print_json(summary | (done.confusion.as_json() if done.confusion else {}))
        return
    print_table(["label", "rows"], [[name, str(count)] for name, count in done.counts.items()])
    if done.confusion is not None:
        head, *rows = done.confusion.table()
        write(f"\naccuracy {done.confusion.accuracy:.4f}\n")
        print_table(head, rows)
