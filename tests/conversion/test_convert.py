"""Folders of packed weights: the same bytes and logits as their source, and written whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from golden import GOLDENS
from llama_files import changed, logits_of, to_gguf

import slmq
from slmq import CheckpointError
from slmq.checkpoint import open_checkpoint
from slmq.checkpoint.packed_folder import PackedTensor, PackedWriter
from slmq.cli.models import describe
from slmq.models.loading import LoadedWeights, load_weights
from slmq.weights.placement import choose_memory

TOKENS = [5, 1, 9, 30, 2, 7, 7, 11]
FILE = "model.safetensors"
MODES = ("mmap", "huge", "small", None)
LETTERS = [f"{chr(0x61 + i % 26)}{chr(0x41 + i // 26)}" for i in range(93)]
TOKENIZER = {  # for the vocabulary of 96 that most goldens have
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *LETTERS],
    "tokenizer.ggml.scores": [float(-i) for i in range(96)],
    "tokenizer.ggml.token_type": [2, 3, 3, *[1] * 93],
}


def float_folder(folder: Path, stored: str) -> Path:
    """The golden of odd sizes with all of its tensors as F32, F16 or BF16 (truncated)."""
    changed("odd_sizes", folder)
    header, data = {}, b""
    with safetensors.safe_open(folder / "model.safetensors", "numpy") as file:
        for name in file.keys():  # noqa: SIM118
            values = np.ascontiguousarray(file.get_tensor(name))
            raw = {
                "F32": values.tobytes(),
                "F16": values.astype(np.float16).tobytes(),
                "BF16": (values.view(np.uint32) >> 16).astype("<u2").tobytes(),
            }[stored]
            offsets = [len(data), len(data) + len(raw)]
            header[name] = {"dtype": stored, "shape": list(values.shape), "data_offsets": offsets}
            data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


def gguf(name: str, folder: Path, stored: str) -> Path:
    folder.mkdir()
    return to_gguf(name, folder / "model.gguf", stored, TOKENIZER)


SOURCES: dict[str, Callable[[Path], Path]] = {
    "f32": lambda path: float_folder(path, "F32"),
    "f16": lambda path: float_folder(path, "F16"),
    "bf16": lambda path: float_folder(path, "BF16"),
    "biases": lambda path: changed("biases", path),
    "sharded": lambda path: GOLDENS / "llama" / "sharded",
    "gguf f32": lambda path: gguf("rope_llama3", path, "f32"),
    "gguf f16": lambda path: gguf("gqa_untied", path, "f16"),
    "gguf q4_0": lambda path: gguf("gqa_untied", path, "q4_0"),
    "gguf q4_1": lambda path: gguf("mha_tied", path, "q4_1"),
    "gguf q8_0": lambda path: gguf("gqa_untied", path, "q8_0"),
}


def contents(loaded: LoadedWeights) -> dict[str, Any]:
    """Every matrix and vector of a Llama by a name of ours, byte by byte."""
    weights = loaded.weights
    parts = {"embed": weights.embed, "head": weights.lm_head}
    parts |= {"norm": weights.norm, "rope": weights.rope.at(64).frequencies}
    for i, layer in enumerate(weights.layers):
        parts |= {f"{i}.{name}": value for name, value in vars(layer).items()}
    found: dict[str, Any] = {}
    for name, part in parts.items():
        if isinstance(part, np.ndarray):
            found[name] = part.tobytes()
        else:
            bias = None if part.bias is None else part.bias.tobytes()
            found[name] = (part.matrix.format, part.n, part.k, part.matrix.packed.tobytes(), bias)
    return found


def weights_of(path: Path, **options: Any) -> dict[str, Any]:
    with open_checkpoint(path) as checkpoint:
        return contents(load_weights(checkpoint, threads=2, **options))


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """The golden of odd sizes, quantized to four bits."""
    return slmq.quantize(GOLDENS / "llama" / "odd_sizes", tmp_path / "packed").path


# --- the same model -------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_the_folder_is_its_source(name: str, tmp_path: Path) -> None:
    """Byte by byte, and logit by logit, wherever the weights lie."""
    source = SOURCES[name](tmp_path / "source")
    folder = slmq.convert(source, tmp_path / "packed", n_threads=2)
    want, logits = weights_of(source), logits_of(source, TOKENS, format=None)
    for memory in MODES:
        assert weights_of(folder, memory=memory) == want, memory
        assert (logits_of(folder, TOKENS, format=None, memory=memory) == logits).all(), memory
    again = slmq.convert(folder, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_plain_safetensors_opens_it(converted: Path) -> None:
    """Every tensor at a multiple of 64 bytes: matrices as bytes with a tag, vectors as floats."""
    want = weights_of(converted, memory="small")
    path = converted / "model.safetensors"
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert metadata["slmq"] == "1"
    name = "model.layers.0.mlp.down_proj.weight"
    assert metadata[name] == "q4g32a 60 172"
    assert (tensors[name].dtype, tensors[name].tobytes()) == (np.uint8, want["0.down"][3])
    norm = tensors["model.norm.weight"]
    assert (norm.dtype, norm.tobytes()) == (np.float32, want["norm"])
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    begins = {key: 8 + length + value["data_offsets"][0] for key, value in header.items()
              if key != "__metadata__"}  # fmt: skip
    assert any(key.startswith("slmq.padding.") for key in begins)
    assert all(at % 64 == 0 for key, at in begins.items() if "padding" not in key)


def test_the_config_says_where_it_comes_from(tmp_path: Path) -> None:
    source = gguf("gqa_untied", tmp_path / "source", "q4_0")
    folder = slmq.convert(source, tmp_path / "packed")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert (config["model_type"], config["hidden_size"]) == ("llama", 64)
    assert config["slmq"] == {
        "format_version": 1,
        "slmq_version": slmq.__version__,
        "source": [
            {
                "name": "model.gguf",
                "bytes": source.stat().st_size,
                "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            }
        ],
    }
    with open_checkpoint(folder) as checkpoint:
        facts = describe(checkpoint)
    assert facts["format"].startswith("slmq q4g32s")
    assert facts["supported"]
    assert facts["source"].startswith("model.gguf (sha256 ")


def test_rounding_is_what_quantize_does(tmp_path: Path) -> None:
    source, target = GOLDENS / "llama" / "odd_sizes", tmp_path / "packed"
    with pytest.raises(TypeError, match=r"only packs; slmq\.quantize\(src, dst, format='int4'\)"):
        slmq.convert(source, target, quant="int4")  # type: ignore[arg-type]
    command = [sys.executable, "-m", "slmq.cli", "convert", str(source), str(target)]
    done = subprocess.run(
        [*command, "--quant", "int4"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "convert only packs; run `slmq quantize --format int4` instead" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_another_quantization_needs_the_source(converted: Path) -> None:
    assert weights_of(converted, format="int4")
    with pytest.raises(CheckpointError, match="packed as q4g32a, but q8g32s was requested"):
        weights_of(converted, format="int8")


# --- where weights lie ----------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_a_mapping_is_shared_read_only_and_given_back(converted: Path) -> None:
    def mappings() -> list[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return [line.split()[1] for line in lines if line.endswith(str(converted / FILE))]

    with open_checkpoint(converted) as checkpoint:
        loaded = load_weights(checkpoint, threads=1, memory="mmap")
    assert mappings() == ["r--s"]
    packed = loaded.weights.layers[0].q.matrix.packed
    assert not packed.flags.writeable
    assert packed.ctypes.data % 64 == 0
    del loaded
    assert mappings() == ["r--s"]
    del packed
    assert mappings() == []


def test_only_packed_weights_can_be_mapped() -> None:
    with pytest.raises(ValueError, match=r"needs packed weights.*slmq convert"):
        weights_of(GOLDENS / "llama" / "odd_sizes", memory="mmap")
    with pytest.raises(ValueError, match="expected one of 'mmap', 'huge', 'small', got 'disk'"):
        weights_of(GOLDENS / "llama" / "odd_sizes", memory="disk")


@pytest.mark.parametrize("cut", [True, False])
def test_a_file_that_changes_under_the_reader(converted: Path, cut: bool) -> None:
    """Cut short or replaced after its headers were checked: an error, where it can be one."""
    path = converted / FILE
    data = path.read_bytes()
    with open_checkpoint(converted) as checkpoint:
        if cut:
            os.truncate(path, len(data) - 64)
        else:
            path.unlink()
            path.write_bytes(data)
        with pytest.raises(CheckpointError, match="the file was replaced"):
            load_weights(checkpoint, threads=1, memory="huge")


def test_what_can_be_mapped_is_mapped(converted: Path) -> None:
    with open_checkpoint(converted) as checkpoint:
        choice = choose_memory(None, checkpoint)
        assert load_weights(checkpoint, threads=1).memory == choice
    assert choice.memory == "mmap"
    with open_checkpoint(GOLDENS / "llama" / "odd_sizes") as checkpoint:
        assert choose_memory(None, checkpoint).memory == "huge"
        assert choose_memory("small", checkpoint).memory == "small"


# --- hostile folders ------------------------------------------------------------------------


def edited(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """A folder whose header was changed; its data stay where they were."""
    data = (folder / FILE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-(8 + len(text)) // 64) * 64 - 8)
    (folder / FILE).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return folder


Q, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"


def tagged(tag: str, name: str = Q) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header["__metadata__"].update({name: tag})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (tagged("3", "slmq"), "packed weights of version 1 or 2, found '3'"),
        (lambda h: h["__metadata__"].pop(Q), "expected a tag 'FORMAT N K'.*got None"),
        (tagged("q3g32s 60 60"), "expected a tag"),
        (tagged("q4g32a 60"), "expected a tag"),
        (tagged("q4g32a -60 60"), "expected a tag"),
        (tagged("q4g32a ６０ 60"), "expected a tag"),
        (tagged("q4g32a 60 60\n"), "expected a tag"),
        (tagged("q4g32a 1" + "0" * 400 + " 60"), "expected a tag"),
        (tagged("q4g32a 0 60"), "expected 1..2.28 rows and columns, got 0 x 60"),
        (tagged("q4g32a 999999999 60"), "expected 1..2.28 rows"),
        (tagged("q4g32a 60 65"), "expected 3840 bytes, found 2560"),
        (tagged("f32 60 60"), "expected 16384 bytes, found 2560"),
        (tagged("q4k 60 60"), "q4k of 60 x 60: expected columns in multiples of 256"),
        (tagged("q4g32a 8 8", NORM), "expected packed bytes .U8. for the format"),
        (lambda h: h[Q].update(shape=[2, 1280]), "expected U8, F32 or I32 of one dimension"),
        (lambda h: h[Q].update(dtype="I8"), "expected U8, F32 or I32 of one dimension, found i8"),
        (lambda h: h[Q].update(dtype="F32", shape=[640]), "expected packed bytes"),
        (lambda h: h[Q].update(dtype="I32", shape=[640]), "for the format .*, found I32"),
    ],
)
def test_wrong_tags(edit: Callable[[dict[str, Any]], Any], message: str, converted: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(edited(converted, edit))


def version_in(folder: Path) -> str:
    with safetensors.safe_open(folder / FILE, "numpy") as file:
        return str(file.metadata()["slmq"])


def test_only_weights_of_q8rs_need_the_second_version(converted: Path) -> None:
    """Their tiles lay in another order in the first one; those of other formats lie as they did."""
    assert version_in(converted) == "1"
    tensor = PackedTensor(Q, "q8rs", (60, 60))
    with PackedWriter(converted / FILE, [tensor]) as file:
        file.write(bytes(tensor.nbytes))
    assert version_in(converted) == "2"
    with open_checkpoint(converted) as checkpoint:
        assert checkpoint.tensors[Q].dtype == "q8rs"
    with pytest.raises(CheckpointError, match="by an older slmq, whose q8rs"):
        open_checkpoint(edited(converted, tagged("1", "slmq")))


def test_tiles_that_are_not_aligned(converted: Path) -> None:
    path = converted / FILE
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    path.write_bytes((length + 16).to_bytes(8, "little") + data[8 : 8 + length] + b" " * 16
                     + data[8 + length :])  # fmt: skip
    with pytest.raises(CheckpointError, match="expected its bytes at a multiple of 64"):
        open_checkpoint(converted)


def test_tags_that_do_not_fit_the_model(converted: Path) -> None:
    """Sound by themselves: as many bytes of another shape."""
    with pytest.raises(CheckpointError, match=r"expected shape \[60, 60\], found \[33, 64\]"):
        weights_of(edited(converted, tagged("q4g32a 33 64")))


# --- written whole or not at all ------------------------------------------------------------


def listing(folder: Path) -> dict[str, bytes]:
    """Everything under a folder, hidden files too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_exists_is_kept(converted: Path, tmp_path: Path) -> None:
    before = listing(tmp_path)
    with pytest.raises(slmq.WriteError, match="exists; choose another folder, or use force"):
        slmq.convert(GOLDENS / "llama" / "odd_sizes", converted)
    assert listing(tmp_path) == before
    slmq.convert(GOLDENS / "llama" / "odd_sizes", converted, force=True)
    with open_checkpoint(converted) as checkpoint:
        assert checkpoint.tensors[Q].dtype == "f16"
    assert {path.name for path in tmp_path.iterdir()} == {"packed"}


def test_force_replaces_only_folders_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious", "utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("precious", "utf-8")
    changed("odd_sizes", tmp_path / "model")
    before = listing(tmp_path)
    for name in ("file", "folder", "model"):
        with pytest.raises(slmq.WriteError, match="was not written by slmq"):
            slmq.convert(GOLDENS / "llama" / "odd_sizes", tmp_path / name, force=True)
    with pytest.raises(slmq.WriteError, match="does not exist"):
        slmq.convert(GOLDENS / "llama" / "odd_sizes", tmp_path / "a" / "b")
    assert listing(tmp_path) == before


BREAK = """
import os, resource, signal, sys
import slmq
source, target, how = sys.argv[1:]
if how == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
def progress(done, total):
    if how == "kill" and done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "interrupt" and done > total // 2:
        raise KeyboardInterrupt
slmq.convert(source, target, progress=progress)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")
@pytest.mark.parametrize(
    ("how", "said"),
    [("full", "cannot write .*packed: File too large"), ("interrupt", "KeyboardInterrupt"),
     ("kill", "")],
)  # fmt: skip
@pytest.mark.parametrize("exists", [False, True])
def test_a_broken_conversion_leaves_what_was_there(
    how: str, said: str, exists: bool, tmp_path: Path
) -> None:
    source, target = GOLDENS / "llama" / "odd_sizes", tmp_path / "packed"
    if exists:
        slmq.quantize(source, target)
    before = listing(tmp_path)
    script = BREAK.replace("progress=progress", f"progress=progress, force={exists}")
    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(target), how],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert said == "" or re.search(said, done.stderr)
    if how != "kill":
        assert listing(tmp_path) == before
        return
    left = [path for path in tmp_path.iterdir() if path != target]
    assert [path.suffix for path in left] == [".part"]
    with pytest.raises(CheckpointError):
        open_checkpoint(left[0])
    assert before.items() <= listing(tmp_path).items()
    slmq.convert(source, target, force=exists)
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_the_command(tmp_path: Path) -> None:
    source = gguf("gqa_untied", tmp_path / "source", "q4_1")
    command = [sys.executable, "-m", "slmq.cli", "convert", str(source), str(tmp_path / "packed")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'packed'}\n"
    assert weights_of(tmp_path / "packed") == weights_of(source)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "exists; choose another folder" in done.stderr
    command += ["--force", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size = (tmp_path / "packed" / FILE).stat().st_size
    assert json.loads(done.stdout) == {
        "name": "model", "path": str(tmp_path / "packed"), "bytes": size,
    }  # fmt: skip
