"""Files ``tokenizer.json`` that multiply whatever a tokenizer can do, and what each of them takes.

A grammar writes steps that grow, chains of them, tokens that are many or long, frames that repeat
the text, tables that claim more than there is, and sections that stand twice or where nobody looks
for them. Each is loaded, and used if it loads.

``python tests/support/tokenizer_storm.py 10000`` runs as many, with the slowest and the largest at
the end; a second argument is the seed.
"""

from __future__ import annotations

import base64
import copy
import json
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

from byte_tokenizer import byte_tokenizer
from hypothesis import strategies as st
from storm import guard_memory, storm
from tokenizer_files import write_folder

from slmq.checkpoint import open_checkpoint
from slmq.errors import Error
from slmq.tokenizer import load_tokenizer

BASE: dict[str, Any] = json.loads(byte_tokenizer().to_str())
SIZES = [0, 1, 2, 3, 40, 64, 255, 257, 5000, 100_000, 2_000_000]
COUNTS = [1, 1, 2, 3, 7, 40, 65, 3000]
MAX_FILE = 8 << 20  # characters of a chain: more is a large file, and no multiplication
SIGNS = ["a", " ", "\u2581", "\u4e00", "\ufdfa", "\0", '"', "\\"]
NORMALIZERS = [
    "Replace", "Replace", "Prepend", "Precompiled", "NFKC", "NFD", "Lowercase", "Strip",
    "StripAccents", "Nmt", "BertNormalizer", "ByteLevel", "Unknown",
]  # fmt: skip
TEXTS = ["aaaa" * 500, "a b\u4e00\ufdfa " * 100, "a" * 3000 + "b", "<t1>" * 100, ""]


@st.composite
def texts(draw: st.DrawFn) -> str:
    """A text of one sign, of any length."""
    return draw(st.sampled_from(SIGNS)) * draw(st.sampled_from(SIZES))


@st.composite
def patterns(draw: st.DrawFn) -> dict[str, str]:
    """What a step looks for."""
    kinds = [
        "a",
        "aa",
        "",
        ".",
        "a*",
        "(a+)+$",
        "(a|a)*b",
        "(a|b|ab)*c",
        " {2,}",
        "\\b",
        "(?=a)",
        "[",
    ]
    if draw(st.booleans()):
        return {"String": draw(st.sampled_from(["a", "", " ", "aa"])) or draw(texts())}
    return {"Regex": draw(st.sampled_from(kinds))}


@st.composite
def charsmaps(draw: st.DrawFn) -> str:
    """Compiled rules: a size that is claimed, a table, and what is written."""
    table = draw(st.binary(max_size=64)) * draw(st.sampled_from([1, 4, 100]))
    rules = draw(st.sampled_from(SIGNS)).encode() * draw(st.sampled_from(SIZES[:9]))
    claimed = draw(st.sampled_from([len(table), 4, 8, 0, 1 << 31, (1 << 32) - 4, (1 << 32) - 1]))
    return base64.b64encode(struct.pack("<I", claimed) + table + rules).decode()


@st.composite
def normalizers(draw: st.DrawFn) -> dict[str, Any]:
    """One step of a normalizer."""
    kind = draw(st.sampled_from(NORMALIZERS))
    step: dict[str, Any] = {"type": kind}
    if kind == "Replace":
        step |= {"pattern": draw(patterns()), "content": draw(texts())}
    elif kind == "Prepend":
        step |= {"prepend": draw(texts())}
    elif kind == "Precompiled":
        step |= {"precompiled_charsmap": draw(charsmaps())}
    elif kind == "Strip":
        step |= {"strip_left": True, "strip_right": True}
    elif kind == "BertNormalizer":
        step |= dict.fromkeys(("clean_text", "handle_chinese_chars", "lowercase"), True)
        step |= {"strip_accents": None}
    return step


@st.composite
def pre_tokenizers(draw: st.DrawFn) -> dict[str, Any]:
    """One step of cutting."""
    kind = draw(st.sampled_from(["ByteLevel", "Metaspace", "Split", "Digits", "WhitespaceSplit"]))
    step: dict[str, Any] = {"type": kind}
    if kind == "ByteLevel":
        step |= {"add_prefix_space": True, "trim_offsets": True, "use_regex": draw(st.booleans())}
    elif kind == "Metaspace":
        scheme = draw(st.sampled_from(["always", "first", "never"]))
        step |= {"replacement": draw(st.sampled_from(SIGNS)), "prepend_scheme": scheme}
        step |= {"split": draw(st.booleans())}
    elif kind == "Split":
        behavior = draw(st.sampled_from(["Isolated", "Removed", "MergedWithNext", "Contiguous"]))
        step |= {"pattern": draw(patterns()), "behavior": behavior, "invert": draw(st.booleans())}
    elif kind == "Digits":
        step |= {"individual_digits": True}
    return step


@st.composite
def frames(draw: st.DrawFn) -> dict[str, Any]:
    """A post-processor: ids and the text, any number of times."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    special = {"SpecialToken": {"id": "x", "type_id": 0}}
    ids = [draw(st.sampled_from([0, 5, 10**6]))] * draw(st.sampled_from(SIZES[:9]))
    single = [special] * draw(st.sampled_from(SIZES[:9])) + [text] * draw(st.integers(0, 3))
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"x": {"id": "x", "ids": ids, "tokens": ["a"] * len(ids)}},
    }


@st.composite
def chains(draw: st.DrawFn, steps: st.SearchStrategy[Any], kind: str) -> Any:
    """A step, or a sequence of them, of which some stand there many times."""
    found = draw(st.lists(steps, min_size=1, max_size=3))
    times = draw(st.sampled_from(COUNTS))
    repeated = found * min(times, max(MAX_FILE // len(json.dumps(found)), 1))
    return found[0] if len(repeated) == 1 else {"type": "Sequence", kind: repeated}


@st.composite
def added_tokens(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Tokens that are many, or long."""
    count = draw(st.sampled_from([0, 1, 3, 2000]))
    text = draw(texts())[:100_000] if count < 10 else "t"
    flags = {
        name: draw(st.booleans()) for name in ("single_word", "lstrip", "rstrip", "normalized")
    }
    return [
        {"id": 300 + i, "content": f"<{text}{i}>", "special": i % 2 == 0, **flags}
        for i in range(count)
    ]


@st.composite
def files(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """The text of ``tokenizer.json``, and ``tokenizer_config.json``."""
    found = copy.deepcopy(BASE)
    sections = {
        "normalizer": chains(normalizers(), "normalizers"),
        "pre_tokenizer": chains(pre_tokenizers(), "pretokenizers"),
        "post_processor": chains(frames(), "processors"),
        "added_tokens": added_tokens(),
    }
    chosen = draw(st.lists(st.sampled_from(list(sections)), min_size=1, max_size=2, unique=True))
    for name in chosen:
        found[name] = draw(sections[name])
    if draw(st.integers(0, 5)) == 0:
        name = draw(
            st.sampled_from(["end_of_word_suffix", "continuing_subword_prefix", "unk_token"])
        )
        found["model"][name] = draw(texts())
    if draw(st.integers(0, 5)) == 0:
        scores = [["<unk>", 0.0], [draw(texts()), -1.0], ["a", -1.0]]
        found["model"] = {"type": "Unigram", "unk_id": 0, "vocab": scores, "byte_fallback": False}
    if draw(st.integers(0, 5)) == 0:
        found["decoder"] = {"type": "Sequence", "decoders": [found["decoder"]] * draw(
            st.sampled_from(COUNTS)
        )}  # fmt: skip
    text = json.dumps(found, ensure_ascii=draw(st.booleans()))
    place = draw(st.integers(0, 5))
    if place == 0:  # behind the model, under the same name or one that is spelled in another way
        name = draw(st.sampled_from(['"normalizer"', '"n\\u006frmalizer"', '"unknown"']))
        text = text[:-1] + f", {name}: {json.dumps(draw(chains(normalizers(), 'normalizers')))}}}"
    elif place == 1:
        text = text[: draw(st.integers(0, len(text)))]
    tokens = {str(token["id"]): token for token in draw(added_tokens())}
    return text, {"added_tokens_decoder": tokens} if draw(st.booleans()) else {}


def loaded(file: tuple[str, dict[str, Any]]) -> str:
    """Load a tokenizer and use it; every refusal is an error of ours."""
    text, config = file
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Any] = {"tokenizer.json": text, "tokenizer_config.json": config}
        path = write_folder(Path(folder) / "model", files)
        try:
            with open_checkpoint(path) as checkpoint:
                tokenizer = load_tokenizer(checkpoint)
        except Error as e:
            return f"{type(e).__name__}: {e!s:.200}"
        for prompt in TEXTS:
            try:
                tokenizer.decode(tokenizer.encode(prompt))
            except Error as e:
                outcomes.append(f"{type(e).__name__}: {e!s:.200}")
    return outcomes[0] if outcomes else "text"


if __name__ == "__main__":
    loaded((json.dumps(BASE), {}))  # what is imported late is no case's
    guard_memory(4 << 30)
    storm(files(), loaded, int(sys.argv[1]), int((*sys.argv, "0")[2]))
