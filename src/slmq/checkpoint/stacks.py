"""Tensors that hold a matrix of every expert, cut into one tensor an expert."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from slmq.checkpoint.base import TensorInfo

if TYPE_CHECKING:
    from slmq.checkpoint.mapped import Span

__all__ = ["cut_stacks"]

MOST_EXPERTS = 4096


def cut_stacks(
    tensors: dict[str, TensorInfo], spans: dict[str, Span], stacks: re.Pattern[str]
) -> None:
    """Put the matrices of a stack, "NAME[0]" and so on, in the place of its tensor.

    A tensor is a stack if the pattern matches its whole name. Its bytes are those of its matrices,
    one behind the other.
    """
    for name in [name for name in tensors if stacks.fullmatch(name)]:
        info = tensors[name]
        if len(info.shape) < 2 or not 0 < info.shape[0] <= MOST_EXPERTS:
            continue
        count, (file, begin) = info.shape[0], spans.pop(name)
        del tensors[name]
        size = info.nbytes // count
        for i in range(count):
            part = f"{name}[{i}]"
            tensors[part] = replace(info, name=part, shape=info.shape[1:], nbytes=size)
            spans[part] = (file, begin + i * size)
