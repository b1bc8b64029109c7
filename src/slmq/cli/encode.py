"""`slmq embed`, `slmq rerank`, `slmq classify` and its `train`: what encoders do, for files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmq.cli import options as o
from slmq.cli.batch import shown_by
from slmq.cli.output import Bar, Downloads, note, print_json, print_table, spinner
from slmq.embedding.options import EncoderOptions
from slmq.embedding.text_options import TextOptions

if TYPE_CHECKING:
    from slmq.batch.encode_file import Encoded
    from slmq.embedding.encoder import Encoder

__all__ = ["classify", "embed", "rerank", "train_head"]

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
    model: Annotated[
        str | None,
        typer.Option(
            help="Catalogue name, hub id or folder of an encoder. Default: that of --head.",
            autocompletion=o.complete_model,
        ),
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A head that `slmq classify train` has written."),
    ] = None,
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
    """Label the texts of a file with a model that was trained for it, or with a head.

    `slmq classify train` makes a head. To resume an interrupted run, repeat it: finished labels are
    kept in OUT.part.
    """
    from slmq.batch.encode_file import EncodeJob, classify_file
    from slmq.embedding.head import Head

    if model is None and head is None:
        raise ValueError("expected --model, --head, or both")
    if pair is not None and head is not None:
        raise ValueError("--pair: a head reads single texts")
    job = EncodeJob(source, out, TextOptions(**reading), labels=True)
    job.check()
    named = Head.encoder_name(head) if model is None and head is not None else model
    assert named is not None
    with _opened(named, loading, revision, offline=offline) as encoder, Bar() as bar:
        labeller = None if head is None else Head.open(head, encoder)
        began_s = time.monotonic()
        done = classify_file(encoder, job, shown_by(bar, "texts"), pair=pair, head=labeller)
    _tell(out, done, time.monotonic() - began_s)
    if as_json:
        print_json({"rows": done.rows, "counts": done.counts})
        return
    print_table(["label", "rows"], [[name, str(count)] for name, count in done.counts.items()])


@TEXTS
@LOADING
def train_head(
    source: Source,
    *,
    model: Annotated[
        str,
        typer.Option(
            help="Catalogue name, hub id or folder of an encoder.",
            autocompletion=o.complete_model,
        ),
    ] = "all-minilm-l6-v2",
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="File to write the head to.", show_default=False),
    ],
    label: Annotated[str, typer.Option(help="Column with the labels.")] = "label",
    reading: o.Given,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Train a head on texts with labels, in seconds; `slmq classify --head` uses it.

    A logistic regression on the vectors of an encoder, calibrated. What is told of its quality is
    from cross-validation: of texts that it was not trained on.
    """
    from slmq.batch.encode_file import examples_of
    from slmq.embedding.head import Head

    options = TextOptions(**reading)
    texts, labels = examples_of(source, options, label)
    with _opened(model, loading, revision, offline=offline) as encoder:
        began_s = time.monotonic()
        with spinner(f"training on {len(texts)} texts"):
            head = Head.fit(encoder, texts, labels, truncate=options.truncate)
        # A folder is found from elsewhere, too.
        head.save(out, encoder=str(Path(model).resolve()) if Path(model).exists() else model)
        took_s = time.monotonic() - began_s
    told = head.trained
    if as_json:
        print_json({**vars(told), "seconds": took_s})
        return
    note(
        f"{out}: {told.rows} texts, {len(told.counts)} labels, {took_s:.1f} s; cross-validated: "
        f"{told.accuracy:.1%} right, log loss {told.log_loss:.3f}, calibration error "
        f"{told.calibration_error:.3f}"
    )


@TEXTS
@LOADING
def rerank(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What is looked for.")],
    source: Source,
    *,
    model: Model,
    top: Annotated[int, typer.Option(help="Show so many, the best first.", min=1)] = 10,
    instruction: Annotated[
        str | None,
        typer.Option(help="What makes a text fit, for models whose prompt says it."),
    ] = None,
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
        ranked = encoder.rerank(
            query, texts, instruction=instruction, top_k=top, truncate=options.truncate
        )
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
