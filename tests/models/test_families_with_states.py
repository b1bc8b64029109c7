"""Every family with a state beside its cache: forks and truncations go on with the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from golden import golden_names, read_golden
from llama_files import build, feed

import slmq

FAMILIES = ("lfm2", "lfm2_moe", "qwen3_5_text")
CASES = [(family, name) for family in FAMILIES for name in golden_names(family)]
ISAS = [name for name, table in slmq.isa.items() if table is not None]
PAGE, CUT = 64, 69  # states are kept at page ends, and before and behind the last run


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("family", "name"), CASES)
def test_states_come_back(family: str, name: str, isa: str) -> None:
    golden = read_golden(family, name)
    tokens = [*golden.tokens[0], *golden.tokens[1]][:100]
    plan: Any = build(golden.folder, isa=isa, format=None, kv_dtype="f16", threads=2)
    assert plan.native.state_bytes > 0
    assert plan.native.state_interval == PAGE
    whole = feed(plan, plan.cache.sequence(), tokens)
    for length in (0, PAGE, CUT, len(tokens)):
        sequence = plan.cache.sequence()
        feed(plan, sequence, tokens, cuts=[CUT])
        assert sequence.kept(length) == length
        fork = sequence.fork(length)
        feed(plan, sequence, tokens[:20])  # which the fork does not notice
        sequence.truncate(0)
        feed(plan, sequence, tokens, cuts=[CUT])
        sequence.truncate(length)
        for one in (fork, sequence):
            if length < len(tokens):
                again = feed(plan, one, tokens[length:], cuts=[1, 7])
                assert np.array_equal(again, whole[length:]), length
        ends = [feed(plan, one, tokens[:3]) for one in (fork, sequence)]
        assert np.array_equal(*ends)
