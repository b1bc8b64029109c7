"""From a question to what SQLite's full-text search is asked for.

Words of languages with blanks are looked for as words, by their stems; runs of Japanese, Chinese
and the like, which have no blanks, by every three characters of them.
"""

from __future__ import annotations

import re

__all__ = ["grams_query", "has_runs", "runs_of", "words_query"]

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


def words_query(text: str) -> str | None:
    """Any of the words of a text; None if there are none."""
    words = [word.replace("_", " ") for word in WORD.findall(RUN.sub(" ", text))]
    telling = [word for word in words if word.lower() not in SMALL] or words
    return _any(telling)


def grams_query(text: str) -> str | None:
    """Any three characters of the parts without blanks; None if no part is that long."""
    grams = [run[i : i + GRAM] for run in runs_of(text) for i in range(max(0, len(run) - GRAM + 1))]
    return _any(grams)


def _any(terms: list[str]) -> str | None:
    """An FTS5 query; terms are quoted, so that nothing in them is an operator."""
    quoted = ['"' + term.replace('"', '""') + '"' for term in dict.fromkeys(terms) if term.strip()]
    return " OR ".join(quoted) or None
