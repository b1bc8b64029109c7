"""`slmq chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq.cli import options as o
from slmq.cli.errors import one_line
from slmq.cli.loading import load_model
from slmq.cli.output import Bar, note
from slmq.cli.run import follow, prompt_progress, show_stats
from slmq.engine.options import LoadOptions
from slmq.errors import Error, TemplateError
from slmq.generation.params import SamplingParams

if TYPE_CHECKING:
    from slmq.generation.model import Model
    from slmq.generation.session import ChatSession

__all__ = ["chat"]

# Nobody is there to run calls.
WITHOUT = ("logprobs", "tools", "tool_choice", "parallel_tool_calls", "dialect")
SAMPLING = o.Bundle("sampling", SamplingParams, "Sampling", without=WITHOUT)
PROMPT = ">>> "
HISTORY_LINES = 1000
HELP = """\
/undo          forget the last question and its answer
/reset         forget the whole conversation
/system TEXT   start over with TEXT as the system message (without TEXT: with none)
/exit          quit (so does Ctrl-D)
//TEXT         send a message that starts with a slash
Ctrl-C         stop the answer"""


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
    loaded = load_model(model, LoadOptions(**loading), revision=revision, offline=offline)
    with loaded.model as m:
        if m.tokenizer.chat_template is None:
            raise TemplateError(
                f"{m.name} has no chat template; use `slmq run` to continue a text with it"
            )
        params = {**loaded.suggested, **sampling}
        talk = Conversation(m, system, params, stats=stats, template=template)
        with Lines() as lines:
            if lines.interactive:
                note(f"{m.name}; type /help for commands, press Ctrl-D to quit")
            while (line := lines.read()) is not None and talk.handle(line):
                pass


class Conversation:
    """What a line does: a command, or a turn of the chat."""

    def __init__(
        self,
        model: Model,
        system: str | None,
        params: dict[str, Any],
        *,
        stats: bool = False,
        template: dict[str, Any] | None = None,
    ) -> None:
        self._model = model
        self._params = params
        self._template = template
        self._stats = stats
        self._session: ChatSession = self._begin(system)

    def _begin(self, system: str | None) -> ChatSession:
        return self._model.chat(system, chat_template_kwargs=self._template, **self._params)

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
        try:
            with Bar() as bar:
                stream = self._session.stream(text, progress=prompt_progress(bar))
                result = follow(stream, bar)
        except (Error, ValueError) as error:
            note(f"slmq: {one_line(error)}")
            return
        if result.finish_reason == "cancelled":
            note("(stopped)")
        if self._stats:
            show_stats(result)


class Lines:
    """Lines that a person types, with readline and its history where there is one, or a pipe's."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        self._readline: Any = None

    def __enter__(self) -> Lines:
        if self.interactive and sys.stdout.isatty():
            with suppress(ImportError):
                import readline

                self._readline = readline
                readline.set_history_length(HISTORY_LINES)
                with suppress(OSError):
                    readline.read_history_file(history_file())
        return self

    def __exit__(self, *_: object) -> None:
        if self._readline is not None:
            with suppress(OSError):
                file = history_file()
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch(mode=0o600)  # what people type is theirs alone
                self._readline.write_history_file(file)

    def read(self) -> str | None:
        """The next line; None at the end of the input (Ctrl-D)."""
        while True:
            try:
                if self._readline is not None:
                    return input(PROMPT)
                if self.interactive:
                    sys.stderr.write(PROMPT)
                    sys.stderr.flush()
                line = sys.stdin.readline()
                return line.removesuffix("\n") if line else None
            except EOFError:
                sys.stderr.write("\n")
                return None
            except KeyboardInterrupt:
                # Ctrl-C between answers throws the line away that was begun.
                note("\n(press Ctrl-D or type /exit to quit)")


def history_file() -> Path:
    """Where the lines of earlier chats are kept."""
    from slmq.hub import cache_dir

    return cache_dir() / "chat_history"
