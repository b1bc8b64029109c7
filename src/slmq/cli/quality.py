"""`slmq perplexity`, `slmq compare` and `slmq eval`: how good the answers are."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmq.cli import options as o
from slmq.cli.loading import load_model
from slmq.cli.output import Bar, note, print_json, print_table, write
from slmq.engine.options import PRECISION, LoadOptions

if TYPE_CHECKING:
    from slmq.evaluation import Comparison, Metric

__all__ = ["compare", "evaluate", "perplexity"]

# What may differ between the two models of `compare`.
OF_A = o.Bundle(
    "of_a", LoadOptions, "Loading", group=PRECISION, suffix="_a", about="{flag} of A alone."
)
OF_B = o.Bundle(
    "of_b", LoadOptions, "Loading", group=PRECISION, suffix="_b", about="{flag} of B alone."
)

Text = Annotated[str, typer.Option(help="Text file (UTF-8).")]
Ctx = Annotated[int, typer.Option(help="Window size in tokens; the second half is scored.")]
Chunks = Annotated[
    int | None, typer.Option(help="Maximum number of windows. Default: the whole file.")
]


@o.MEASURING
def perplexity(
    model: o.ModelName,
    *,
    file: Text,
    ctx: Ctx = 512,
    chunks: Chunks = None,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Measure perplexity on a text, in consecutive windows whose second halves are scored."""
    import slmq.evaluation as measure

    text = measure.read_text(file)
    loaded = load_model(model, LoadOptions(**loading), revision=revision, offline=offline)
    with loaded as m, Bar() as bar:
        result = measure.perplexity(
            m,
            text,
            ctx=ctx,
            chunks=chunks,
            progress=lambda done, total, so_far: bar.update(
                f"perplexity {so_far:.2f}", done, total
            ),
        )
    note_windows(result.windows, ctx, chunks)
    if as_json:
        print_json(
            {
                "perplexity": result.perplexity,
                "standard_error": result.standard_error,
                "tokens": result.tokens,
                "windows": result.windows,
                "seconds": result.seconds,
            }
        )
    else:
        write(
            f"perplexity {result.perplexity:.4f} +- {result.standard_error:.4f} "
            f"({result.tokens:,} tokens in {result.windows} windows, {result.seconds:.1f} s)\n"
        )


@o.MEASURING
@OF_A
@OF_B
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Reference model: name, folder or file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Model to compare with it.")],
    *,
    file: Text,
    ctx: Ctx = 512,
    chunks: Chunks = None,
    loading: o.Given,
    of_a: o.Given,
    of_b: o.Given,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Measure how far B's next-token distributions are from A's on a text."""
    import slmq.evaluation as measure

    text = measure.read_text(file)
    with ExitStack() as opened:
        first, second = (
            opened.enter_context(load_model(name, options, offline=offline))
            for name, options in (
                (a, LoadOptions(**loading | of_a)),
                (b, LoadOptions(**loading | of_b)),
            )
        )
        bar = opened.enter_context(Bar())
        result = measure.compare(
            first,
            second,
            text,
            ctx=ctx,
            chunks=chunks,
            progress=lambda done, total, so_far: bar.update(
                f"divergence {so_far:.5f}", done, total
            ),
        )
    note_windows(result.windows, ctx, chunks)
    if as_json:
        print_json({"a": a, "b": b, **result.as_json()})
    else:
        print_comparison(result)


@o.MEASURING
def evaluate(
    model: o.ModelName,
    *,
    task: Annotated[str, typer.Option(help="Task: lambada, sst2 or choices.")],
    file: Annotated[str, typer.Option(help="Items, as JSONL, JSON, CSV or TSV.")],
    shots: Annotated[
        int, typer.Option(help="Number of answered examples before each question.")
    ] = 0,
    train: Annotated[
        str | None,
        typer.Option(help="File to draw the examples from. Default: the first rows of --file."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed for drawing from --train.")] = 0,
    limit: Annotated[
        int | None, typer.Option(help="Maximum number of items. Default: all.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help='Prompt template, such as "Q: {question}\nA: {answer}".'),
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option(help="Write every item with its log-probabilities to this JSONL file."),
    ] = None,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Measure how often the right answer is the most likely one, on a benchmark file."""
    import slmq.evaluation as measure

    # A faulty file is reported before the model is looked for.
    measure.prepare(task, file, shots=shots, train=train, seed=seed, limit=limit, template=template)
    loaded = load_model(model, LoadOptions(**loading), revision=revision, offline=offline)
    with loaded as m, Bar() as bar:
        result = measure.evaluate(
            m,
            task,
            file,
            shots=shots,
            train=train,
            seed=seed,
            limit=limit,
            template=template,
            progress=lambda done, total, so_far: bar.update(f"accuracy {so_far:.3f}", done, total),
        )
    if samples is not None:
        lines = (json.dumps(sample.as_json(), ensure_ascii=False) for sample in result.samples)
        Path(samples).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    if as_json:
        print_json({"model": model, **result.as_json()})
    else:
        rows = [measured(name, metric, 4) for name, metric in result.metrics.items()]
        print_table((task, "value>", "standard error>"), rows)
        write(f"{len(result.samples):,} items, {shots}-shot, {result.seconds:.1f} s\n")


def note_windows(found: int, ctx: int, wanted: int | None) -> None:
    """Says so if a text fills fewer windows than were asked for."""
    if wanted is not None and found < wanted:
        note(f"the file is long enough for {found} windows of {ctx} tokens, not {wanted}")


def print_comparison(result: Comparison) -> None:
    """The result as a table, to stdout."""
    rows = [
        measured("KL divergence of B from A, mean", result.kl_mean, 6),
        ("median", f"{result.kl_median:.6f}", ""),
        ("90th percentile", f"{result.kl_p90:.6f}", ""),
        ("99th percentile", f"{result.kl_p99:.6f}", ""),
        ("largest", f"{result.kl_max:.6f}", ""),
        measured("same most likely token", result.top1_agreement, 4),
        measured("RMS difference of logits", result.logit_rms, 4),
        ("relative to the RMS of A's logits", f"{result.logit_rms_relative:.4f}", ""),
        measured("RMS change of the text token's probability", result.token_probability_rms, 4),
        measured("perplexity of A", result.perplexity_a, 4),
        measured("perplexity of B", result.perplexity_b, 4),
        measured("perplexity of B / perplexity of A", result.perplexity_ratio, 5),
    ]
    print_table(("", "value>", "standard error>"), rows)
    write(f"{result.tokens:,} tokens in {result.windows} windows, {result.seconds:.1f} s\n")


def measured(name: str, metric: Metric, digits: int) -> tuple[str, str, str]:
    """A row of a table."""
    error = "" if metric.standard_error is None else f"{metric.standard_error:.{digits}f}"
    return name, f"{metric.value:.{digits}f}", error
