"""`slmq run`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slmq.cli import options as o
from slmq.cli.errors import STOPPED
from slmq.cli.loading import load_model
from slmq.cli.output import Bar, cancel_on_interrupt, note, print_json, write
from slmq.cli.piped import as_typed, read_prompt
from slmq.engine.options import LoadOptions
from slmq.machine.disk import readable_bytes

if TYPE_CHECKING:
    from slmq.generation.model import Model, Prompt
    from slmq.generation.results import GenerationResult
    from slmq.generation.stream import TokenStream
    from slmq.generation.turn import ToolTurn
    from slmq.tokenizer import Tokenizer

__all__ = ["explain_end", "follow", "prompt_for", "prompt_progress", "run", "show_stats"]


@o.SAMPLING
@o.LOADING
def run(
    model: o.ModelName,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPT]",
            help="Prompt; what is piped into the command is put after it.",
            show_default=False,
        ),
    ] = None,
    *,
    system: o.System = None,
    chat_template_kwargs: o.TemplateKwargs = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Complete the prompt verbatim, without the chat template.")
    ] = False,
    sampling: o.Given,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    stats: o.Stats = False,
    as_json: o.Json = False,
) -> None:
    """Answer one prompt. Only the answer goes to stdout, as it is generated.

    If the model has a chat template, the prompt is sent as a user message. Text from a pipe or file
    is appended to the prompt, or is the prompt if there is no other. Without any prompt, in a
    terminal, a chat begins. Ctrl-C stops the answer.
    """
    if "logprobs" in sampling and not as_json:
        raise ValueError("--logprobs needs --json")
    template = o.template_kwargs(chat_template_kwargs)
    options = LoadOptions(**loading)
    if prompt is None and sys.stdin.isatty() and not (raw or as_json):
        from slmq.cli.chat import converse

        sampling.pop("logprobs", None)
        opened = load_model(model, options, revision=revision, offline=offline, sampling=sampling)
        converse(opened, system, sampling, template, stats=stats)
        return
    text = read_prompt(prompt)
    with load_model(model, options, revision=revision, offline=offline, sampling=sampling) as m:
        system = None if system is None else as_typed(system)
        asked = prompt_for(m, text, system=system, raw=raw)
        if template is not None and isinstance(asked, str):
            reason = "--raw leaves it out" if raw else f"{m.name} has no chat template"
            raise ValueError(f"--chat-template-kwargs needs a chat template, but {reason}")
        params = {**m.suggested, **sampling}
        result = answer(m, asked, params, quiet=as_json, template=template)
        if as_json:
            print_json({"model": m.name, **as_dict(result, m.tokenizer)})
        if result.unenforced:
            note(f"not enforced of the schema: {', '.join(result.unenforced)}")
        if stats:
            show_stats(result)
        elif not as_json:
            explain_end(result, sampling)
    if result.finish_reason == "cancelled":
        raise typer.Exit(STOPPED)


def prompt_for(model: Model, text: str, *, system: str | None, raw: bool) -> Prompt:
    """Messages for a model with a chat template, the plain text for others.

    Raises
    ------
    ValueError
        If there is a system message and no template to put it in.
    """
    if not raw and model.tokenizer.chat_template is not None:
        messages = [] if system is None else [{"role": "system", "content": system}]
        return [*messages, {"role": "user", "content": text}]
    if system is not None:
        reason = "--raw leaves it out" if raw else f"{model.name} has no chat template"
        raise ValueError(f"--system needs a chat template, but {reason}")
    return text


def as_dict(result: GenerationResult, tokenizer: Tokenizer) -> dict[str, Any]:
    """The result as plain values, where the text of a token stands beside its id."""
    found = result.as_json()
    if result.logprobs is not None:
        found["logprobs"] = [
            {
                **_likely(tokenizer, entry.token, entry.logprob),
                "top": [_likely(tokenizer, *likely) for likely in entry.top],
            }
            for entry in result.logprobs
        ]
    return found


def _likely(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {"token": token, "text": tokenizer.decode([token]), "logprob": logprob}


def answer(
    model: Model,
    prompt: Prompt,
    params: dict[str, Any],
    *,
    quiet: bool,
    template: dict[str, Any] | None = None,
) -> GenerationResult:
    """Makes the answer and, unless `quiet`, writes it to stdout as it comes."""
    with Bar() as bar:
        stream = model.stream(
            prompt, progress=prompt_progress(bar), chat_template_kwargs=template, **params
        )
        return follow(stream, bar, quiet=quiet)


def follow(stream: TokenStream | ToolTurn, bar: Bar, *, quiet: bool = False) -> GenerationResult:
    """Reads a stream to its end or until Ctrl-C; `bar` goes when the first text comes.

    Text goes to stdout, and so do calls, a line of JSON each; reasoning goes to a terminal only.
    """
    watched = not quiet and sys.stderr.isatty()
    with cancel_on_interrupt(stream), stream:
        for chunk in stream:
            bar.close()
            if chunk.reasoning and watched:
                sys.stderr.write(f"\x1b[2m{chunk.reasoning}\x1b[0m")
                sys.stderr.flush()
            if chunk.text and not quiet:
                write(chunk.text)
            for call in () if quiet else chunk.tool_calls:
                write(json.dumps({"name": call.name, "arguments": call.arguments}) + "\n")
    assert stream.result is not None  # a stream that ended or was closed has one
    if not quiet and (stream.result.text or not stream.result.tool_calls):
        write("\n")
    return stream.result


def prompt_progress(bar: Bar) -> Any:
    """The `progress` of a stream that moves `bar` while a long prompt is read."""

    def progress(done: int, total: int) -> None:
        if done < total:
            bar.update("reading the prompt", done, total)
        else:
            bar.close()

    return progress


def explain_end(result: GenerationResult, given: Mapping[str, Any]) -> None:
    """Say that a limit which nobody asked for cut the answer."""
    if result.finish_reason == "length" and "max_tokens" not in given:
        note(f"(cut after {result.generated_tokens:,} tokens; --max-tokens -1 sets no limit)")


def show_stats(result: GenerationResult) -> None:
    """Speed and memory of an answer, to stderr."""
    cached = f" ({result.cached_tokens} cached)" if result.cached_tokens else ""
    parts = [
        f"prompt {result.prompt_tokens} tokens{cached}, {result.prompt_tps:.1f} tokens/s",
        f"answer {result.generated_tokens} tokens, {result.generation_tps:.1f} tokens/s",
        f"first token after {result.time_to_first_token:.2f} s",
        f"finish reason {result.finish_reason}",
    ]
    if result.seed is not None:
        parts.append(f"seed {result.seed}")
    if result.peak_memory_bytes is not None:
        parts.append(f"peak memory {readable_bytes(result.peak_memory_bytes)}")
    note("; ".join(parts))
