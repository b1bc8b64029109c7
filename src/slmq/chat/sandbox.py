"""The environment that chat templates run in: as in `transformers`, and bounded.

Same options, same globals and filters as `transformers`, so that templates give the same text. On
top, every place where a template can repeat or grow is led through `slmq.tokenizer.meter`: loops
and slices by rewriting the syntax tree, operators, calls and filters by wrapping them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from slmq.chat import meter

__all__ = ["TemplateSandbox"]

PADDING_METHODS = {"center", "ljust", "rjust", "zfill"}
PADDING_FILTERS = {"batch", "center", "indent", "slice", "tojson"}
# Filters that turn what they get into text, however deep it is nested.
TEXT_FILTERS = {
    "capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower", "pprint",
    "replace", "string", "striptags", "title", "tojson", "trim", "truncate", "upper", "urlencode",
    "urlize", "wordcount", "wordwrap", "xmlattr",
}  # fmt: skip
# Ways to grow that no template needs; encode leads to bytes, whose methods are not metered.
CLOSED_ATTRIBUTES = {"encode", "expandtabs", "format_map", "maketrans", "to_bytes", "translate"}


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """A jinja2 environment for templates from strangers."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, loopcontrols],
            finalize=meter.charge_text,
        )
        self._fixed_text = 0
        self.filters["tojson"] = tojson
        self.filters = {name: metered(name, f) for name, f in self.filters.items()}
        self.filters |= {"_turns": meter.turns, "_text": meter.charge_text}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": raise_exception,
            "strftime_now": strftime_now,
            "dict": TemplateDict(),
            "namespace": TemplateNamespace,
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute."""
        if attr in CLOSED_ATTRIBUTES and isinstance(obj, str | int | float):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Charge an operator, then let it work."""
        if operator == "*":
            meter.charge_product(left, right)
        elif operator == "**":
            meter.charge_power(left, right)
        elif operator == "%" and isinstance(left, str):
            meter.check_format(left, meter.PERCENT_WIDTH)
            meter.charge_text(right)
        elif isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            meter.charge(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Charge a call of a function, method or macro, then let it work."""
        if isinstance(obj, Macro):
            meter.charge(self._fixed_text)
        else:
            method = getattr(obj, "__wrapped__", obj)  # jinja2 wraps str.format
            if isinstance(text := getattr(method, "__self__", None), str):
                args = charge_method(text, method.__name__, args, kwargs)
        return meter.charge_result(super().call(context, obj, *args, **kwargs))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        self._fixed_text = max(self._fixed_text, fixed_text(tree))
        MeteredTree(self).visit(tree)
        return tree


class MeteredTree(NodeTransformer):
    """Puts the meter around loops, concatenations and slices."""

    def __init__(self, environment: TemplateSandbox) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        """Charge each turn with the fixed text that it can write."""
        length = nodes.Const(fixed_text(node))
        self.generic_visit(node)
        node.iter = self._filter("_turns", node.iter, length)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """Charge every part of ``a ~ b``."""
        self.generic_visit(node)
        node.nodes = [self._filter("_text", part) for part in node.nodes]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        """Charge what ``a[1:]`` copies."""
        self.generic_visit(node)
        return self._filter("_text", node) if isinstance(node.arg, nodes.Slice) else node

    def _filter(self, name: str, value: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
        node = nodes.Filter(value, name, list(args), [], None, None)
        node.set_lineno(value.lineno).set_environment(self._environment)
        return node


def fixed_text(tree: nodes.Node) -> int:
    """Characters that a part of a template holds as such."""
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return sum(map(len, texts))


def metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that is charged before and after."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # the value comes after the context

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        value, others = args[first], args[first + 1 :]
        if name in TEXT_FILTERS:
            meter.charge_text(value)
        if name in PADDING_FILTERS:
            meter.check_widths([*others, *kwargs.values()])
        if name == "format":
            meter.check_format(str(value), meter.PERCENT_WIDTH)
            meter.charge_text([*others, *kwargs.values()])
        elif name == "replace":
            meter.charge_replace(str(value), *map(str, others[:2]))
        elif name == "join":
            value = list(value)  # it may be a generator, and is then used up
            meter.charge_join(str(others[0] if others else kwargs.get("d", "")), value)
            args = (*args[:first], value, *others)
        return meter.charge_result(function(*args, **kwargs))

    return wrapper


def charge_method(
    text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """Charge a method of a string; return its arguments."""
    if name in PADDING_METHODS:
        meter.check_widths([*args, *kwargs.values()])
    elif name == "format":
        meter.check_format(text, meter.BRACE_WIDTH)
        meter.charge_text([*args, *kwargs.values()])
    elif name == "replace" and len(args) >= 2:
        meter.charge_replace(text, str(args[0]), str(args[1]))
    elif name == "join" and args:
        items = list(args[0])
        meter.charge_join(text, items)
        return (items,)
    return args


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; jinja2's own filter escapes HTML characters."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message: str) -> None:
    """Let a template refuse its messages."""
    raise TemplateError(message)


def strftime_now(template: str) -> str:
    """Today, written as a template wants it."""
    meter.check_format(template, meter.PERCENT_WIDTH)
    return datetime.now().strftime(template)


class TemplateDict:
    """``dict(...)`` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Make a dict of keys that all have one value."""
        return dict.fromkeys(*args)


class TemplateNamespace(Namespace):
    """``namespace(...)`` without underscored names, which could lead to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no named self, for namespace(self=...)
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(name)
        super().__setitem__(name, value)


def check_name(name: Any) -> None:
    """Refuse names that begin with an underscore."""
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"the name {name!r:.80} starts with an underscore")


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
