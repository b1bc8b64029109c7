"""Real models: SmolLM2-135M-Instruct (four bits, GGUF) and stories260K (float32).

The first needs a download of 98 MB when it is not cached; the second is in ../shared/data.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stories
import tokenizer_files
from kernel_cases import ISAS
from llama_files import logits_of
from numpy_llama import NumpyLlama
from numpy_weights import load_gguf, load_hf_folder
from places import SUPPORT

import slmq
from slmq.checkpoint import open_checkpoint
from slmq.engine.engine import Engine
from slmq.engine.opening import open_engine
from slmq.engine.options import LoadOptions
from slmq.evaluation import perplexity, read_text
from slmq.tokenizer import load_tokenizer

LLAMA_CPP_PERPLEXITY = 28.65  # of llama.cpp on the same file, protocol and windows
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
THREADS = "2"

needs_stories = pytest.mark.skipif(
    not stories.STORIES_BIN.exists(), reason="../shared/data/stories260k is absent"
)


# --- SmolLM2 --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_capital_of_france(smollm2_path: Path) -> None:
    with slmq.load(smollm2_path) as model:
        result = model.generate(QUESTION, temperature=0, max_tokens=40)
        assert "Paris" in result.text
        assert result.finish_reason == "stop"
        streamed = "".join(
            chunk.text for chunk in model.stream(QUESTION, temperature=0, max_tokens=40)
        )
        assert streamed == result.text


ANSWER = """
import json, sys
import slmq
with slmq.load(sys.argv[1]) as model:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    result = model.generate(question, temperature=0, max_tokens=int(sys.argv[2]))
    sampled = model.generate("Once upon a time", temperature=0.8, top_p=0.9, seed=11,
                             max_tokens=int(sys.argv[2]))
print(json.dumps([result.tokens, sampled.tokens]))
"""


def answer(path: Path, max_tokens: int, **environment: str) -> str:
    """Tokens of a greedy and of a sampled text in a fresh process."""
    command = [sys.executable, "-c", ANSWER, str(path), str(max_tokens)]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.slow
def test_every_isa_and_thread_count_tells_the_same(smollm2_path: Path) -> None:
    """The scalar kernels are slow: few tokens of them, more of the others."""
    for max_tokens, isas in [(8, list(ISAS)), (48, [isa for isa in ISAS if isa != "scalar"])]:
        want = answer(smollm2_path, max_tokens)
        assert len(want) > 4 * max_tokens
        for isa in isas:
            assert answer(smollm2_path, max_tokens, SLMQ_ISA=isa) == want, isa
        assert answer(smollm2_path, max_tokens, SLMQ_NUM_THREADS="3") == want


@pytest.mark.slow
def test_perplexity_compares_with_llama_cpp(smollm2_path: Path, shared_data: Path) -> None:
    text = read_text(shared_data / "wikitext2" / "wiki.test.raw")
    engine = open_engine(smollm2_path)
    result = perplexity(engine, text, ctx=512, chunks=16)
    engine.close()
    assert result.tokens == 16 * 255
    assert abs(result.perplexity / LLAMA_CPP_PERPLEXITY - 1) < 0.01


NUMPY_PERPLEXITY = """
import sys
from numpy_llama import NumpyLlama
from numpy_weights import load_gguf
config, weights, _ = load_gguf(sys.argv[1])
ids = [int(i) for i in sys.stdin.read().split()]
print(NumpyLlama(config, weights).perplexity(ids, 512, 2).perplexity)
"""


@pytest.mark.slow
def test_perplexity_is_that_of_a_float32_forward(smollm2_path: Path, shared_data: Path) -> None:
    """NumPy over the dequantized weights, in a process of its own with two threads of BLAS."""
    text = read_text(shared_data / "wikitext2" / "wiki.test.raw")
    engine = open_engine(smollm2_path)
    got = perplexity(engine, text, ctx=512, chunks=2).perplexity
    ids = engine.tokenizer.encode(text, add_special=False, parse_special=False)[:1024]
    engine.close()
    done = subprocess.run(
        [sys.executable, "-c", NUMPY_PERPLEXITY, str(smollm2_path)],
        input=" ".join(map(str, ids)),
        env=os.environ | {"OPENBLAS_NUM_THREADS": THREADS, "OMP_NUM_THREADS": THREADS},
        cwd=SUPPORT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert abs(got / float(done.stdout) - 1) < 0.003


@pytest.mark.slow
def test_logits_are_those_of_a_float32_forward(smollm2_path: Path) -> None:
    """Stored blocks with sixteen-bit activations at each position; the usual ones nearly."""
    config, weights, _ = load_gguf(smollm2_path)
    with open_checkpoint(smollm2_path) as checkpoint:
        ids = load_tokenizer(checkpoint).encode("The quick brown fox jumps over the lazy dog.")
    want = NumpyLlama(config, weights).logits(ids)
    largest = np.abs(want).max()
    exact = logits_of(smollm2_path, ids, format=None, activations="exact")
    assert np.abs(exact - want[:, : exact.shape[1]]).max() < 2e-3 * largest
    assert np.array_equal(exact.argmax(axis=1), want.argmax(axis=1))
    usual = logits_of(smollm2_path, ids, format=None)
    assert np.abs(usual - exact).max() < 0.05 * largest


PEAK = """
import sys
import slmq

def peak_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

model = slmq.load(sys.argv[1])
print(peak_bytes())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_loading_needs_little_more_than_the_file(smollm2_path: Path) -> None:
    command = [sys.executable, "-c", PEAK, str(smollm2_path)]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak <= 1.25 * smollm2_path.stat().st_size + 100e6


@pytest.mark.slow
def test_a_closed_model_gives_its_memory_back(smollm2_path: Path) -> None:
    """Three models after each other need the room of one."""

    def resident_bytes() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("reads /proc")
    sizes = []
    for _ in range(3):
        with slmq.load(smollm2_path, n_ctx=256) as model:
            model.generate("Hello", max_tokens=2)
        sizes.append(resident_bytes())
    assert sizes[2] - sizes[0] < 20e6


@pytest.fixture(scope="module")
def packed_path(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slmq.convert(smollm2_path, tmp_path_factory.mktemp("packed") / "smollm2")


@pytest.mark.slow
def test_a_packed_folder_is_the_gguf_file(smollm2_path: Path, packed_path: Path) -> None:
    """Ids, prompts and logits, bit for bit, mapped and copied."""
    ids = [504, 3575, 2147, 18, 314, 260, 3575, 282]
    found = []
    for path, memory in [(smollm2_path, None), (packed_path, "mmap"), (packed_path, "huge")]:
        with slmq.load(path, memory=memory) as model:
            tokenizer = model.tokenizer
            texts = [tokenizer.encode(line) for line in tokenizer_files.lines()[:1500]]
            prompt = tokenizer.render_chat([*QUESTION, {"role": "assistant", "content": "é"}])
            pieces = [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]
            names = (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.special_ids)
            found.append((model.logits(ids).tobytes(), texts, prompt, pieces, names))
    assert found[1] == found[0]
    assert found[2] == found[0]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_mapped_folder_needs_no_memory_of_its_own(packed_path: Path) -> None:
    """Beside what the process has without weights: the tokenizer, libraries, buffers."""
    script = PEAK.replace("VmHWM", "RssAnon")
    command = [sys.executable, "-c", script, str(packed_path)]
    anonymous = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert anonymous < 110e6  # a copy of the weights is 97 MB more


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_converting_goes_tensor_by_tensor(smollm2_path: Path, tmp_path: Path) -> None:
    """The largest tensor, before and after packing, beside what a process has anyway."""
    script = PEAK.replace("slmq.load(sys.argv[1])", "slmq.convert(*sys.argv[1:])")
    command = [sys.executable, "-c", script, str(smollm2_path), str(tmp_path / "packed")]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak < 170e6  # all packed weights are 97 MB more


# --- stories260K ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stories_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stories.convert(tmp_path_factory.mktemp("stories260k"))


@needs_stories
def test_a_float32_story_is_the_reference_story(stories_path: Path) -> None:
    """The first 60 greedy tokens in float32, and a story as a reader would call it."""
    with slmq.load(stories_path, format="f32", kv_dtype="f32") as model:
        result = model.generate("Once upon a time", temperature=0, max_tokens=200)
        prompt = model.tokenizer.encode("Once upon a time")
    model64 = NumpyLlama(*load_hf_folder(stories_path))
    assert prompt + result.tokens[:60] == model64.greedy(prompt, 60)
    assert result.text.startswith(", there was a little girl named Lily.")
    assert result.text.count(".") > 8


def stories_perplexity(path: Path, **options: Any) -> float:
    """Perplexity of the first 40 TinyStories, each a sequence of its own with all tokens scored."""
    engine = open_engine(path, LoadOptions(**options))
    scores = [story_scores(engine, text) for text in stories.tinystories(40)]
    engine.close()
    return float(np.exp(-np.concatenate(scores).mean()))


def story_scores(engine: Engine, text: str) -> Any:
    ids = engine.tokenizer.encode(text)[: engine.n_ctx]
    logits = engine.feed(engine.sequence(), ids, logits="all")[:-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    picked = np.take_along_axis(logits, np.array(ids[1:])[:, None], axis=1)[:, 0]
    return picked - np.log(np.exp(logits).sum(axis=1))


@needs_stories
def test_perplexities_of_the_formats(
    stories_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Eight bits cost nothing that shows, four bits little for a model of 64 channels."""
    full = stories_perplexity(stories_path, format="f32", kv_dtype="f32")
    found = {
        name: stories_perplexity(stories_path, format=name) for name in ("f16", "int8", "int4")
    }
    for name, value in {"f32": full, **found}.items():
        record_property(f"perplexity_{name}", round(value, 4))
        print(f"stories260K {name}: perplexity {value:.4f}")
    assert 2 < full < 6
    assert abs(found["f16"] / full - 1) < 1e-3
    assert abs(found["int8"] / full - 1) < 0.01
    assert full < found["int4"] < 1.25 * full
