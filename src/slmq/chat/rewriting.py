"""The syntax tree of a template, rewritten so that every part of it is charged when it runs.

What jinja2 compiles into plain Python, and no method of the environment sees, becomes a filter of
ours: comparisons, ``in``, ``~``, slices, loops, arguments with a star. What costs the same each
time it runs, such as fixed text and the nodes themselves, is added up beforehand and charged where
its block begins.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.runtime import Context
from jinja2.utils import pass_context
from jinja2.visitor import NodeTransformer

from slmq.chat.filters import charge_in
from slmq.chat.meter import (
    ELEMENT,
    MAX_NUMBER_BITS,
    MAX_WIDTH,
    OPERATION,
    as_text,
    check_key,
    check_width,
    compared,
    listed,
    size_of,
    spend,
    turns,
)

__all__ = ["HELPERS", "MeteredTree", "check_tree", "cost_of"]

NODE_COST = 24  # units of a node of the tree that runs: a name, a call, an assignment
BLOCK = 1024  # units from which a branch is charged by itself, when it is taken
REFUSED: dict[type[nodes.Node], str] = {
    nodes.Include: "include", nodes.Import: "import", nodes.FromImport: "import",
    nodes.Extends: "extends", nodes.EvalContextModifier: "autoescape",
    nodes.ScopedEvalContextModifier: "autoescape",
}  # fmt: skip
OWN_BLOCKS = (nodes.Macro, nodes.CallBlock, nodes.Block)


# What the rewritten tree calls ----------------------------------------------------------------


@pass_context
def spent(context: Context, units: int) -> None:
    """Charge a block that is about to run. With a context, the compiler cannot do it once."""
    spend(units)


def compare(charge: Callable[[Any, Any], None], test: Callable[[Any, Any], Any]) -> Any:
    """A comparison, charged."""

    def compare(left: Any, right: Any) -> Any:
        charge(left, right)
        return test(left, right)

    return compare


def within(wanted: Any, values: Any) -> bool:
    """``wanted in values``."""
    return wanted in values


def without(wanted: Any, values: Any) -> bool:
    """``wanted not in values``."""
    return wanted not in values


COMPARISONS = {
    "eq": compare(compared, operator.eq), "ne": compare(compared, operator.ne),
    "gt": compare(compared, operator.gt), "gteq": compare(compared, operator.ge),
    "lt": compare(compared, operator.lt), "lteq": compare(compared, operator.le),
    "in": compare(charge_in, within), "notin": compare(charge_in, without),
}  # fmt: skip


def key(value: Any) -> Any:
    """A key of ``{key: value}``."""
    check_key(value)
    return value


def concatenated(*parts: Any) -> str:
    """``a ~ b``."""
    texts = list(map(as_text, parts))
    spend(size_of(*texts))
    return "".join(texts)


def cut(value: Any, start: Any, stop: Any, step: Any) -> Any:
    """``value[start:stop:step]``."""
    part = slice(start, stop, step)
    if isinstance(value, str | list | tuple):
        length = len(range(*part.indices(len(value))))
        if isinstance(value, str):
            spend(OPERATION + (length if value.isascii() else 4 * length))
        else:
            spend(OPERATION + 8 * length)
    return value[part]


def arguments(values: Any) -> Any:
    """``*values`` or ``**values`` of a call."""
    if isinstance(values, Mapping):
        check_width(len(values))
        spend(OPERATION + ELEMENT * len(values))
        return values
    values = listed(values)
    check_width(len(values))
    spend(OPERATION + 4 * 8 * len(values))
    return values


HELPERS: dict[str, Callable[..., Any]] = {
    **{f"_{name}": function for name, function in COMPARISONS.items()},
    "_arguments": arguments, "_cut": cut, "_joined": concatenated, "_key": key,
    "_spent": spent, "_turns": turns,
}  # fmt: skip


# The tree ---------------------------------------------------------------------------------------


def check_tree(tree: nodes.Template) -> None:
    """Refuse what a template of one file cannot use, and names that are ours."""
    stack: list[nodes.Node] = [tree]
    while stack:
        node = stack.pop()
        stack += node.iter_child_nodes()
        if type(node) in REFUSED:
            tag = REFUSED[type(node)]
            raise TemplateSyntaxError(f"a chat template may not use {tag!r}", node.lineno)
        if isinstance(node, nodes.Filter | nodes.Test) and node.name.startswith("_"):
            raise TemplateSyntaxError(f"No filter named {node.name!r:.80}.", node.lineno)
        if isinstance(node, nodes.Const) and isinstance(node.value, int):
            bits = node.value.bit_length()
            if bits > MAX_NUMBER_BITS:
                raise TemplateSyntaxError(f"a number of {bits} bits", node.lineno)


def cost_of(found: nodes.Node | Iterable[nodes.Node]) -> int:
    """Units of running some nodes once, without what is charged by itself."""
    total = 0
    stack = [found] if isinstance(found, nodes.Node) else list(found)
    while stack:
        node = stack.pop()
        total += NODE_COST
        if isinstance(node, nodes.TemplateData):
            total += ELEMENT + 4 * len(node.data)
        elif isinstance(node, nodes.Const) and isinstance(node.value, str):
            total += ELEMENT + 4 * len(node.value)
        elif isinstance(node, nodes.List | nodes.Tuple):
            total += ELEMENT + 16 * len(node.items)
        elif isinstance(node, nodes.Dict):
            total += 3 * ELEMENT + 2 * ELEMENT * len(node.items)
        if isinstance(node, nodes.For):
            stack += [node.iter, node.target, *node.else_]
        elif isinstance(node, nodes.If):
            costs = [cost_of(node.body), cost_of(node.else_)]
            total += sum(units for units in costs if units <= BLOCK)
            stack += [node.test, *node.elif_]
        elif not isinstance(node, OWN_BLOCKS):
            stack += node.iter_child_nodes()
    return total


class MeteredTree(NodeTransformer):
    """Puts the helpers into a tree."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def visit_Template(self, node: nodes.Template) -> nodes.Node:  # noqa: N802
        """Charge the template itself."""
        return self._charged(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        """Charge the body of a macro for each call."""
        return self._charged(node)

    visit_CallBlock = visit_Block = visit_Macro  # noqa: N815

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        """Charge each turn, with the test that the loop may have."""
        units = cost_of(node.body) + (cost_of(node.test) if node.test else 0)
        self.generic_visit(node)
        node.iter = self._filter("_turns", cast(nodes.Expr, node.iter), nodes.Const(units))
        return node

    def visit_If(self, node: nodes.If) -> nodes.Node:  # noqa: N802
        """Charge a branch that costs much when it is taken."""
        costs = [(body, cost_of(body)) for body in (node.body, node.else_)]
        self.generic_visit(node)
        for body, units in costs:
            if units > BLOCK:
                body.insert(0, self._charge(units, node.lineno))
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        """Charge comparisons, except with a constant, which are as short as it is."""
        short = is_short(node)
        self.generic_visit(node)
        if short:
            return node
        left = node.expr
        found: nodes.Expr | None = None
        for operand in node.ops:  # a < b < c is (a < b) and (b < c)
            test = self._filter(f"_{operand.op}", left, operand.expr)
            found = test if found is None else nodes.And(found, test, lineno=node.lineno)
            left = operand.expr
        return found or node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """Charge ``a ~ b``."""
        self.generic_visit(node)
        return self._filter("_joined", node.nodes[0], *node.nodes[1:])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        """Charge what ``a[1:]`` copies."""
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        part = node.arg
        ends = [end or nodes.Const(None) for end in (part.start, part.stop, part.step)]
        return self._filter("_cut", node.node, *ends)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        """Check the keys of ``{a: b}``."""
        self.generic_visit(node)
        for pair in node.items:
            if not isinstance(pair.key, nodes.Const):
                pair.key = self._filter("_key", pair.key)
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:  # noqa: N802
        """Charge arguments with a star."""
        self.generic_visit(node)
        for name in ("dyn_args", "dyn_kwargs"):
            if (values := getattr(node, name)) is not None:
                setattr(node, name, self._filter("_arguments", values))
        return node

    visit_Filter = visit_Test = visit_Call  # noqa: N815

    def _charged(self, node: Any) -> nodes.Node:
        units = cost_of(node.body)
        self.generic_visit(node)
        node.body.insert(0, self._charge(units, node.lineno))
        return node  # type: ignore[no-any-return]

    def _charge(self, units: int, line: int) -> nodes.Node:
        value: nodes.Expr = nodes.Const(units, lineno=line)
        return nodes.ExprStmt(self._filter("_spent", value)).set_lineno(line)

    def _filter(self, name: str, value: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
        node = nodes.Filter(value, name, list(args), [], None, None)
        node.set_lineno(value.lineno).set_environment(self._environment)
        return node


def is_short(node: nodes.Compare) -> bool:
    """Whether a comparison with a constant costs no more than the constant is long."""
    if len(node.ops) != 1:
        return False
    left, right, name = node.expr, node.ops[0].expr, node.ops[0].op
    if name in ("in", "notin"):
        return isinstance(right, nodes.List | nodes.Tuple) and all(map(is_small, right.items))
    return is_small(left) or is_small(right)


def is_small(node: nodes.Node) -> bool:
    """Whether a node is a constant that is no long text."""
    return isinstance(node, nodes.Const) and len(str(node.value)) <= MAX_WIDTH
