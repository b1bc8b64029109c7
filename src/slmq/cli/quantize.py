"""`slmq quantize` and `slmq dequantize`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from slmq.cli import options as o
from slmq.cli.folder import Force, Source, Target, find, make_folder
from slmq.cli.models import stored_bytes
from slmq.cli.output import Bar, note, print_json, write
from slmq.machine.disk import readable_bytes

__all__ = ["dequantize", "quantize"]


@o.THREADS
def quantize(
    src: Source,
    dst: Target,
    *,
    format: Annotated[
        str | None,
        typer.Option(
            help="Weight format: int4 (q4g32a, the default), int8 (q8g32s), or one of q2k, "
            "q4g128s, q4g64s, q4g128z, n4g32, n4k, q4g32s, n4g32s, q4g64z, q4k, q4g32a, q5g32s, "
            "q5k, q5g32a, q6g32s, q6k, q8g32s."
        ),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            help="Instead of --format: average bits per weight, such as 4.5; each matrix gets the "
            "format that suits it."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text typical of what the model will read; makes rounding more accurate.",
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead of --calibrate: an importance matrix that llama-imatrix wrote as GGUF.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="Rounding method: auto (the best by measurement), rtn, or, with --calibrate, "
            "weighted, feedback or rescaled."
        ),
    ] = "auto",
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write an HTML page: error per layer and format, size against quality.",
        ),
    ] = None,
    force: Force = False,
    threads: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Quantize a model into a folder that is memory-mapped and run as is; print its path.

    The same source and settings give the same bytes on every machine. To resume an interrupted run,
    repeat the command.
    """
    from slmq.quantizer import quantize as write_folder

    # `quantize` checks the word.
    rounding: dict[str, Any] = {"format": format, "bits": bits, "method": method}
    found = find(src, revision=revision, offline=offline)
    with Bar() as bar, saying_where(bar):
        made = write_folder(
            found.path,
            Path(dst),
            calibrate=calibrate,
            imatrix=imatrix,
            **rounding,
            report=report,
            force=force,
            progress=bar.update,
            **threads,
        )
    if not as_json:
        write(f"{made.path}\n")
        if len(made.shares) > 1:
            shares = ", ".join(f"{fmt} {share:.1%}" for fmt, share in made.shares.items())
            note(f"formats, by their share of the weights: {shares}")
        size, before = stored_bytes(made.path), stored_bytes(found.path)
        note(
            f"{readable_bytes(size)}, {made.bits_per_weight:.2f} bits per weight, from "
            f"{readable_bytes(before)}. What that cost: slmq compare {src} {dst} --file TEXT"
        )
        return
    print_json(
        {
            "name": found.name,
            "path": str(made.path),
            "bytes": stored_bytes(made.path),
            "bits_per_weight": made.bits_per_weight,
            "tensors": [asdict(tensor) for tensor in made.tensors],
        }
    )


@contextmanager
def saying_where(bar: Bar) -> Iterator[None]:
    """Says on Ctrl-C how far the work has come, and that it is not lost."""
    try:
        yield
    except KeyboardInterrupt:
        at = bar.reached
        bar.close()
        note(f"stopped{f' at {at}' if at else ''}; repeat the command to go on from there")
        raise


@o.THREADS
def dequantize(
    src: Source,
    dst: Target,
    *,
    dtype: Annotated[str, typer.Option(help="f16, or f32 (twice the size, no rounding).")] = "f16",
    force: Force = False,
    threads: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Write a model as an ordinary folder of float weights that transformers can load."""
    from slmq.conversion.dequantize import dequantize as write_folder

    make_folder(
        src,
        "dequantizing",
        lambda source, progress: write_folder(
            source, Path(dst), dtype=dtype, force=force, progress=progress, **threads
        ),
        revision=revision,
        offline=offline,
        as_json=as_json,
    )


@o.THREADS
def merge(
    base: Annotated[
        str,
        typer.Argument(metavar="BASE", help="Catalogue name, hub id, folder or .gguf file."),
    ],
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="Folder of an adapter of PEFT or mlx-lm.")
    ],
    dst: Target,
    *,
    dtype: Annotated[str, typer.Option(help="f32, or f16 (half of the size).")] = "f32",
    packed: Annotated[
        bool,
        typer.Option(
            "--packed",
            help="Round to the base's own formats again, and say how much of the adapter is lost.",
        ),
    ] = False,
    force: Force = False,
    threads: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Write a model with an adapter in its weights, as an ordinary folder of floats.

    `slmq quantize` rounds it to fewer bits.
    """
    from slmq.conversion.merge import Merged
    from slmq.conversion.merge import merge as write_folder

    def tell(merged: Merged) -> None:
        name, share = merged.worst
        note(
            f"{merged.path}: rounding lost {merged.lost:.0%} of what the adapter adds, at most "
            f"{share:.0%} ({name}); without --packed nothing is lost"
        )

    make_folder(
        base,
        "merging",
        lambda source, progress: write_folder(
            source,
            adapter,
            Path(dst),
            dtype=dtype,
            packed=packed,
            force=force,
            progress=progress,
            on_merged=tell,
            **threads,
        ),
        revision=revision,
        offline=offline,
        as_json=as_json,
    )
