"""`slmq bench`: how fast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slmq.cli import options as o
from slmq.cli.output import Bar, Downloads, print_json, print_table, spinner, write
from slmq.engine.options import LoadOptions
from slmq.machine.disk import readable_bytes
from slmq.settings import check_options, option

if TYPE_CHECKING:
    from slmq.speed.bench import BenchResult, Loaded

__all__ = ["WHAT", "What", "bench", "load_to_measure"]

SHAPE_FORMAT = "q4g32s"


def _text(_name: str, value: Any) -> str | None:
    return None if value is None else str(value)


def _stored_format(name: str, value: Any) -> str | None:
    """A weight format of any kind: shapes also come in those that nothing is rounded to."""
    from slmq.formats import format_named

    if value is not None:
        try:
            format_named(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return _text(name, value)


@dataclass(frozen=True, kw_only=True)
class What:
    """What is measured, if not a model as it is stored."""

    shape: str | None = option(
        None,
        "Instead of MODEL: random weights in the configuration of a catalogue model, built in "
        "memory (`slmq list --catalogue` shows the names; the start of one is enough).",
        _text,
    )
    format: Any = option(
        None,
        "Weight format: int4, int8, f16 or f32; for --shape also q4k, q6k and other stored ones. "
        f"Default: as stored; for --shape {SHAPE_FORMAT}.",
        _stored_format,
        metavar="FORMAT",
        formerly="quant",
    )

    def __post_init__(self) -> None:
        check_options(self)


WHAT = o.Bundle("what", What, "Loading")
LOADING = o.Bundle(
    "loading", LoadOptions, "Loading", without=("format", "n_threads", *o.SERVING_ONLY)
)


@WHAT
@LOADING
def bench(
    model: o.MaybeModel = None,
    *,
    prompt: Annotated[int, typer.Option(help="Prompt length in tokens; 0 skips this test.")] = 512,
    gen: Annotated[int, typer.Option(help="Number of tokens to generate; 0 skips this test.")] = 64,
    batch: Annotated[
        str,
        typer.Option(
            help="Number of sequences that generate together; a list such as 1,4,8 prints a row "
            "for each."
        ),
    ] = "1",
    threads: Annotated[
        str | None,
        typer.Option(
            help="Number of threads, or a list such as 1,2; by default what a model would use."
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(help="Number of timed runs of each test.")] = 3,
    what: o.Given,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Measure prompt and generation speed against the machine's own limits, in the same run."""
    from slmq.speed import bench as measure

    counts = thread_counts(threads)
    options = LoadOptions(**loading, n_threads=max(counts))
    loaded = load_to_measure(model, What(**what), options, revision=revision, offline=offline)
    with Bar() as bar:
        result = measure.bench(
            loaded,
            prompt=prompt,
            gen=gen,
            batch=numbers("--batch", batch),
            threads=counts,
            repeat=repeat,
            options=options,
            progress=lambda done, total, what: bar.update(what, done, total),
        )
    if as_json:
        print_json(result.as_json())
    else:
        print_bench(result)


def load_to_measure(
    model: str | None,
    what: What,
    options: LoadOptions,
    *,
    revision: str | None,
    offline: bool,
) -> Loaded:
    """A model, or random weights of a shape; errors as `slmq.load`.

    Raises
    ------
    ValueError
        Unless there is one of the two, or for an option that a shape does not take.
    """
    from slmq.speed import bench as measure

    if (model is None) == (what.shape is None):
        raise ValueError("expected either a MODEL or a --shape")
    if what.shape is not None:
        if options.memory is not None:
            raise ValueError("--memory works with a MODEL only")
        with spinner(f"generating {what.shape}"):
            return measure.load_shape(what.shape, what.format or SHAPE_FORMAT)
    assert model is not None  # one of the two is there
    with Downloads() as progress:
        return measure.load(
            model,
            replace(options, format=what.format),
            revision=revision,
            local_files_only=offline,
            progress=progress,
        )


def thread_counts(text: str | None) -> list[int]:
    """Numbers of threads of "1,2"; without a text the one that slmq would choose.

    Raises
    ------
    ValueError
        If it is not a list of numbers.
    """
    import slmq._native as _native

    if text is None:
        return [int(_native.resolve_threads(None)["threads"])]
    counts = numbers("--threads", text)
    for count in counts:
        _native.resolve_threads(count)
    return counts


def numbers(option: str, text: str) -> list[int]:
    """Those of a list such as "1,2".

    Raises
    ------
    ValueError
        If it is not one; names the option.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option}: expected numbers such as 1,2; got {text!r}") from None


def print_bench(result: BenchResult) -> None:
    """The result as tables, to stdout."""
    from slmq.speed.limits import REFUSED, WHY_REFUSED, told

    write(f"{result.model}, {result.format}, {result.isa} kernels\n")
    rows = [
        (
            row.test,
            str(row.threads),
            f"{row.tokens_per_s.median:.1f}",
            f"{row.tokens_per_s.min:.1f}-{row.tokens_per_s.max:.1f}",
            told(row.read_fraction, 3),
            told(row.integer_fraction, 3),
        )
        for row in result.rows
    ]
    headers = ("test", "threads>", "tokens/s>", "range>", "of read bandwidth>", "of int8 peak>")
    print_table(headers, rows)
    write(
        "ppN reads a prompt of N tokens, tgN generates N; fractions: of what the machine can do\n"
    )
    for limit in result.limits:
        write(
            f"limits, threads {limit.threads}: read {limit.read_gb_per_s:.1f} GB/s, "
            f"int8 {limit.integer_peak_gmac_per_s:.0f} GMAC/s\n"
        )
    if any(REFUSED in row for row in rows):
        write(f"{WHY_REFUSED}\n")
    write(f"weights are fetched ahead as {result.tuning}\n")
    write(f"load {result.load_s:.2f} s")
    if result.peak_memory_bytes is not None:
        write(f", peak memory {readable_bytes(result.peak_memory_bytes)}")
    write("\n")
