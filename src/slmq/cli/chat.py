"""`slmq chat`: a conversation in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slmq.cli import options as o
from slmq.cli.errors import one_line
from slmq.cli.fitting import better_model
from slmq.cli.lines import Lines
from slmq.cli.loading import load_model
from slmq.cli.output import Bar, note
from slmq.cli.run import explain_end, follow, prompt_progress, show_stats
from slmq.engine.options import LoadOptions
from slmq.errors import Error, TemplateError
from slmq.generation.params import SamplingParams

if TYPE_CHECKING:
    from slmq.generation.model import Model
    from slmq.generation.session import ChatSession

__all__ = ["chat", "converse"]

# Nobody is there to run calls.
WITHOUT = ("logprobs", "tools", "tool_choice", "parallel_tool_calls", "dialect")
SAMPLING = o.Bundle("sampling", SamplingParams, "Sampling", without=WITHOUT)
HELP = '''\
/undo          forget the last question and its answer
/reset         forget the whole conversation
/system TEXT   start over with TEXT as the system message (without TEXT: with none)
/exit          quit (so does Ctrl-D)
//TEXT         send a message that starts with a slash
"""            begin a message of several lines; another """ ends it (pasted lines are one message)
Ctrl-C         stop the answer'''


@SAMPLING
@o.LOADING
def chat(
    model: o.ModelName,
    *,
    system: o.System = None,
    chat_template_kwargs: o.TemplateKwargs = None,
    sampling: o.Given,
    loading: o.Given,
    revision: o.Revision = None,
    offline: o.Offline = False,
    stats: o.Stats = False,
) -> None:
    """Chat with a model; /help lists the commands.

    Messages may also come from a pipe, one per line. Answers go to stdout, everything else to
    stderr.
    """
    template = o.template_kwargs(chat_template_kwargs)
    options = LoadOptions(**loading)
    opened = load_model(model, options, revision=revision, offline=offline, sampling=sampling)
    converse(opened, system, sampling, template, stats=stats)


def converse(
    model: Model,
    system: str | None,
    sampling: dict[str, Any],
    template: dict[str, Any] | None,
    *,
    stats: bool,
) -> None:
    """Talk until the input ends, then close the model."""
    with model as m:
        if m.tokenizer.chat_template is None:
            raise TemplateError(
                f"{m.name} has no chat template; use `slmq run` to continue a text with it"
            )
        talk = Conversation(m, system, sampling, stats=stats, template=template)
        with Lines() as lines:
            if lines.interactive:
                note(greeting(m))
            while (line := lines.read()) is not None and talk.handle(line):
                pass


def greeting(model: Model) -> str:
    """What a person reads first: how to leave, and which model is better if this is a weak one."""
    text = f"{model.name}; type /help for commands, press Ctrl-D to quit"
    better = better_model(model)
    return text if better is None else f"{text}\nThis is a very small model. Better: {better}"


class Conversation:
    """What a line does: a command, or a turn of the chat."""

    def __init__(
        self,
        model: Model,
        system: str | None,
        given: dict[str, Any],
        *,
        stats: bool = False,
        template: dict[str, Any] | None = None,
    ) -> None:
        self._model = model
        self._given = given
        self._template = template
        self._stats = stats
        self._session: ChatSession = self._begin(system)

    def _begin(self, system: str | None) -> ChatSession:
        params = {**self._model.suggested, **self._given}
        return self._model.chat(system, forget=True, chat_template_kwargs=self._template, **params)

    def handle(self, line: str) -> bool:
        """Do what a line asks; False when it asks to quit."""
        text = line.strip()
        if not text:
            return True
        if text.startswith("//"):
            self._say(text[1:])
        elif text.startswith("/"):
            return self._command(*text[1:].partition(" ")[::2])
        else:
            self._say(line)
        return True

    def _command(self, name: str, rest: str) -> bool:
        if name in ("exit", "quit", "bye"):
            return False
        if name == "undo":
            note("forgot the last turn" if self._session.undo() else "there is nothing to forget")
        elif name == "reset":
            self._session.reset()
            note("forgot the whole conversation")
        elif name == "system":
            self._session.close()
            self._session = self._begin(rest.strip() or None)
            about = "with the new" if rest.strip() else "without a"
            note(f"started over {about} system message")
        elif name in ("help", "?"):
            note(HELP)
        else:
            note(
                f"unknown command /{name}; /help lists the commands, and // starts a message "
                "with a slash"
            )
        return True

    def _say(self, text: str) -> None:
        """One turn; an error is reported and leaves the conversation as it was."""
        before = self._session.forgotten
        try:
            with Bar() as bar:
                stream = self._session.stream(text, progress=prompt_progress(bar))
                result = follow(stream, bar)
        except (Error, ValueError) as error:
            note(f"slmq: {one_line(error)}")
            return
        if result.finish_reason == "cancelled":
            note("(stopped)")
        explain_end(result, self._given)
        forgotten = self._session.forgotten - before
        if forgotten:
            turns = "turn" if forgotten == 1 else f"{forgotten} turns"
            note(
                f"(forgot the oldest {turns}: the context of {self._model.n_ctx:,} tokens is full; "
                "--n-ctx sets its size)"
            )
        if self._stats:
            show_stats(result)
