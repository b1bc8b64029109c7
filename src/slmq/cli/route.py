"""`slmq route`: which model a router chooses, heads from a log, and what was saved and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slmq.cli import options as o
from slmq.cli.output import note, print_json, print_table, spinner, write

__all__ = ["report", "route", "train"]

Config = Annotated[
    Path,
    typer.Option("--config", metavar="FILE", help="The configuration of the router."),
]
Log = Annotated[Path, typer.Argument(metavar="LOG", help="Lines of JSON, one for each request.")]
USUAL = Path("router.toml")


def route(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What is asked.")],
    *,
    config: Config = USUAL,
    mode: Annotated[
        str | None, typer.Option(help="cheapest, balanced or quality. Default: as configured.")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Show which model a router would choose for a prompt, and why; nobody is asked."""
    from slmq.embedding.routing.router import Router

    with spinner("loading the router"):
        router = Router.open(config)
    with router:
        found = router.route(prompt, mode=mode)
    if as_json:
        print_json(found.as_json())
        return
    labels = found.labels
    write(
        f"{found.model}: {found.reason}\n"
        f"task {labels.task}, domain {labels.domain}, language {labels.language or 'unknown'}, "
        f"complexity {labels.complexity} of 10; {found.tokens} tokens, {found.took_ms:.1f} ms\n"
    )
    rows = [
        [name, f"{found.p_right[name]:.2f}", f"{found.costs[name]:.6f}"] for name in found.order
    ]
    print_table(["model", "right>", "cost>"], rows)


def train(
    log: Log,
    *,
    config: Config = USUAL,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="File to write the heads to.", show_default=False),
    ],
    as_json: o.Json = False,
) -> None:
    """Train a head for each model from lines such as {"text": "...", "right": {"MODEL": true}}.

    The log of a router has the texts if its configuration says log_text = true; add "right" to
    lines whose answers were judged. The configuration then names the file: heads = "FILE".
    """
    from slmq.embedding.loading import load_encoder
    from slmq.embedding.routing.config import read_config
    from slmq.embedding.routing.heads import load_heads
    from slmq.embedding.routing.ledger import read_log
    from slmq.embedding.routing.training import train_right

    read = read_config(config)
    heads = load_heads(read.heads)
    entries = read_log(log)
    with spinner("training"), load_encoder(read.encoder or heads.encoder) as encoder:
        found, trained = train_right(heads, encoder, entries, log)
    found.save(out)
    if as_json:
        print_json({"models": [vars(model) for model in trained]})
        return
    rows = [
        [m.name, str(m.rows), f"{m.right:.1%}", f"{m.log_loss:.3f}", f"{m.usual_loss:.3f}"]
        for m in trained
    ]
    print_table(["model", "prompts>", "right>", "log loss>", "of a constant>"], rows)
    note(f"{out}: heads for {', '.join(model.name for model in trained)}")


def report(log: Log, *, as_json: o.Json = False) -> None:
    """Show what a router has saved and what quality it has kept, from its log."""
    from slmq.embedding.routing.ledger import read_log, report_of

    found = report_of(read_log(log), log)
    if as_json:
        print_json(vars(found))
        return
    write(f"{found}\n")
    print_table(["model", "requests>"], [[name, str(n)] for name, n in found.models.items()])
    for count, what in (
        (found.failed, "requests that no model answered"),
        (found.fallbacks, "requests that another model answered than the chosen one"),
        (found.shadowed, "requests in shadow: the reference answered them all the same"),
    ):
        if count:
            note(f"{count} {what}")
