"""Options that several commands share, and the arguments that they become."""

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
        help="Instead of MODEL: random weights in the configuration of a catalogue model, built "
        "in memory (`slmq list --catalogue` shows the names; the start of one is enough).",
    ),
]
ShapeFormat = Annotated[
    str,
    typer.Option(
        "--format",
        help="Weight format for --shape: q4g32s, q4g32a, q4k, q6k, q8g32s, f16, f32, ...",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
System = Annotated[str | None, typer.Option(help="System message.")]
Stats = Annotated[bool, typer.Option("--stats", help="Print speed and memory to stderr.")]

NCtx = Annotated[
    int | None,
    typer.Option(
        "--n-ctx",
        help="Context size: the maximum number of tokens of prompt and answer together. Default: "
        "the model's own.",
        rich_help_panel=LOADING,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="Number of threads. Default: one per physical core that the process may use.",
        rich_help_panel=LOADING,
    ),
]
Quant = Annotated[
    str | None,
    typer.Option(
        help="Weight format: int4, int8, f16 or f32. Default: as stored.", rich_help_panel=LOADING
    ),
]
KvDtype = Annotated[
    str,
    typer.Option(
        "--kv-dtype",
        help="Type of the cached keys and values: f16, f32 or int8.",
        rich_help_panel=LOADING,
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Where to keep the weights: mmap (map the file; the default for packed folders), huge "
        "(2 MiB pages; the default otherwise) or small (ordinary pages).",
        rich_help_panel=LOADING,
    ),
]
Activations = Annotated[
    str,
    typer.Option(
        help="Precision of the inputs of integer weights: mixed (8 bits, 16 where it matters) or "
        "exact (16 bits everywhere).",
        rich_help_panel=LOADING,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        help="Revision (branch, tag or commit) of the hub repository.", rich_help_panel=LOADING
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Never use the network.", rich_help_panel=LOADING)
]

MaxTokens = Annotated[
    int | None,
    typer.Option(
        help="Maximum length of the answer in tokens. Default: until the model stops or the "
        "context is full.",
        rich_help_panel=SAMPLING,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Sampling temperature; 0 always takes the most likely token. Default: what the "
        "catalogue suggests for the model (--top-p and others likewise), otherwise 0.",
        rich_help_panel=SAMPLING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", help="Sample from the k most likely tokens.", rich_help_panel=SAMPLING),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        help="Sample from the most likely tokens whose probabilities add up to this.",
        rich_help_panel=SAMPLING,
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        help="Drop tokens less likely than this fraction of the most likely one.",
        rich_help_panel=SAMPLING,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        help="Values above 1 discourage tokens already in the prompt or answer.",
        rich_help_panel=SAMPLING,
    ),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(
        help="-2 to 2; positive values discourage tokens already in the answer.",
        rich_help_panel=SAMPLING,
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(
        help="-2 to 2; positive values discourage tokens, more so the more often the answer has "
        "them.",
        rich_help_panel=SAMPLING,
    ),
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID=VALUE",
        help="Add VALUE to the logit of token ID; -inf bans it. Repeatable.",
        rich_help_panel=SAMPLING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Random seed; the same seed gives the same text.", rich_help_panel=SAMPLING),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="Text that ends the answer. Repeatable.", rich_help_panel=SAMPLING),
]
IgnoreEos = Annotated[
    bool,
    typer.Option("--ignore-eos", help="Continue past end tokens.", rich_help_panel=SAMPLING),
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
