"""Sequences that are kept: what a new prompt shares with any of them is not computed again.

A radix tree over tokens (Morrison, "PATRICIA", 1968): an edge holds a run of tokens, a node may
hold a kept sequence. The longest common prefix with everything that is kept is one walk from the
root, whatever token it ends at, because a sequence can be forked anywhere.

What goes first is decided as by GreedyDual-Size (Cao and Irani, 1997): every entry carries the
clock of its last use plus the seconds that computing it again would take, per byte; the least goes,
and the clock moves up to it. So age and cost are weighed by one number.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from slmq.engine.sequence import TokenSequence, common_length

I32 = npt.NDArray[np.int32]

__all__ = ["PrefixStore"]


@dataclass(eq=False)
class _Node:
    """A place in the tree: the tokens that lead here from its parent, and what is kept here."""

    edge: I32
    parent: _Node | None
    children: dict[int, _Node] = field(default_factory=dict)
    entry: TokenSequence | None = None
    worth: float = 0.0  # clock of the last use, and seconds of computing per byte


class PrefixStore:
    """Kept sequences, by what they begin with.

    Callers with different salts never see each other's; what changes keys and values (an adapter)
    belongs into the salt, too. Not safe for several threads: its owner has a lock.
    """

    def __init__(self) -> None:
        self._roots: dict[Hashable, _Node] = {}
        self._nodes: dict[TokenSequence, _Node] = {}
        self._clock = 0.0
        self.pages = 0  # of all that is kept; one that several share counts for each

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, sequence: object) -> bool:
        return sequence in self._nodes

    @property
    def sequences(self) -> list[TokenSequence]:
        """What is kept, in no particular order."""
        return list(self._nodes)

    def longest(self, salt: Hashable, ids: I32) -> tuple[TokenSequence | None, int]:
        """A sequence that begins most like `ids`, and how many tokens a fork of it takes over."""
        node = self._roots.get(salt)
        if node is None:
            return None, 0
        shared = 0
        while shared < len(ids):
            child = node.children.get(int(ids[shared]))
            if child is None:
                break
            step = common_length(child.edge, ids[shared:])
            shared += step
            node = child
            if step < len(child.edge):
                break
        if shared == 0:
            return None, 0
        found = _below(node)
        shared = 0 if found is None else found.kept(shared)
        return (found, shared) if shared else (None, 0)

    def use(self, sequence: TokenSequence, cost: float) -> None:
        """Note that a sequence was of use; `cost`: seconds to compute it, per byte."""
        self._nodes[sequence].worth = self._clock + cost

    def insert(self, salt: Hashable, sequence: TokenSequence, cost: float) -> None:
        """Keep a sequence; those that it continues are given back, and so is an equal one."""
        ids = np.array(sequence.tokens, np.int32)
        if len(ids) == 0:
            sequence.close()
            return
        node = self._roots.setdefault(salt, _Node(np.empty(0, np.int32), None))
        at = 0
        while at < len(ids):
            self._forget(node)
            child = node.children.get(int(ids[at]))
            if child is None:
                node = self._grow(node, ids[at:])
                break
            step = common_length(child.edge, ids[at:])
            at += step
            if step < len(child.edge):
                if at == len(ids):
                    sequence.close()  # another continues it
                    return
                child = self._split(child, step)
            node = child
        if node.children or node.entry is not None:
            sequence.close()
            return
        node.entry = sequence
        node.worth = self._clock + cost
        self._nodes[sequence] = node
        self.pages += sequence.pages

    def evict(self) -> bool:
        """Give back the sequence that is worth least; False if none is kept."""
        if not self._nodes:
            return False
        node = min(self._nodes.values(), key=lambda n: n.worth)
        self._clock = max(self._clock, node.worth)
        self._remove(node)
        return True

    def clear(self) -> None:
        """Give everything back."""
        for sequence in self._nodes:
            sequence.close()
        self._nodes.clear()
        self._roots.clear()
        self.pages = 0

    def _forget(self, node: _Node) -> None:
        """Give back the sequence at a node, if there is one; the node stays."""
        if node.entry is not None:
            del self._nodes[node.entry]
            self.pages -= node.entry.pages
            node.entry.close()
            node.entry = None

    def _remove(self, node: _Node) -> None:
        """Give back a leaf, and drop the nodes that led to nothing else."""
        self._forget(node)
        while node.parent is not None and not node.children and node.entry is None:
            parent = node.parent
            del parent.children[int(node.edge[0])]
            node = parent
        if node.parent is not None and len(node.children) == 1 and node.entry is None:
            self._join(node)
        elif node.parent is None and not node.children:
            self._roots = {salt: root for salt, root in self._roots.items() if root is not node}

    @staticmethod
    def _grow(parent: _Node, edge: I32) -> _Node:
        """The node that `edge` leads to; one that leads to nothing else is moved there."""
        if parent.parent is not None and not parent.children:
            parent.edge = np.concatenate([parent.edge, edge])
            return parent
        node = _Node(edge, parent)
        parent.children[int(edge[0])] = node
        return node

    @staticmethod
    def _split(node: _Node, at: int) -> _Node:
        """A node within the edge that leads to `node`."""
        assert node.parent is not None
        middle = _Node(node.edge[:at], node.parent)
        node.parent.children[int(node.edge[0])] = middle
        node.edge, node.parent = node.edge[at:], middle
        middle.children[int(node.edge[0])] = node
        return middle

    @staticmethod
    def _join(node: _Node) -> None:
        """Take out a node that only leads on."""
        assert node.parent is not None
        (child,) = node.children.values()
        child.edge = np.concatenate([node.edge, child.edge])
        child.parent = node.parent
        node.parent.children[int(child.edge[0])] = child


def _below(node: _Node) -> TokenSequence | None:
    """Any sequence at a node or below it."""
    while node.entry is None:
        if not node.children:
            return None
        node = next(iter(node.children.values()))
    return node.entry
