"""Options that several commands share, and what they become."""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = [
    "Activations",
    "FrequencyPenalty",
    "IgnoreEos",
    "Json",
    "KvDtype",
    "LogitBias",
    "MaxTokens",
    "MaybeModel",
    "Memory",
    "MinP",
    "ModelName",
    "NCtx",
    "Offline",
    "PresencePenalty",
    "Quant",
    "RepetitionPenalty",
    "Revision",
    "Seed",
    "Shape",
    "ShapeFormat",
    "Stats",
    "Stop",
    "System",
    "Temperature",
    "Threads",
    "TopK",
    "TopP",
    "sampling",
]

LOADING = "Loading"
SAMPLING = "Sampling"

ModelName = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Catalogue name, hub id, folder or .gguf file."),
]
MaybeModel = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="Catalogue name, hub id, folder or .gguf file."),
]
Shape = Annotated[
    str | None,
    typer.Option(
        help="Instead of MODEL: random weights with the configuration of a model in the "
        "catalogue (`slmq list --catalogue`; the start of a name will do), built in memory and "
        "run as its own family.",
    ),
]
ShapeFormat = Annotated[
    str,
    typer.Option("--format", help="Of a shape: q4g32s, q4g32a, q4k, q6k, q8g32s, f16, f32, ..."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
System = Annotated[str | None, typer.Option(help="System message.")]
Stats = Annotated[bool, typer.Option("--stats", help="Speed and memory, on stderr.")]

NCtx = Annotated[
    int | None,
    typer.Option(
        "--n-ctx",
        help="Most tokens of prompt and answer together; by default what the model was made for.",
        rich_help_panel=LOADING,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="By default the physical cores within affinity and CPU quota.",
        rich_help_panel=LOADING,
    ),
]
Quant = Annotated[
    str | None,
    typer.Option(help="int4, int8, f16, f32: what weights become.", rich_help_panel=LOADING),
]
KvDtype = Annotated[
    str, typer.Option("--kv-dtype", help="f16, f32 or int8: the cache.", rich_help_panel=LOADING)
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Where weights lie: mmap (the default for folders of `slmq convert`), huge (2 MiB "
        "pages, the default for others) or small (ordinary ones).",
        rich_help_panel=LOADING,
    ),
]
Activations = Annotated[
    str,
    typer.Option(
        help="mixed, or exact: 16 bits for all inputs of integer weights.", rich_help_panel=LOADING
    ),
]
Revision = Annotated[str | None, typer.Option(help="Of a hub repository.", rich_help_panel=LOADING)]
Offline = Annotated[
    bool, typer.Option("--offline", help="Never touch the network.", rich_help_panel=LOADING)
]

MaxTokens = Annotated[
    int | None,
    typer.Option(
        help="Most tokens of the answer; by default it ends by itself or with the context.",
        rich_help_panel=SAMPLING,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="0 takes the likeliest token each time. By default what the catalogue suggests for "
        "the model (so for --top-p and others), else 0.",
        rich_help_panel=SAMPLING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", help="Keep the k likeliest tokens.", rich_help_panel=SAMPLING),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p", help="Keep the likeliest with this probability.", rich_help_panel=SAMPLING
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p", help="Keep those this near to the likeliest.", rich_help_panel=SAMPLING
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(help="Over 1: fewer tokens of prompt and answer.", rich_help_panel=SAMPLING),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(help="-2 to 2, against tokens of the answer.", rich_help_panel=SAMPLING),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(help="-2 to 2, for each time a token is in the answer.", rich_help_panel=SAMPLING),
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID=VALUE",
        help="Add to the logit of a token; -inf bans it. Repeatable.",
        rich_help_panel=SAMPLING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="The same seed gives the same text.", rich_help_panel=SAMPLING),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="Text at which the answer ends. Repeatable.", rich_help_panel=SAMPLING),
]
IgnoreEos = Annotated[
    bool,
    typer.Option("--ignore-eos", help="Go on after end tokens.", rich_help_panel=SAMPLING),
]


def sampling(values: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate`, checked, of the options that were given.

    Parameters
    ----------
    values : dict
        Values of the options above by name; None and False were not given.

    Raises
    ------
    ValueError
        If a value is out of range, or a logit bias is not ID=VALUE.
    """
    from slmq.generation.sampling import SamplingParams

    chosen = {
        name: value
        for name, value in values.items()
        if not (value is None or value is False or value == [])
    }
    if "logit_bias" in chosen:
        chosen["logit_bias"] = dict(_bias(text) for text in chosen["logit_bias"])
    # Before anything is downloaded or loaded.
    SamplingParams.from_kwargs(chosen)
    return chosen


def _bias(text: str) -> tuple[int, float]:
    token, separator, value = text.partition("=")
    try:
        if not separator:
            raise ValueError
        return int(token), float(value)
    except ValueError:
        raise ValueError(
            f"--logit-bias: expected ID=VALUE, such as 198=-inf; got {text!r}"
        ) from None
