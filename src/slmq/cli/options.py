"""Options that several commands share; whole bundles of them are made of options dataclasses."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from slmq.cli.output import note
from slmq.engine.options import LoadOptions
from slmq.generation.params import SamplingParams
from slmq.settings import Option, option_of, written_hints

__all__ = [
    "LOADING",
    "MEASURING",
    "SAMPLING",
    "SERVING_ONLY",
    "THREADS",
    "Bundle",
    "Given",
    "Json",
    "MaybeModel",
    "ModelName",
    "Offline",
    "Revision",
    "Stats",
    "System",
    "TemplateKwargs",
    "template_kwargs",
]

SERVING_ONLY = ("kv_bytes", "draft")

# What was given of a bundle, by field name, checked.
Given = dict[str, Any]
Command = Callable[..., None]


def complete_model(incomplete: str) -> list[str]:
    """Names of the catalogue and of pulled models that begin like this, for the shell."""
    import slmq.hub as hub

    names = {*hub.catalogue(), *(model.name for model in hub.list_models())}
    return sorted(name for name in names if name.lower().startswith(incomplete.lower()))


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Catalogue name, hub id, folder or .gguf file.",
        autocompletion=complete_model,
    ),
]
MaybeModel = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="Catalogue name, hub id, folder or .gguf file.",
        autocompletion=complete_model,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
System = Annotated[str | None, typer.Option(help="System message.")]
TemplateKwargs = Annotated[
    str | None,
    typer.Option(
        "--chat-template-kwargs",
        metavar="JSON",
        help="Variables of the chat template, such as '{\"enable_thinking\": false}' for Qwen3.",
    ),
]
Stats = Annotated[bool, typer.Option("--stats", help="Print speed and memory to stderr.")]
Revision = Annotated[
    str | None,
    typer.Option(
        help="Revision (branch, tag or commit) of the hub repository.", rich_help_panel="Loading"
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Never use the network.", rich_help_panel="Loading")
]


def template_kwargs(given: str | None) -> dict[str, Any] | None:
    """The object of ``--chat-template-kwargs``; raises ValueError if it is none."""
    if given is None:
        return None
    try:
        found = json.loads(given)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"--chat-template-kwargs: expected a JSON object such as "
            f'{{"enable_thinking": false}}, got {given!r:.80}'
        )
    return found


@dataclass(frozen=True)
class Flag:
    """A field of an options dataclass on the command line.

    Attributes
    ----------
    field : str
    flag : str
        Such as "--kv-dtype".
    option : Option
    parameter : inspect.Parameter
        As typer reads it.
    former : str, optional
        Where this is an older name of the flag: its spelling.
    """

    field: str
    flag: str
    option: Option
    parameter: inspect.Parameter
    former: str | None = None


class Bundle:
    """The fields of an options dataclass as options of a command: a decorator.

    The command has one parameter, named `into`, whose place they take on the command line; it gets
    what was given of them, by field name, after the dataclass has checked it.

    Parameters
    ----------
    into : str
        The parameter of the command.
    kind : type
        The dataclass; its fields are made by `slmq.settings.option`.
    panel : str
        The heading in the help.
    only, without : tuple of str
        Names of the fields to take, if not all, and of those to leave out.
    group : str, optional
        Take only the fields of this group.
    suffix : str
        What follows every name: "_a" makes --format-a.
    about : str
        Instead of the help of the fields; {flag} is the flag without the suffix.
    """

    def __init__(
        self,
        into: str,
        kind: type,
        panel: str,
        *,
        only: tuple[str, ...] = (),
        without: tuple[str, ...] = (),
        group: str | None = None,
        suffix: str = "",
        about: str = "",
    ) -> None:
        self.into = into
        self._kind = kind
        hints = get_type_hints(kind)
        self._flags: list[Flag] = []
        for entry in fields(kind):
            option = option_of(entry)
            if entry.name in without or (only and entry.name not in only):
                continue
            if group is not None and option.group != group:
                continue
            plain = option.flag or _dashed(entry.name)
            flag = plain + suffix.replace("_", "-")
            name = entry.name + suffix
            text = about.format(flag=plain) if about else option.help
            shown = _parameter(name, flag, option, hints[entry.name], panel, text)
            self._flags.append(Flag(entry.name, flag, option, shown))
            if option.formerly is not None:
                name = option.formerly + suffix
                former = _dashed(name)
                hidden = inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=None,
                    annotation=Annotated[str | None, typer.Option(former, hidden=True)],
                )
                self._flags.append(Flag(entry.name, flag, option, hidden, former))

    def __call__(self, command: Command) -> Command:
        """The command with these options in the place of the parameter `into`."""
        hints = written_hints(command)
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.name == self.into:
                parameters += [flag.parameter for flag in self._flags]
            else:
                parameters.append(parameter.replace(annotation=hints[parameter.name]))

        def filled(**values: Any) -> None:
            mine = {flag.parameter.name: values.pop(flag.parameter.name) for flag in self._flags}
            command(**values, **{self.into: self.given(mine)})

        filled.__name__ = command.__name__
        filled.__doc__ = command.__doc__
        filled.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        filled.__annotations__ = {p.name: p.annotation for p in parameters}
        return filled

    def given(self, values: Mapping[str, Any]) -> Given:
        """What was given, by field name.

        Parameters
        ----------
        values : mapping
            Of the options by parameter name; None, False and an empty list were not given.

        Raises
        ------
        TypeError, ValueError
            If a value is refused; the message names its flag.
        """
        found: Given = {}
        try:
            for flag in self._flags:
                value = values[flag.parameter.name]
                if value is None or value is False or value == []:
                    continue
                if flag.field in found:
                    raise ValueError(f"{flag.field}: given twice")
                if flag.former is not None:
                    note(f"{flag.former} is now called {flag.flag}")
                parse = flag.option.parse
                found[flag.field] = value if parse is None else parse(value)
            self._kind(**found)
        except (TypeError, ValueError) as error:
            raise type(error)(self._with_flag(str(error))) from None
        return found

    def _with_flag(self, message: str) -> str:
        """A message about a field, about its flag."""
        for flag in self._flags:
            if message.startswith(flag.field):
                return flag.flag + message.removeprefix(flag.field)
        return message


def _parameter(
    name: str, flag: str, option: Option, hint: Any, panel: str, help: str
) -> inspect.Parameter:
    """A field as typer reads it."""
    words: tuple[str, ...] = ()
    kind = next((member for member in get_args(hint) if member is not NoneType), hint)
    if option.parse is not None:
        kind = list[str]
    elif get_origin(hint) is Literal or get_origin(kind) is Literal:
        words = get_args(hint if get_origin(hint) is Literal else kind)
        kind = str
    shown = typer.Option(
        flag,
        help=help,
        metavar=option.metavar or "|".join(words) or None,
        autocompletion=_completer(words) if words else None,
        rich_help_panel=panel,
    )
    default = False if kind is bool else None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind if kind is bool else kind | None, shown],
    )


def _completer(words: tuple[str, ...]) -> Callable[[str], list[str]]:
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


LOADING = Bundle("loading", LoadOptions, "Loading")
# Where a model is measured, not used.
MEASURING = Bundle("loading", LoadOptions, "Loading", without=SERVING_ONLY)
SAMPLING = Bundle("sampling", SamplingParams, "Sampling")
THREADS = Bundle("threads", LoadOptions, "Loading", only=("n_threads",))
