"""`slmq embed`, `slmq rerank` and `slmq classify`: what encoders do, for files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmq.cli import options as o
from slmq.cli.batch import shown_by
from slmq.cli.output import Bar, Downloads, note, print_json, print_table, spinner
from slmq.embedding.options import EncoderOptions

if TYPE_CHECKING:
    from slmq.embedding.encoder import Encoder

__all__ = ["classify", "embed", "rerank"]

LOADING = o.Bundle("loading", EncoderOptions, "Loading")

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
Column = Annotated[str, typer.Option(help="Column with the texts.")]
NoHeader = Annotated[
    bool, typer.Option("--no-header", help="Columns have no names; they are 1, 2, ...")
]
Truncate = Annotated[
    bool, typer.Option("--truncate", help="Cut off texts that are too long; else they stop it.")
]


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
    column: Column = "text",
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
    no_header: NoHeader = False,
    truncate: Truncate = False,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
) -> None:
    """Write the vector of every text of a file."""
    from slmq.batch.encode_file import EncodeJob, embed_file

    job = EncodeJob(source, out, column, not no_header, truncate)
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
    column: Column = "text",
    pair: Annotated[str | None, typer.Option(help="Column with a second text beside each.")] = None,
    no_header: NoHeader = False,
    truncate: Truncate = False,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Label the texts of a file with a model that was trained for it."""
    from slmq.batch.encode_file import EncodeJob, classify_file

    job = EncodeJob(source, out, column, not no_header, truncate)
    job.check()
    with _opened(model, loading, revision, offline=offline) as encoder, Bar() as bar:
        began_s = time.monotonic()
        counts = classify_file(encoder, job, shown_by(bar, "texts"), pair=pair)
    _tell(out, sum(counts.values()), time.monotonic() - began_s)
    if as_json:
        print_json({"rows": sum(counts.values()), "counts": counts})
        return
    print_table(["label", "rows"], [[name, str(count)] for name, count in counts.items()])


@LOADING
def rerank(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What is looked for.")],
    source: Source,
    *,
    model: Model,
    column: Column = "text",
    top: Annotated[int, typer.Option(help="Show so many, the best first.", min=1)] = 10,
    no_header: NoHeader = False,
    truncate: Truncate = False,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Show the texts of a file that fit a query best."""
    from slmq.batch.encode_file import texts_of

    texts = [row[column] for row in texts_of(source, column, header=not no_header)]
    with _opened(model, loading, revision, offline=offline) as encoder, spinner("ranking"):
        ranked = encoder.rerank(query, texts, top_k=top, truncate=truncate)
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


def _tell(out: Path, done: int, seconds: float) -> None:
    speed = done / seconds if seconds > 0 else 0.0
    note(f"{out}: {done} texts; {speed:.1f} texts/s")
