"""`slmq profile`: where the time of a model goes, and what bounds it on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmq.cli import options as o
from slmq.cli.measure import WHAT, What, load_to_measure
from slmq.cli.output import Bar, note, print_json, print_table, write
from slmq.engine.options import LoadOptions

if TYPE_CHECKING:
    from slmq.speed.profile_rows import Phase, Profile, Row

__all__ = ["profile"]

LOADING = o.Bundle("loading", LoadOptions, "Loading", without=("format", *o.SERVING_ONLY))
HEADERS = ("time>", "share>", "GB/s>", "of read bandwidth>", "GMAC/s>", "of int8 peak>")
BUSY = 1.5


@WHAT
@LOADING
def profile(
    model: o.MaybeModel = None,
    *,
    prompt_tokens: Annotated[
        int, typer.Option(help="Prompt length in tokens; 0 profiles decoding only.")
    ] = 512,
    context: Annotated[
        int, typer.Option(help="Number of tokens in the cache while decoding is profiled.")
    ] = 128,
    repeat: Annotated[
        int, typer.Option(help="Number of timed prompts; decoding times eight tokens for each.")
    ] = 3,
    layers: Annotated[
        bool, typer.Option("--layers", help="Also print a table of the layers.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also draw a chart (.svg, .png or .pdf); needs `pip install matplotlib`.",
        ),
    ] = None,
    what: o.Given,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Show where time goes, by op and by layer, against the machine's own limits."""
    import slmq.speed.profile as measure
    from slmq.speed.pictures import check_picture
    from slmq.speed.profile_plot import draw

    if plot is not None:
        check_picture(plot)
    options = LoadOptions(**loading)
    loaded = load_to_measure(model, What(**what), options, revision=revision, offline=offline)
    with Bar() as bar:
        found = measure.profile_model(
            loaded,
            options,
            prompt=prompt_tokens,
            context=context,
            repeat=repeat,
            progress=lambda done, total, what: bar.update(what, done, total),
        )
    if plot is not None:
        draw(found, plot)
        note(f"chart written to {plot}")
    if any(phase.slowest_us > BUSY * phase.fastest_us for phase in found.phases):
        note(
            "timings vary widely; other processes were using the CPU, so treat these numbers "
            "with caution"
        )
    if as_json:
        print_json(found.as_json())
    else:
        print_profile(found, layers=layers)


def print_profile(found: Profile, *, layers: bool) -> None:
    """What bounds the model, then a table of ops for each phase, and one of layers if wanted."""
    from slmq.speed.limits import REFUSED, WHY_REFUSED

    write(
        f"{found.model}, {found.format}, activations {found.activations}, cache {found.cache}, "
        f"{found.isa} kernels, {_count(found.threads, 'thread')} on {found.cpu}\n\n"
        f"{found.sentence[0].upper()}{found.sentence[1:]}\n"
    )
    refused = False
    for phase in found.phases:
        write(f"\n{_title(phase)}\n")
        ops = [_cells(row) for row in (*phase.ops, phase.total)]
        print_table(("op", *HEADERS), ops)
        of_layers = [_cells(row) for row in phase.layers] if layers else []
        if layers:
            print_table(("layer", *HEADERS), of_layers)
        refused |= any(REFUSED in cells for cells in (*ops, *of_layers))
    limits = found.limits
    write(
        f"limits, {_count(limits.threads, 'thread')}: read {limits.read_gb_per_s:.1f} GB/s, "
        f"int8 {limits.integer_peak_gmac_per_s:.0f} GMAC/s"
        + ("; 16-bit activations take two products, so 0.5 is full use" * _wide(found))
        + f"\n{WHY_REFUSED}" * refused
        + "\n"
    )


def _title(phase: Phase) -> str:
    from slmq.speed.profile_rows import duration

    if phase.name == "decode":
        what = f"decode, one token at {_count(phase.context, 'token')} of context"
    else:
        runs = _count(phase.runs, "run")
        what = f"prefill, a prompt of {_count(phase.tokens, 'token')} in {runs}"
    spread = f"{duration(phase.fastest_us)} to {duration(phase.slowest_us)}"
    return (
        f"{what}: {duration(phase.time_us)} ({spread}; "
        f"{duration(phase.plain_us)} without per-op timing)"
    )


def _cells(row: Row) -> tuple[str, ...]:
    from slmq.speed.limits import told
    from slmq.speed.profile_rows import duration

    reads, multiplies = row.weight_bytes + row.kv_bytes > 0, row.macs > 0
    return (
        row.name,
        duration(row.time_us),
        f"{row.share:.1%}",
        _number(row.gb_per_s) if reads else "",
        told(row.read_fraction) if reads else "",
        _number(row.gmac_per_s) if multiplies else "",
        told(row.integer_fraction) if multiplies and row.integer_fraction > 0 else "",
    )


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _wide(found: Profile) -> bool:
    return found.activations == "a16g32"
