"""How a byte-level vocabulary cuts text into words before merging: the rules that GGUF files name.

A GGUF file carries a vocabulary and its merges, but of the cutting only a name. The rules below are
those of the models' own ``tokenizer.json``. A name that is not here is an error: cutting by another
rule gives other tokens than the model was trained on, and worse text without any sign of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

from slmq.errors import TokenizerError

__all__ = ["PRE_TOKENIZERS", "PreTokenizer", "pre_tokenizer"]

# Alternatives that the patterns share. The first that matches at a place wins.
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)

_BAILING = rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}|\p{{N}}|{_SYMBOLS}|\s*[\r\n]|\s+(?!\S)|\s+"
_SEED = rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

# Words by case, so that `helloWorld` is two: upper then lower, or upper alone.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = (
    rf"{_CASED[0]}{_CONTRACTION}?|{_CASED[1]}{_CONTRACTION}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)

_HAN_AND_KANA = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_HAN_AND_HANGUL = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

# DeepSeek LLM lists the letters that have upper and lower case, as of an older Unicode.
_CASED_LETTERS = (
    r"A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫ"
    r"ᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭ"
    r"ℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟"
    r"𞤀-𞥃"
)
_DEEPSEEK_LETTERS = rf"\s?[{_CASED_LETTERS}]+"
_DEEPSEEK_SIGNS = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"


@dataclass(frozen=True)
class PreTokenizer:
    """One rule of cutting.

    Parameters
    ----------
    patterns : tuple of str
        Applied one after the other, each to the parts that the ones before left; what a pattern
        matches and what lies between becomes a part.
    nfc : bool
        Whether text is first brought to Unicode normal form C.
    whole_words : bool
        Whether a part that is a token is taken as it is, without merging.
    bos : bool
        Whether texts begin with the BOS token unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    whole_words: bool = False
    bos: bool = False

    def splitter(self, *, space_prefix: bool) -> pre_tokenizers.PreTokenizer:
        """Return the cutting, followed by the byte alphabet.

        Parameters
        ----------
        space_prefix : bool
            Whether a text gets a space before it if it has none. Only rules that are GPT-2's alone
            know this; the others would put a space before every part.
        """
        if self.patterns == (_GPT2,):
            return pre_tokenizers.ByteLevel(add_prefix_space=space_prefix, use_regex=True)
        steps: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns
        ]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        return pre_tokenizers.Sequence(steps)

    def normalizer(self) -> normalizers.Normalizer | None:
        """Return what is done to text before it is cut."""
        return normalizers.NFC() if self.nfc else None


def _rules(*named: tuple[PreTokenizer, str]) -> dict[str, PreTokenizer]:
    """Rules by name, of rules with all their names."""
    return {name: rule for rule, names in named for name in names.split()}


PRE_TOKENIZERS = _rules(
    # llama.cpp's own mixture, in files whose converter knew no better
    (PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")), "default"),
    (
        PreTokenizer((_GPT2,)),
        "gpt-2 phi-2 olmo mpt jais jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum "
        "modern-bert exaone4 trillion granite-docling",  # olmo: GPT-NeoX and Pythia
    ),
    (
        PreTokenizer((r"\p{N}", _GPT2)),  # every digit alone
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    ),
    (PreTokenizer((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")), "falcon"),
    (
        PreTokenizer((_LLAMA3,), whole_words=True, bos=True),
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    ),
    (PreTokenizer((_LLAMA3,), whole_words=True), "glm4 glm5"),
    (PreTokenizer((_LLAMA3,)), "dbrx smaug-bpe chatglm-bpe"),  # dbrx: Phi-4 too
    (
        PreTokenizer((r"\p{N}{1,3}", _LLAMA3.replace("{1,3}", "+")), whole_words=True),
        "minicpm5",
    ),
    (
        PreTokenizer((_QWEN2,), nfc=True),
        "qwen2 deepseek-r1-qwen stablelm2 kormo f2llmv2 megrez",
    ),
    (PreTokenizer((_QWEN2,)), "hunyuan solar-open grok-2"),
    (PreTokenizer((_QWEN2.removeprefix(f"{_CONTRACTION}|"),)), "ufakzeka"),
    (PreTokenizer((_QWEN35,), nfc=True), "qwen35"),
    (PreTokenizer((_BAILING,)), "bailingmoe bailingmoe2 llada-moe"),
    (PreTokenizer((_SEED,)), "seed-coder"),
    (PreTokenizer((_GPT4O,)), "gpt-4o llama4 kanana2 talkie minimax-m2"),  # Phi-4-mini too
    (PreTokenizer((_TEKKEN,), whole_words=True, bos=True), "tekken"),
    (PreTokenizer((_BLOOM,)), "bloom poro-chat gpt3-finnish"),
    (PreTokenizer((_BLOOM, r"\p{N}")), "viking"),
    (PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")), "superbpe"),
    (
        PreTokenizer(
            (r"[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_SIGNS, r"\s+$", _HAN_AND_HANGUL, r"\p{N}+")
        ),
        "deepseek-llm",
    ),
    (
        PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_HANGUL, r"\p{N}")),
        "deepseek-coder",
    ),
    (
        PreTokenizer((r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK3)),
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
    ),
)


def pre_tokenizer(name: str) -> PreTokenizer:
    """Return the rule of that name, as in ``tokenizer.ggml.pre``.

    Raises
    ------
    TokenizerError
        The name is unknown.
    """
    rule = PRE_TOKENIZERS.get(name)
    if rule is None:
        raise TokenizerError(
            f"unknown pre-tokenizer {name!r:.80}, expected one of {', '.join(PRE_TOKENIZERS)}; "
            f"use the model's safetensors folder, whose tokenizer.json describes it in full"
        )
    return rule
