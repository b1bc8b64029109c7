"""`slmq embed`, `slmq rerank` and `slmq classify`: what encoders do, for files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmq.batch.text_options import TextOptions
from slmq.cli import options as o
from slmq.cli.batch import shown_by
from slmq.cli.output import Bar, Downloads, note, print_json, print_table, spinner
from slmq.embedding.options import EncoderOptions

if TYPE_CHECKING:
    from slmq.batch.encode_file import Encoded
    from slmq.embedding.encoder import Encoder

__all__ = ["classify", "embed", "rerank"]

LOADING = o.Bundle("loading", EncoderOptions, "Loading")
TEXTS = o.Bundle("reading", TextOptions, "Texts")

Source = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="Texts: .csv, .tsv, .txt, or lines of JSON."),
]
Model = Annotated[
    str,
    typer.Option(
        help="Catalogue name, hub id or folder of an encoder.",
        show_default=False,
        autocompletion=o.complete_model,
    ),
]


@TEXTS
@LOADING
def embed(
    source: Source,
    *,
    model: Model,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="File to write to: .npy (an array), .csv, .tsv, or lines of JSON.",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        str | None, typer.Option(help='Name of one of the model\'s prompts, such as "query".')
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(help="Give all vectors length 1, or none. Default: as the model says."),
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(help="Keep so many numbers of each vector.")
    ] = None,
    reading: o.Given,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
) -> None:
    """Write the vector of every text of a file.

    To resume an interrupted run, repeat it: finished vectors are kept in OUT.part.
    """
    from slmq.batch.encode_file import EncodeJob, embed_file

    job = EncodeJob(source, out, TextOptions(**reading))
    job.check()
    with _opened(model, loading, revision, offline=offline) as encoder, Bar() as bar:
        began_s = time.monotonic()
        done = embed_file(
            encoder,
            job,
            shown_by(bar, "texts"),
            prompt=prompt,
            normalize=normalize,
            dimensions=dimensions,
        )
    _tell(out, done, time.monotonic() - began_s)


@TEXTS
@LOADING
def classify(
    source: Source,
    *,
    model: Model,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="File to write to: .csv, .tsv, or lines of JSON.",
            show_default=False,
        ),
    ],
    pair: Annotated[str | None, typer.Option(help="Column with a second text beside each.")] = None,
    reading: o.Given,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Label the texts of a file with a model that was trained for it.

    To resume an interrupted run, repeat it: finished labels are kept in OUT.part.
    """
    from slmq.batch.encode_file import EncodeJob, classify_file

    job = EncodeJob(source, out, TextOptions(**reading))
    job.check()
    with _opened(model, loading, revision, offline=offline) as encoder, Bar() as bar:
        began_s = time.monotonic()
        done = classify_file(encoder, job, shown_by(bar, "texts"), pair=pair)
    _tell(out, done, time.monotonic() - began_s)
    if as_json:
        print_json({"rows": done.rows, "counts": done.counts})
        return
    print_table(["label", "rows"], [[name, str(count)] for name, count in done.counts.items()])


@TEXTS
@LOADING
def rerank(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What is looked for.")],
    source: Source,
    *,
    model: Model,
    top: Annotated[int, typer.Option(help="Show so many, the best first.", min=1)] = 10,
    reading: o.Given,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Show the texts of a file that fit a query best."""
    from slmq.batch.encode_file import texts_of

    options = TextOptions(**reading)
    texts = [row[options.column] for row in texts_of(source, options)]
    with _opened(model, loading, revision, offline=offline) as encoder, spinner("ranking"):
        ranked = encoder.rerank(query, texts, top_k=top, truncate=options.truncate)
    if as_json:
        found = [{"index": r.index, "score": r.score, "text": r.text} for r in ranked]
        print_json({"results": found})
        return
    rows = [[f"{r.score:.4f}", str(r.index + 1), r.text] for r in ranked]
    print_table(["score", "row", "text"], rows)


def _opened(model: str, loading: o.Given, revision: str | None, *, offline: bool) -> Encoder:
    """Find an encoder, download it with a bar if need be, and load it."""
    import slmq.hub as hub

    with Downloads() as progress:
        found = hub.resolve(model, revision=revision, local_files_only=offline, progress=progress)
    with spinner(f"loading {found.name}"):
        from slmq.embedding.loading import open_encoder

        return open_encoder(found.path, EncoderOptions(**loading), name=found.name)


def _tell(out: Path, done: Encoded, seconds: float) -> None:
    again = f", {done.resumed} of them from an earlier run" if done.resumed else ""
    speed = (done.rows - done.resumed) / seconds if seconds > 0 else 0.0
    note(f"{out}: {done.rows} texts{again}; {speed:.1f} texts/s")
