"""The environment that chat templates run in: as in `transformers`, and bounded.

Same options, same globals and filters as `transformers`, so that templates give the same text. On
top, whatever a template does is charged by `slmq.chat.meter` before it is done: what it calls and
reads is led through here, filters and tests through `slmq.chat.filters`, and the rest through
helpers that `slmq.chat.rewriting` puts into its syntax tree.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Namespace
from markupsafe import Markup

from slmq.chat.filters import metered_filters, metered_tests
from slmq.chat.meter import (
    ELEMENT,
    MAX_LENGTH,
    MAX_NUMBER_BITS,
    OPERATION,
    SCALARS,
    Meter,
    as_text,
    check_key,
    check_number,
    check_width,
    measure,
    size_of,
    spend,
    turns,
)
from slmq.chat.methods import ESCAPED, RULES, call_method, charge_percent, formatter
from slmq.chat.rewriting import HELPERS, MeteredTree, check_tree, cost_of

__all__ = ["TemplateSandbox", "forget"]

MAX_TOKENS = 1 << 13  # of a source; public templates have some hundreds to a few thousand
MAX_NUMERAL = 5000  # digits in a source: reading them takes jinja2 hundreds of bytes each
NUMERAL = re.compile("[0-9A-Fa-f_]+")
MAX_MESSAGE = 4000  # characters that a template may say when it refuses
CALL = 8 * OPERATION  # of a macro, and what is like it: five calls in Python
OF_MAPPINGS = frozenset(dir(dict))
DATA = {"real", "imag", "numerator", "denominator", "start", "stop", "step"}
GROUP = {"grouper", "list"}
LARGE = 1 << MAX_NUMBER_BITS


class PlainGenerator(CodeGenerator):
    """Leaves every expression to the rendering, where it is charged."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData | nodes.Const):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


def output(value: Any) -> Any:
    """Charge what is written out: the part, and its place in a text that may be wide."""
    if type(value) is str:
        spend(OPERATION + 4 * len(value))
        return value
    text = as_text(value)
    spend(OPERATION + 4 * len(text))
    return text


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """A jinja2 environment for templates from strangers."""

    intercepted_binops = frozenset({"+", "-", "*", "**", "%"})
    code_generator_class = PlainGenerator

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, loopcontrols],
            optimized=False,
            finalize=output,
        )
        self.filters = {**metered_filters(), **HELPERS}
        self.tests = metered_tests()
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": raise_exception,
            "strftime_now": strftime_now,
            "dict": TemplateDict(),
            "namespace": TemplateNamespace,
        }

    # What a template reads ------------------------------------------------------------------

    def getattr(self, obj: Any, attribute: str) -> Any:
        """``obj.attribute``: a method that the table allows, or a key."""
        kind = type(obj)
        if kind is dict and attribute not in OF_MAPPINGS:
            if attribute in obj:
                return obj[attribute]
            spend(2 * OPERATION)
            return self.undefined(obj=obj, name=attribute)
        rules = RULES.get(kind)
        if rules is None:
            return self._attribute_of_ours(obj, attribute)
        if attribute in rules or attribute in DATA:
            value = getattr(obj, attribute, None)
            if value is not None:
                return formatter(self, value) or value
        elif hasattr(kind, attribute):
            return self.unsafe_undefined(obj, attribute)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``obj[argument]``: a key or a place, or else an attribute."""
        if isinstance(obj, dict):
            check_key(argument)
        try:
            return obj[argument]
        except (TypeError, LookupError):
            spend(CALL)
            if isinstance(argument, str):
                return self.getattr(obj, str(argument))
        # The name is written out where the template uses what is not there.
        known = type(argument) in SCALARS or isinstance(argument, Undefined)
        return self.undefined(obj=obj, name=argument if known else type(argument).__name__)

    def _attribute_of_ours(self, obj: Any, attribute: str) -> Any:
        if type(obj) in OURS:
            return super().getattr(obj, attribute)
        if isinstance(obj, tuple):  # of groupby, with names
            if attribute in GROUP or attribute in RULES[tuple]:
                return getattr(obj, attribute, None)
        elif not hasattr(obj, attribute):
            try:
                return obj[attribute]
            except (TypeError, LookupError):
                return self.undefined(obj=obj, name=attribute)
        return self.unsafe_undefined(obj, attribute)

    # What it does ---------------------------------------------------------------------------

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Charge an operator, then let it work."""
        if operator == "+" and type(left) is str and type(right) is str:
            spend(size_of(left, right))
            return left + right
        charge_operator(operator, left, right)
        result = self.binop_table[operator](left, right)
        if type(result) is int and not -LARGE < result < LARGE:
            check_number(result)
        return result

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Charge a call of a function, method or macro, then let it work."""
        owner = getattr(obj, "__self__", None)
        if isinstance(obj, types.BuiltinMethodType) or isinstance(owner, Markup):
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return call_method(obj, args, kwargs)
        spend(CALL + ELEMENT * (len(args) + len(kwargs)))
        if isinstance(owner, LoopContext):  # loop.changed compares
            spend(sum(map(measure, args)))
        elif isinstance(obj, LoopContext):  # loop(...) of a recursive loop
            args = tuple(turns(values, self._turn) for values in args)
        return super().call(context, obj, *args, **kwargs)

    # Compiling ------------------------------------------------------------------------------

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if any(len(run) > MAX_NUMERAL for run in NUMERAL.findall(source)):
            raise TemplateSyntaxError(f"more than {MAX_NUMERAL} digits in a row", 1)
        for count, (line, _, _) in enumerate(self.lexer.tokeniter(source, name, filename)):
            if count > MAX_TOKENS:
                raise TemplateSyntaxError(f"more than {MAX_TOKENS} words and signs", line)
        tree = super()._parse(source, name, filename)
        check_tree(tree)
        self._turn = cost_of(tree)
        MeteredTree(self).visit(tree)
        return tree


def charge_operator(operator: str, left: Any, right: Any) -> None:
    """Charge ``left operator right`` by what the two are."""
    if operator == "*":
        charge_product(left, right)
    elif operator == "%" and isinstance(left, str):
        charge_percent(left, right)
        spend(OPERATION)
    elif operator == "**":
        charge_power(left, right)
    elif isinstance(left, str) and isinstance(right, str):  # one of them marked as safe
        spend(ESCAPED * size_of(left, right))
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        spend(OPERATION + 8 * (len(left) + len(right)))
    else:
        check_number(left)
        check_number(right)


def charge_product(left: Any, right: Any) -> None:
    """Charge ``left * right``: a sequence made longer, or two numbers."""
    count, sequence = (left, right) if isinstance(left, int) else (right, left)
    if isinstance(sequence, str) and isinstance(count, int):
        length = len(sequence) * max(count, 0)
        if length > MAX_LENGTH:
            raise SecurityError(f"a text of {length} characters, expected at most {MAX_LENGTH}")
        spend(OPERATION + (length if sequence.isascii() else 4 * length))
    elif isinstance(sequence, list | tuple) and isinstance(count, int):
        spend(OPERATION + 8 * len(sequence) * max(count, 0))
    elif isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() + right.bit_length())


def charge_power(left: Any, right: Any) -> None:
    """Refuse ``left ** right`` that is a huge whole number."""
    whole = isinstance(left, int) and isinstance(right, int)
    check_bits(left.bit_length() * abs(right) if whole else 0)


def check_bits(bits: int) -> None:
    """Refuse a number before it is made."""
    if bits > MAX_NUMBER_BITS:
        raise SecurityError(f"a number of {bits} bits, expected at most {MAX_NUMBER_BITS}")


def raise_exception(message: str) -> None:
    """Let a template refuse its messages."""
    raise TemplateError(as_text(message)[:MAX_MESSAGE])


def strftime_now(template: str) -> str:
    """Today, written as a template wants it."""
    check_width(template)  # the C library knows formats of any width, and widens for a while
    return datetime.now().strftime(template)


class TemplateDict:
    """``dict(...)`` without the attributes of the type; what it takes over is charged."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        if len(args) > 1:
            raise TypeError(f"dict expected at most 1 argument, got {len(args)}")
        return made_of(args[0] if args else (), kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """Make a dict of keys that all have one value."""
        found = {}
        for key in turns(keys, 2 * ELEMENT):
            check_key(key)
            found[key] = value
        return found


def made_of(entries: Any, named: Mapping[str, Any]) -> dict[Any, Any]:
    """A dict of entries or of another mapping, one by one, so that every key can be checked."""
    found: dict[Any, Any] = {}
    if isinstance(entries, Mapping):
        entries = entries.items()
    for entry in turns(entries, 2 * ELEMENT):
        key, value = entry
        check_key(key)
        found[key] = value
    return found | dict(named)


class TemplateNamespace(Namespace):
    """``namespace(...)`` without underscored names, which could lead to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no named self, for namespace(self=...)
        self, *rest = args
        if len(rest) > 1:
            raise TypeError(f"namespace expected at most 1 argument, got {len(rest)}")
        values = made_of(rest[0] if rest else (), kwargs)
        for name in values:
            check_name(name)
        Namespace.__init__(self, values)
        Meter.current.get().namespaces.append(self)

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(name)
        super().__setitem__(name, value)


def forget(context: Context, namespaces: Iterable[Namespace]) -> None:
    """Let go of what a template has made, which macros and namespaces hold in circles."""
    context.vars.clear()
    for namespace in namespaces:
        object.__getattribute__(namespace, "_Namespace__attrs").clear()


def check_name(name: Any) -> None:
    """Refuse names that begin with an underscore."""
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"the name {name!r:.80} starts with an underscore")


OURS = {TemplateNamespace, TemplateDict, LoopContext, Macro, Cycler, Undefined}
"""Types of objects whose attributes jinja2 guards well enough: none leads to anything large."""


class GenerationTag(Extension):
    """``{% generation %}...{% endgeneration %}`` marks the assistant's part; here it is inert."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """Keep what stands between the tags."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()
