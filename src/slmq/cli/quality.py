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

if TYPE_CHECKING:
    from slmq.evaluation import Comparison, Metric

__all__ = ["compare", "evaluate", "perplexity"]

Text = Annotated[str, typer.Option(help="UTF-8 text.")]
Ctx = Annotated[int, typer.Option(help="Tokens of a window; those of its second half are scored.")]
Chunks = Annotated[
    int | None, typer.Option(help="Most windows; by default all that the file fills.")
]


def perplexity(
    model: o.ModelName,
    *,
    file: Text,
    ctx: Ctx = 512,
    chunks: Chunks = None,
    threads: o.Threads = None,
    quant: o.Quant = None,
    kv_dtype: o.KvDtype = "f16",
    memory: o.Memory = None,
    activations: o.Activations = "mixed",
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Perplexity of a text: consecutive windows, the second half of each scored."""
    import slmq.evaluation as measure

    text = measure.read_text(file)
    loaded = load_model(
        model,
        quant=quant,
        threads=threads,
        kv_dtype=kv_dtype,
        memory=memory,
        activations=activations,
        revision=revision,
        offline=offline,
    )
    with loaded.model as m, Bar() as bar:
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
            f"({result.tokens:,} tokens of {result.windows} windows, {result.seconds:.1f} s)\n"
        )


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The reference: name, folder or file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What is held against it.")],
    *,
    file: Text,
    ctx: Ctx = 512,
    chunks: Chunks = None,
    quant_a: Annotated[
        str | None, typer.Option(help="What weights of A become, as --quant elsewhere.")
    ] = None,
    quant_b: Annotated[str | None, typer.Option(help="What weights of B become.")] = None,
    kv_dtype_a: Annotated[str, typer.Option("--kv-dtype-a", help="Cache of A.")] = "f16",
    kv_dtype_b: Annotated[str, typer.Option("--kv-dtype-b", help="Cache of B.")] = "f16",
    activations_a: Annotated[str, typer.Option("--activations-a", help="Of A.")] = "mixed",
    activations_b: Annotated[
        str, typer.Option("--activations-b", help="Of B: mixed or exact.")
    ] = "mixed",
    threads: o.Threads = None,
    memory: o.Memory = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Divergence of B's next-token distributions from A's over a text."""
    import slmq.evaluation as measure

    text = measure.read_text(file)
    with ExitStack() as opened:
        first, second = (
            opened.enter_context(
                load_model(
                    name,
                    quant=quant,
                    threads=threads,
                    kv_dtype=kv_dtype,
                    memory=memory,
                    activations=activations,
                    offline=offline,
                ).model
            )
            for name, quant, kv_dtype, activations in (
                (a, quant_a, kv_dtype_a, activations_a),
                (b, quant_b, kv_dtype_b, activations_b),
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


def evaluate(
    model: o.ModelName,
    *,
    task: Annotated[str, typer.Option(help="lambada, sst2 or choices.")],
    file: Annotated[str, typer.Option(help="JSONL, JSON, CSV or TSV with the items.")],
    shots: Annotated[int, typer.Option(help="Examples with answers before each question.")] = 0,
    train: Annotated[
        str | None,
        typer.Option(help="File to draw the shots from; by default the first rows of --file."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of drawing from --train.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Most items; by default all.")] = None,
    template: Annotated[
        str | None,
        typer.Option(help='How an item is written, such as "Q: {question}\nA: {answer}".'),
    ] = None,
    samples: Annotated[
        str | None, typer.Option(help="Write every item with its log-probabilities as JSONL.")
    ] = None,
    threads: o.Threads = None,
    quant: o.Quant = None,
    n_ctx: o.NCtx = None,
    kv_dtype: o.KvDtype = "f16",
    memory: o.Memory = None,
    activations: o.Activations = "mixed",
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """How often the right answer is the likeliest: last words, sentiment, multiple choice."""
    import slmq.evaluation as measure

    # What is wrong with the file is said before a model is looked for.
    measure.prepare(task, file, shots=shots, train=train, seed=seed, limit=limit, template=template)
    loaded = load_model(
        model,
        quant=quant,
        n_ctx=n_ctx,
        threads=threads,
        kv_dtype=kv_dtype,
        memory=memory,
        activations=activations,
        revision=revision,
        offline=offline,
    )
    with loaded.model as m, Bar() as bar:
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
        write(f"{len(result.samples):,} items, shots {shots}, {result.seconds:.1f} s\n")


def note_windows(found: int, ctx: int, wanted: int | None) -> None:
    """Says so if a text fills fewer windows than were asked for."""
    if wanted is not None and found < wanted:
        note(f"the file fills {found} windows of {ctx} tokens, not {wanted}")


def print_comparison(result: Comparison) -> None:
    """The result as a table, to stdout."""
    rows = [
        measured("KL divergence of B from A, mean", result.kl_mean, 6),
        ("median", f"{result.kl_median:.6f}", ""),
        ("90th percentile", f"{result.kl_p90:.6f}", ""),
        ("99th percentile", f"{result.kl_p99:.6f}", ""),
        ("largest", f"{result.kl_max:.6f}", ""),
        measured("same likeliest token", result.top1_agreement, 4),
        measured("logits, RMS of the difference", result.logit_rms, 4),
        ("over the RMS of A's logits", f"{result.logit_rms_relative:.4f}", ""),
        measured("probability of the text's token, RMS change", result.token_probability_rms, 4),
        measured("perplexity of A", result.perplexity_a, 4),
        measured("perplexity of B", result.perplexity_b, 4),
        measured("perplexity of B over A's", result.perplexity_ratio, 5),
    ]
    print_table(("", "value>", "standard error>"), rows)
    write(f"{result.tokens:,} tokens of {result.windows} windows, {result.seconds:.1f} s\n")


def measured(name: str, metric: Metric, digits: int) -> tuple[str, str, str]:
    """A row of a table."""
    error = "" if metric.standard_error is None else f"{metric.standard_error:.{digits}f}"
    return name, f"{metric.value:.{digits}f}", error
