"""From a question to what SQLite's full-text search is asked for.

Words of languages with blanks are looked for as words, by their stems; runs of Japanese, Chinese
and the like, which have no blanks, by every three characters of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["any_of", "gram_terms", "has_runs", "quoted", "runs_of", "word_terms"]

# Kana, ideographs, Thai, Lao, Khmer, Burmese; what stands between ideographs counts with them.
RUN = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff々〆〇\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]+"
)
WORD = re.compile(r"\w+", re.UNICODE)
GRAM = 3
# Words of a question that say nothing of what it is about.
SMALL_WORDS = """
a an and are as at be but by can did do does for from had has have how i if in into is it its me my
no not of on or our so than that the their them then there these they this to was we were what when
where which who whom whose why will with would you your
"""
SMALL = frozenset(SMALL_WORDS.split())


def runs_of(text: str) -> list[str]:
    """The parts of a text that are written without blanks."""
    return RUN.findall(text)


def has_runs(text: str) -> bool:
    """Whether a text has such parts."""
    return RUN.search(text) is not None


def word_terms(text: str) -> list[str]:
    """The words of a text that say something, each once."""
    words = [word.replace("_", " ").strip() for word in WORD.findall(RUN.sub(" ", text))]
    telling = [word for word in words if word.lower() not in SMALL] or words
    return list({word.lower(): word for word in telling if word}.values())


def gram_terms(text: str) -> list[str]:
    """Every three characters of the parts without blanks, each once; none of shorter parts."""
    grams = [run[i : i + GRAM] for run in runs_of(text) for i in range(max(0, len(run) - GRAM + 1))]
    return list(dict.fromkeys(grams))


def quoted(term: str) -> str:
    """A term as FTS5 takes it, so that nothing in it is an operator."""
    return '"' + term.replace('"', '""') + '"'


def any_of(terms: Sequence[str]) -> str:
    """What FTS5 is asked for any of some terms."""
    return " OR ".join(map(quoted, terms))
