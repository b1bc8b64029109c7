"""The safetensors reader and `open_checkpoint`, against the package and against lies."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_writer as gw
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from slmq.checkpoint import TensorInfo, open_checkpoint
from slmq.checkpoint.safetensors import BITS
from slmq.errors import CheckpointError, ClosedError

CONFIG = {"model_type": "llama", "hidden_size": 64}
ONE = "model-00001-of-00002.safetensors"
TWO = "model-00002-of-00002.safetensors"


def image(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """The bytes of a file; `header` is an object or the text itself, `length` what it claims."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def package_accepts(content: bytes) -> bool:
    deserialize: Callable[[bytes], Any] = safetensors.deserialize
    try:
        deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def sharded(folder: Path) -> Path:
    """Two shards: a and b in the first, c in the second."""
    save_file({"a": np.zeros(4, np.float32), "b": np.ones((2, 2), np.float16)}, folder / ONE)
    save_file({"c": np.full((3, 5), 7, np.float32)}, folder / TWO)
    write_index(folder, {"a": ONE, "b": ONE, "c": TWO})
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    index = {"metadata": {"total_size": 84}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return caught.value


# -- what a sound folder holds -------------------------------------------------------------------


def test_agrees_with_the_safetensors_package(folder: Path) -> None:
    rng = np.random.default_rng(2)
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "model.embed": rng.standard_normal((7, 64), dtype=np.float32),
        "half": rng.standard_normal((3, 5)).astype(np.float16),
        "scalar": np.array(2.5, np.float32),
        "none": np.zeros((0, 4), np.float32),
        "ids": np.arange(6, dtype=np.int64),
        "small": np.arange(5, dtype=np.int8),
        "mask": np.array([True, False, True]),
        "unsigned": np.arange(9, dtype=np.uint8).reshape(3, 3),
        "words": np.arange(3, dtype=np.int32),
        "double": np.arange(3, dtype=np.float64),
    }
    save_file(arrays, folder / "model.safetensors", metadata={"format": "np"})
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.kind == "safetensors"
        assert checkpoint.path == folder
        assert checkpoint.metadata == CONFIG
        with safetensors.safe_open(folder / "model.safetensors", "np") as theirs:
            assert set(checkpoint.tensors) == set(theirs.keys())
            for name in theirs.keys():  # noqa: SIM118  (it is no mapping)
                info, known = checkpoint.tensors[name], theirs.get_tensor(name)
                assert info.shape == known.shape
                assert info.nbytes == known.nbytes
                assert checkpoint.raw(name).tobytes() == known.tobytes()
                assert not checkpoint.raw(name).flags.writeable
                checkpoint.release(name)
        dtypes = {name: info.dtype for name, info in checkpoint.tensors.items()}
    assert dtypes == {
        "model.embed": "f32",
        "half": "f16",
        "scalar": "f32",
        "none": "f32",
        "ids": "i64",
        "small": "i8",
        "mask": "bool",
        "unsigned": "u8",
        "words": "i32",
        "double": "f64",
    }


@pytest.mark.parametrize("dtype", BITS)
def test_every_dtype_of_the_format(folder: Path, dtype: str) -> None:
    nbytes = 8 * BITS[dtype] // 8
    content = image({"t": entry(dtype, [2, 4], 0, nbytes)}, bytes(range(nbytes)))
    (folder / "model.safetensors").write_bytes(content)
    assert package_accepts(content)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors["t"] == TensorInfo("t", dtype.lower(), (2, 4), nbytes)
        assert checkpoint.raw("t").tobytes() == bytes(range(nbytes))


def test_shards(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b", "c"]
        assert checkpoint.tensors["c"] == TensorInfo("c", "f32", (3, 5), 60)
        assert checkpoint.raw("b").view("<f2").tolist() == [1, 1, 1, 1]
        assert checkpoint.raw("c").view("<f4").tolist() == [7] * 15
    with pytest.raises(ClosedError, match="closed"):
        checkpoint.raw("a")


def test_single_file_wins_over_an_index(sharded: Path) -> None:
    save_file({"only": np.zeros(1, np.float32)}, sharded / "model.safetensors")
    with open_checkpoint(sharded) as checkpoint:
        assert list(checkpoint.tensors) == ["only"]


def test_the_index_only_says_which_files_to_open(
    sharded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_index(sharded, {"b": ONE, "c": TWO})
    with open_checkpoint(sharded) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b", "c"]
    write_index(sharded, {"a": ONE})
    with open_checkpoint(sharded) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b"]
    assert caplog.text == ""


def test_a_tensor_in_another_shard_than_the_index_says(
    sharded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_index(sharded, {"a": ONE, "b": TWO, "c": TWO})
    with open_checkpoint(sharded) as checkpoint:
        assert checkpoint.raw("b").view(np.float16).tolist() == [1, 1, 1, 1]
    assert caplog.text == ""


def test_a_tensor_that_no_shard_holds_is_said(
    sharded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A stale index, or a tied head that the index lists: only what the model needs is missed."""
    write_index(sharded, {"a": ONE, "b": ONE, "c": TWO, "mtp.fc.weight": TWO})
    with open_checkpoint(sharded) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b", "c"]
    assert "'mtp.fc.weight'" in caplog.text


def test_of_two_tensors_of_one_name_the_index_chooses(sharded: Path) -> None:
    save_file({"c": np.full((3, 5), 9, np.float32)}, sharded / ONE)
    for shard, value in ((ONE, 9), (TWO, 7)):
        write_index(sharded, {"c": shard, "x": ONE, "y": TWO})
        with open_checkpoint(sharded) as checkpoint:
            assert set(checkpoint.raw("c").view(np.float32).tolist()) == {value}


def test_config_may_repeat_a_name_and_begin_with_a_mark(folder: Path) -> None:
    save_file({"t": np.zeros(1, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1, "a": 2}')
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.metadata == {"a": 2}


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_links_of_the_hub_cache(sharded: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    names = [p for p in sharded.iterdir() if p.is_file()]
    for i, file in enumerate(names):
        shutil.copy(file, blobs / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    with open_checkpoint(snapshot) as checkpoint:
        assert len(checkpoint.tensors) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_links_inside_the_folder_and_out_of_it(sharded: Path, tmp_path_factory: Any) -> None:
    (sharded / "sub").mkdir()
    (sharded / TWO).rename(sharded / "sub" / "real")
    (sharded / TWO).symlink_to("sub/real")
    open_checkpoint(sharded).close()
    outside = tmp_path_factory.mktemp("outside") / "real"
    (sharded / "sub" / "real").rename(outside)
    (sharded / TWO).unlink()
    (sharded / TWO).symlink_to(outside)
    assert "outside of the folder" in refusal(sharded).message
    (sharded / TWO).unlink()
    (sharded / TWO).symlink_to(TWO)  # a circle
    assert refusal(sharded).file is not None


# -- single files that are cut short or lie ------------------------------------------------------

F32X4 = entry("F32", [4], 0, 16)
HUGE = 1 << 62

HOSTILE = {
    # name: (bytes of model.safetensors, words of the error, tensor it names)
    "empty": (b"", "empty", None),
    "short": (b"\x08\0\0", "header length of 8 bytes, found 3", None),
    "length_huge": (image({}, length=(1 << 64) - 1), "expected a safetensors file", None),
    "length_beyond_file": (image({"t": F32X4}, length=1000), "header of 1000 bytes", None),
    "length_0": (image(b""), "the header is not JSON", None),
    "html": (b"<!DOCTYPE html><html></html>", "HTML", None),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull", None),
    "pytorch": (b"PK\x03\x04" + bytes(60), "zip archive", None),
    "not_json": (image(b'{"t": }'), "at line 1 column 7", None),
    "not_an_object": (image(b"[1]"), "expected a safetensors file", None),
    "not_utf8": (image(b'{"\xff": 1}'), "not UTF-8", None),
    "half_surrogate": (image(b'{"\\ud800": 1}'), "surrogate", None),
    "deep": (image(b'{"t":' + b"[" * 200000), "the header is not usable JSON", None),
    "many_digits": (image(b'{"t": ' + b"9" * 5000 + b"}"), "not usable JSON", None),
    "name_twice": (
        image(b'{"t": %b, "t": %b}' % ((json.dumps(F32X4).encode(),) * 2), bytes(16)),
        "'t' occurs twice",
        None,
    ),
    "field_twice": (
        image(b'{"t": {"dtype": "F32", "dtype": "F16", "shape": [], "data_offsets": [0, 4]}}'),
        "'dtype' occurs twice",
        None,
    ),
    "metadata_list": (image({"__metadata__": []}), "__metadata__", None),
    "metadata_number": (image({"__metadata__": {"a": 1}}), "__metadata__", None),
    "name_empty": (image({"": F32X4}, bytes(16)), "a name of 1 to 1024", ""),
    "entry_list": (image({"t": [1]}), "an object with dtype", "t"),
    "entry_without_shape": (image({"t": {"dtype": "F32", "data_offsets": [0, 4]}}), "shape", "t"),
    "dtype_unknown": (image({"t": entry("F7", [4], 0, 16)}), "unknown dtype 'F7'", "t"),
    "dtype_lower": (image({"t": entry("f32", [4], 0, 16)}), "unknown dtype 'f32'", "t"),
    "dtype_number": (image({"t": entry(3, [4], 0, 16)}), "unknown dtype 3", "t"),
    "dtype_list": (image({"t": entry([], [4], 0, 16)}), "unknown dtype []", "t"),
    "shape_negative": (image({"t": entry("F32", [-1, -4], 0, 16)}, bytes(16)), "integers", "t"),
    "shape_float": (image({"t": entry("F32", [4.0], 0, 16)}, bytes(16)), "integers", "t"),
    "shape_bool": (image({"t": entry("F32", [True], 0, 4)}, bytes(4)), "integers", "t"),
    "shape_text": (image({"t": entry("F32", "4", 0, 16)}, bytes(16)), "integers", "t"),
    "shape_null": (image({"t": entry("F32", None, 0, 16)}, bytes(16)), "integers", "t"),
    "shape_long": (image({"t": entry("F32", [1] * 33, 0, 4)}, bytes(4)), "at most 32", "t"),
    "shape_overflow": (image({"t": entry("F32", [HUGE, 4], 0, 0)}), "overflows", "t"),
    "shape_overflow_hidden_by_zero": (
        image({"t": entry("F32", [HUGE, HUGE, 0], 0, 0)}),
        "overflows",
        "t",
    ),
    "shape_huge": (image({"t": entry("F32", [1 << 80], 0, 16)}, bytes(16)), "integers", "t"),
    "shape_too_large": (image({"t": entry("F32", [5], 0, 16)}, bytes(16)), "expected 20", "t"),
    "wrong_dtype": (image({"t": entry("F16", [4], 0, 16)}, bytes(16)), "expected 8 bytes", "t"),
    "half_bytes": (image({"t": entry("F4", [3], 0, 1)}, bytes(1)), "expected 1.5 bytes", "t"),
    "offsets_reversed": (image({"t": entry("F32", [4], 16, 0)}, bytes(16)), "begin <= end", "t"),
    "offsets_negative": (image({"t": entry("F32", [4], -16, 0)}, bytes(16)), "0 <= begin", "t"),
    "offsets_float": (image({"t": entry("F32", [4], 0, 16.0)}, bytes(16)), "data_offsets", "t"),
    "offsets_three": (
        image({"t": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16, 16]}}, bytes(16)),
        "data_offsets",
        "t",
    ),
    "offsets_huge": (
        image({"t": entry("U8", [16], HUGE, HUGE + 16)}, bytes(16)),
        "with a gap after those of the header",
        "t",
    ),
    "data_missing": (image({"t": F32X4}, bytes(15)), "truncated", None),
    "data_left_over": (image({"t": F32X4}, bytes(17)), "found", None),
    "gap": (
        image({"t": F32X4, "u": entry("F32", [4], 20, 36)}, bytes(36)),
        "with a gap after those of 't'",
        "u",
    ),
    "overlap": (
        image({"t": F32X4, "u": entry("F32", [4], 8, 24)}, bytes(24)),
        "inside of those of 't'",
        "u",
    ),
    "same_bytes": (image({"t": F32X4, "u": F32X4}, bytes(16)), "inside of those of 't'", "u"),
}


STRICTER_THAN_THE_PACKAGE = {"name_twice", "name_empty", "shape_long"}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file(folder: Path, case: str) -> None:
    content, words, tensor = HOSTILE[case]
    (folder / "model.safetensors").write_bytes(content)
    assert package_accepts(content) == (case in STRICTER_THAN_THE_PACKAGE)
    tracemalloc.start()
    error = refusal(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert words in error.message
    assert error.tensor == tensor
    assert error.file == str(folder / "model.safetensors")
    assert peak < 16 << 20, f"a refusal took {peak} bytes"


def test_every_truncation_is_noticed(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({"a": np.zeros(4, np.float32), "b": np.zeros(3, np.float16)}, path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert "truncated" in refusal(folder).message or size == 0
    expected = f"expected {len(whole)} bytes according to its header, found {len(whole) - 1}"
    assert expected in refusal(folder).message


# -- indices that lie ----------------------------------------------------------------------------


def test_missing_shards_are_named_with_their_tensors(sharded: Path) -> None:
    (sharded / ONE).unlink()
    message = refusal(sharded).message
    assert f"1 of 2 shards are missing: {ONE!r} (tensors 'a', 'b')" in message
    (sharded / TWO).unlink()
    assert "2 of 2 shards" in refusal(sharded).message
    many = {f"{i}.safetensors": None for i in range(20)}
    write_index(sharded, {f"t{i}": name for i, name in enumerate(many)})
    assert "and 12 more" in refusal(sharded).message


def test_a_shard_that_is_corrupt(sharded: Path) -> None:
    content = (sharded / TWO).read_bytes()
    (sharded / TWO).write_bytes(content[:-1])
    error = refusal(sharded)
    assert error.file == str(sharded / TWO)
    assert "truncated" in error.message


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "sub/../../secret.safetensors",
        "..",
        "/etc/passwd",
        "\\\\host\\share\\x",
        "..\\secret.safetensors",
        "C:\\x.safetensors",
        "C:x.safetensors",
        "",
        "a\0b",
    ],
)
def test_shard_names_that_leave_the_folder(sharded: Path, shard: str) -> None:
    shutil.copy(sharded / TWO, sharded.parent / "secret.safetensors")
    write_index(sharded, {"a": ONE, "c": shard})
    error = refusal(sharded)
    assert "weight_map names the shard" in error.message
    assert error.file == str(sharded / "model.safetensors.index.json")


@pytest.mark.parametrize("shard", ["x" * 5000, "a/" * 3000, "sub/deeper.safetensors", "sub", "."])
def test_shard_names_without_a_file(sharded: Path, shard: str) -> None:
    (sharded / "sub").mkdir()
    write_index(sharded, {"a": shard})
    message = refusal(sharded).message
    assert "missing" in message or "expected a regular file" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("[]", "to be a JSON object, got a list"),
        ("{}", "non-empty JSON object under 'weight_map'"),
        ('{"weight_map": {}}', "non-empty JSON object under 'weight_map'"),
        ('{"weight_map": ["a"]}', "non-empty JSON object under 'weight_map'"),
        ('{"weight_map": {"a": 3}}', "expected a file name, got a int"),
        ('{"weight_map": {"a": null}}', "expected a file name, got a NoneType"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "'a' occurs twice"),
        ('{"weight_map": {"a": "x"', "at line 1 column"),
    ],
)
def test_broken_index(sharded: Path, text: str, words: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    error = refusal(sharded)
    assert words in error.message
    assert error.file == str(sharded / "model.safetensors.index.json")


# -- config.json and what else may lie in a folder -----------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b'{\n "a": 1,\n "b" 2\n}', "at line 3 column 6"),
        (b"null", "to be a JSON object, got a NoneType"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\\udc00"}', "surrogate"),
        (b" " * (5 << 20), "expected at most 4,194,304 bytes, found 5,242,880"),
        (b"[" * 100000, "not usable JSON"),
    ],
)
def test_broken_config(folder: Path, content: bytes, words: str) -> None:
    save_file({"t": np.zeros(1, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_bytes(content)
    error = refusal(folder)
    assert words in error.message
    assert error.file == str(folder / "config.json")


def only_gguf(folder: Path) -> None:
    (folder / "model.Q4_0.gguf").write_bytes(gw.image([gw.key(b"a", gw.BOOL, b"\1")]))


def test_a_folder_with_one_gguf_and_a_gguf_of_any_name(tmp_path: Path) -> None:
    only_gguf(tmp_path)
    with open_checkpoint(str(tmp_path)) as checkpoint:
        assert checkpoint.kind == "gguf"
        assert checkpoint.path == tmp_path / "model.Q4_0.gguf"
    blob = (tmp_path / "model.Q4_0.gguf").rename(tmp_path / "sha256-0123")
    with open_checkpoint(blob) as checkpoint:
        assert checkpoint.metadata == {"a": True}


def two_ggufs(folder: Path) -> None:
    only_gguf(folder)
    (folder / "b.GGUF").touch()


def pytorch(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").touch()


def no_config(folder: Path) -> None:
    save_file({"t": np.zeros(1, np.float32)}, folder / "model.safetensors")


def many_files(folder: Path) -> None:
    for i in range(10):
        (folder / f"{i}.txt").touch()


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (lambda folder: None, "found an empty folder"),
        (two_ggufs, "2 GGUF files; give the path of one: 'b.GGUF', 'model.Q4_0.gguf'"),
        (pytorch, "convert them to safetensors"),
        (no_config, "expected a config.json next to the weights"),
        (many_files, "'7.txt' and 2 more"),
    ],
)
def test_folders_that_are_no_model(
    tmp_path: Path, fill: Callable[[Path], None], words: str
) -> None:
    fill(tmp_path)
    error = refusal(tmp_path)
    assert words in error.message
    assert error.file == str(tmp_path)


def test_paths_that_are_no_model(folder: Path) -> None:
    save_file({"t": np.zeros(1, np.float32)}, folder / "model.safetensors")
    assert "expected the folder" in refusal(folder / "model.safetensors").message
    assert "No such file" in refusal(folder / "absent").message
    assert "cannot open" in refusal(Path("a\0b")).message
    assert "begins with b'{\"mo'" in refusal(folder / "config.json").message


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes and devices are of POSIX")
def test_pipes_and_devices_do_not_hang(folder: Path) -> None:
    os.mkfifo(folder / "model.safetensors")
    assert "expected a regular file" in refusal(folder).message
    assert "got a device, pipe or socket" in refusal(folder / "model.safetensors").message
    assert "got a device, pipe or socket" in refusal(Path("/dev/zero")).message


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="needs a user whom permissions bind"
)
def test_unreadable_files(sharded: Path) -> None:
    (sharded / TWO).chmod(0)
    assert "Permission denied" in refusal(sharded).message
