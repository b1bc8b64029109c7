"""`slmq index` and `slmq ask`: a folder of documents that answers questions."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmq.cli import options as o
from slmq.cli.batch import shown_by
from slmq.cli.loading import load_model
from slmq.cli.output import Bar, Downloads, note, print_json, spinner, write
from slmq.engine.options import LoadOptions
from slmq.generation.params import SamplingParams

if TYPE_CHECKING:
    from slmq.search.index import Index
    from slmq.search.results import Answered

__all__ = ["ask", "index"]

SAMPLING = o.Bundle("sampling", SamplingParams, "Sampling", without=("logprobs",))
SUFFIX = ".index"
DEFAULT_MODEL = "smollm2-135m-instruct"
Encoder = Annotated[
    str | None,
    typer.Option(
        help="Catalogue name, hub id or folder of an encoder. Default: the one that made the "
        "index; for a new one all-minilm-l6-v2.",
        autocompletion=o.complete_model,
    ),
]


def index(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Documents: a folder, or a single file.")
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the index. Default: DIR with .index behind."),
    ] = None,
    encoder: Encoder = None,
    passage_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a passage, for a new index.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Look at every part of the index first.")
    ] = False,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Index the texts of a folder: .txt, .md, .rst, .html and .pdf, which needs pypdf.

    Run it again after documents have changed: only those are read. What an interrupted run has
    indexed stays.
    """
    from slmq.search.documents import expect_documents

    expect_documents(folder)  # before an index is made of nothing
    target = index_of(folder) if out is None else out
    began_s = time.monotonic()
    with opened(target, encoder, offline=offline, create=True, passage_tokens=passage_tokens) as ix:
        if check:
            ix.check()
        with Bar() as bar:
            done = ix.add(folder, shown_by(bar, "files"))
        passages = len(ix)
    if as_json:
        print_json({**vars(done), "passages_in_all": passages})
        return
    for name, reason in done.refused.items():
        note(f"{name}: left out: {reason}")
    note(f"{target}: {done}; {passages} in all, {time.monotonic() - began_s:.1f} s")


@SAMPLING
@o.LOADING
def ask(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="An index, or the documents that it was made of.")
    ],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What is asked.")],
    *,
    model: Annotated[
        str,
        typer.Option(
            help="Catalogue name, hub id, folder or .gguf file of the model that answers.",
            autocompletion=o.complete_model,
        ),
    ] = DEFAULT_MODEL,
    encoder: Encoder = None,
    top: Annotated[int, typer.Option(help="Look at so many passages.", min=1)] = 4,
    sentences: Annotated[
        int,
        typer.Option(
            help="Show the model so many sentences of them; 0 shows it whole passages, which "
            "larger models answer better from.",
            min=0,
        ),
    ] = 3,
    sources_only: Annotated[
        bool, typer.Option("--sources-only", help="Show the passages; ask no model.")
    ] = False,
    sampling: o.Given,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    as_json: o.Json = False,
) -> None:
    """Answer a question from indexed documents, with numbered sources.

    If no passage is near enough to the question, no model is asked, and the exit code is 3.
    """
    options = LoadOptions(**loading)
    with opened(folder, encoder, offline=offline, create=False) as ix:
        from slmq.cli.run import answer
        from slmq.search.answering import ANSWER_TOKENS, GREEDY, grounds, prompt_of

        found = grounds(ix, question, top_k=top)
        if not found.found or sources_only:
            tell(found, as_json=as_json)
            raise typer.Exit(0 if found.found else 3)
        with load_model(model, options, revision=revision, offline=offline) as m:
            given = {**GREEDY, "max_tokens": ANSWER_TOKENS, **sampling}
            most = max(given["max_tokens"] or 0, 0)
            prompt = prompt_of(m, question, found, sentences=sentences or None, max_tokens=most)
            result = answer(m, prompt, given, quiet=as_json)
        tell(replace(found, text=result.text.strip()), as_json=as_json, said=True)


def index_of(folder: Path) -> Path:
    """Where the index of a folder lies unless somebody says otherwise: beside it."""
    whole = folder.resolve() if folder.name in ("", ".", "..") else folder
    return whole.with_name(whole.name + SUFFIX)


def opened(
    path: Path,
    encoder: str | None,
    *,
    offline: bool,
    create: bool,
    passage_tokens: int | None = None,
) -> Index:
    """Open an index, or that of a folder of documents; download its encoder if need be."""
    import slmq.hub as hub
    from slmq.search.index import DEFAULT_ENCODER, Index
    from slmq.search.store import Store

    if not create and not Store.is_in(path) and Store.is_in(index_of(path)):
        path = index_of(path)
    name = encoder
    if name is None and Store.is_in(path):
        store = Store(path)
        name = store.fact("encoder")
        store.close()
    if create or Store.is_in(path):
        with Downloads() as progress:
            hub.resolve(name or DEFAULT_ENCODER, local_files_only=offline, progress=progress)
    with spinner("loading the encoder"):
        return Index(path, name, create=create, passage_tokens=passage_tokens)


def tell(found: Answered, *, as_json: bool, said: bool = False) -> None:
    """Writes an answer, unless its text was written as it came, and its sources."""
    if as_json:
        sources = [
            {"number": number, **vars(hit), "quote": found.quote(number)}
            for number, hit in enumerate(found.sources, 1)
        ]
        told = {name: value for name, value in vars(found).items() if name != "quotes"}
        print_json({**told, "sources": sources})
        return
    if found.text and not said:
        write(found.text + "\n")
    if not found.found:
        note(
            f"(the nearest passage fits by {found.fit:.2f}, {found.needed:.2f} is needed; one has "
            f"{found.share:.0%} of the words, {found.needed_share:.0%} are needed)"
        )
    for number, hit in enumerate(found.sources, 1):
        heading = f" ({hit.heading})" if hit.heading else ""
        write(f"[{number}] {hit.place}{heading}\n    {found.quote(number)}\n")
