"""Lines of mixed text, the same everywhere, on which tokenizers are compared with references."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

COUNT = 3050
BLOCK = 50  # lines of one digest

SENTENCES = """
The quick brown fox jumps over the lazy dog, doesn't it?
It's 3 o'clock; we'll meet at 10:45 -- or they'd better wait until 12.
Small models answer quickly, and large ones (sometimes) answer well.
"Why," she said, "would anybody count 1,234,567 sheep in 2026?"
I'VE SEEN THINGS YOU WOULDN'T BELIEVE... AREN'T YOU LISTENING?
naïve café Ångström façade Straße œuvre İstanbul Ωμέγα Привет мир עברית العربية हिन्दी ไทย 한국어
吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。
東京都の人口は約1,400万人です。ありがとうございます！
ｶﾀｶﾅと全角ＡＢＣ１２３、「かぎ括弧」と（括弧）…〜ー
小さな言語モデルを、普通のパソコンで動かす。速くて、軽い。
你好，世界！今天天气怎么样？ 안녕하세요 세계
def f(x: int) -> list[int]: return [i**2 for i in range(x) if i % 3 != 0]
for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }  // O(n)
if __name__ == "__main__": print(f"{name!r:>10} costs ${price:.2f}")
SELECT id, COUNT(*) FROM t WHERE a <= 3.14 AND b LIKE '%x_1%' GROUP BY id;
<html><body class="a b">&amp; &lt;tag/&gt;</body></html>
https://example.org/a/b?c=d&e=%20f#frag user@example.com C:\\Users\\me\\file.txt
{"key": [1, 2.5e-3, null, true], "nested": {"snake_case": "camelCase", "X86_64": "0xFF"}}
😀 👩‍👩‍👧‍👦 🇯🇵 ❤️ 👍🏽 🏳️‍🌈 🧑‍🚀 ☃ ™ ½ ² ① Ⅷ ٣ ५ ๓ ﬁ
E = mc², ∑ᵢ xᵢ ≤ ∞, ∂f/∂x ≈ √2·π, →⇒↔ ░▒▓ ♠♣♥♦
""".strip().splitlines()

SPECIAL = """
<s> </s> <unk> <pad> <bos> <eos> <|endoftext|> <|im_start|> <|im_end|> <|user|> <|assistant|>
<|system|> <|end|> <|begin_of_text|> <|eot_id|> <|start_header_id|> <|end_header_id|>
<start_of_turn> <end_of_turn> [INST] [/INST] <<SYS>> <think> </think> <tool_call> <extra_id_0>
<0x0A> <0xE3> <|im_start im_end|> <|en d|> </s <s
""".split()  # noqa: SIM905 - easier to read and to add to

SPACES = [" ", "  ", "   ", "    ", " " * 7, " " * 17, " " * 40, "\t", "\t\t", "\n", "\n\n",
          "\n" * 5, "\r\n", "\r", " \n", "\n ", "\t ", "\u00a0", "\u3000", "\u2003", "\u200b",
          "\u2028", "\u0085", "\u00ad", "\ufeff"]  # fmt: skip

CONTROLS = ["\x00", "\x01", "\x07", "\x08", "\x0b", "\x0c", "\x1b[0m", "\x1c", "\x1f", "\x7f",
            "\x80", "\x9f", "\u202e", "\u2066", "\U000e0001", "\ue000", "\ufffd", "\uffff",
            "\U0010ffff", "\U0001d7d8"]  # fmt: skip


@lru_cache
def mixed_lines() -> tuple[str, ...]:
    """`COUNT` lines: sentences, and words of them among spaces, controls and special tokens."""
    rng = random.Random(20)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    made = ["", " ", "a", *SENTENCES, *SPACES, *CONTROLS, *SPECIAL]
    while len(made) < COUNT:
        kind = rng.randrange(8)
        if kind < 4:
            parts = rng.choices(words, k=rng.randint(1, 12))
            line = "".join(part + (rng.choice(SPACES) if rng.random() < 0.3 else " ")
                           for part in parts)  # fmt: skip
        elif kind == 4:
            pool = words + SPECIAL * 6
            parts = rng.choices(pool, k=rng.randint(2, 8))
            line = "".join(part + rng.choice(["", " ", "", "\n", "  "]) for part in parts)
        elif kind == 5:
            pool = CONTROLS + SPACES + words[::5]
            line = "".join(rng.choices(pool, k=rng.randint(1, 10)))
        elif kind == 6:
            sentence = rng.choice(SENTENCES)
            begin = rng.randrange(len(sentence))
            line = sentence[begin : begin + rng.randint(1, 40)]
        else:
            codes = [rng.choice((rng.randint(0x20, 0x7E), rng.randint(0xA0, 0x2FF),
                                 rng.randint(0x3040, 0x30FF), rng.randint(0x4E00, 0x9FA5),
                                 rng.randint(0x1F300, 0x1F6FF), rng.randint(0xE000, 0x10FFFD)))
                     for _ in range(rng.randint(1, 12))]  # fmt: skip
            line = "".join(map(chr, codes))
        made.append(line)
    return tuple(made)


def digests(
    encode: Callable[[str], Sequence[int]], lines: Iterable[str] | None = None
) -> list[str]:
    """One short digest of the ids of every `BLOCK` lines."""
    every = list(mixed_lines() if lines is None else lines)
    found = []
    for begin in range(0, len(every), BLOCK):
        ids = [list(map(int, encode(line))) for line in every[begin : begin + BLOCK]]
        found.append(hashlib.sha256(repr(ids).encode()).hexdigest()[:12])
    return found
