"""A model's tokens, as the library of grammars reads them, and what was compiled for them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from slmq.errors import TokenizerError
from slmq.generation.constraints.faults import checked, left_out, library_faults
from slmq.generation.constraints.grammar import Grammar
from slmq.generation.constraints.matcher import Constraint

if TYPE_CHECKING:
    from slmq.tokenizer import Tokenizer

__all__ = ["Vocabulary"]

KEPT = 64  # compiled grammars
LIMITS = {
    "initial_lexer_fuel": 1_000_000,  # 20 ms of compiling
    "step_lexer_fuel": 200_000,  # 15 ms of one mask
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,  # about 2 kB each, for every answer
    "max_grammar_size": 500_000,
    "verbose_errors": False,
}
MARK = "\x02"  # before a text that is tokenized without the space that some tokenizers add


class Vocabulary:
    """Compiles grammars for one tokenizer; the latest are kept.

    Nothing is built before the first grammar. Any number of threads may use it.

    Parameters
    ----------
    tokenizer : Tokenizer
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: Any = None
        self._kept: OrderedDict[str, Constraint] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> Constraint:
        """What answers start from; costs milliseconds, the first time for a grammar.

        Raises
        ------
        ConstraintError
            If the grammar is wrong, or too complex.
        """
        with self._lock:
            found = self._kept.get(grammar.text)
            if found is not None:
                self._kept.move_to_end(grammar.text)
                return found
            if self._tokens is None:
                self._tokens = _tokens_of(self._tokenizer)
        compiled = self._compile(grammar)
        with self._lock:
            self._kept[grammar.text] = compiled
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return compiled

    def _compile(self, grammar: Grammar) -> Constraint:
        from llguidance import LLMatcher, LLParserLimits

        with library_faults(grammar.about):
            limits: Any = LLParserLimits(**LIMITS)  # type: ignore[arg-type]
            inner = LLMatcher(self._tokens, grammar.text, log_level=0, limits=limits)
            checked(inner, grammar.about, grammar.schema)
            ignored = left_out(inner.get_grammar_warnings())
        return Constraint(inner, self._tokenizer.n_vocab, grammar, ignored)


def _tokens_of(tokenizer: Tokenizer) -> Any:
    from llguidance import LLTokenizer

    ends = sorted(tokenizer.eos_ids) or [tokenizer.n_vocab]
    with library_faults("vocabulary"):
        return LLTokenizer(_Wrapped(tokenizer, ends[0]), eos_token=ends)  # type: ignore[arg-type]


class _Wrapped:
    """A tokenizer with the attributes that llguidance asks for.

    It has one token more than the model, without text: the end of models that have none.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = end
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]
        self.special_token_ids = sorted(tokenizer.special_ids | tokenizer.eos_ids)
        if end == tokenizer.n_vocab:
            self.special_token_ids.append(end)
        self.tokens.append(b"")
        self._single = {piece: i for i, piece in enumerate(self.tokens) if len(piece) == 1}
        for i in self.special_token_ids:
            self._single.pop(self.tokens[i], None)

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text that has to come, as the model would have it; exactly its bytes."""
        encode = self._tokenizer.encode
        wanted = text.encode("utf-8")
        for mark, most in (("", 0), (MARK, 3)):
            try:
                ids = encode(mark + text, add_special=False, parse_special=False)
            except TokenizerError:
                break
            for skipped in range(most + 1):
                if self._joined(ids[skipped:]) == wanted:
                    return ids[skipped:]
        return [self._single[bytes((byte,))] for byte in wanted]

    def _joined(self, ids: list[int]) -> bytes:
        return b"".join(self.tokens[i] for i in ids)
