"""The GGUF reader against the `gguf` package, and against files that lie."""

from __future__ import annotations

import gc
import mmap
import struct
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import gguf_writer as gw
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmq.checkpoint import TensorInfo, open_checkpoint
from slmq.checkpoint.gguf import BLOCK_TYPES
from slmq.checkpoint.gguf_header import MAX_ELEMENTS
from slmq.errors import CheckpointError, ClosedError, Error

RNG = np.random.default_rng(1)


def refusal(path: Path, image: bytes) -> CheckpointError:
    """Write the bytes, open them, and return the error, which must name the file."""
    path.write_bytes(image)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert caught.value.file == str(path)
    assert str(path) in str(caught.value)
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


# -- what a sound file holds ---------------------------------------------------------------------


def test_agrees_with_the_gguf_package(path: Path) -> None:
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.rope.freq_base": 10000.0,
        "some.negative": -7,
        "some.large": 1 << 40,
        "some.flag": True,
        "tokenizer.ggml.tokens": ["<s>", "a", "\N{SNOWMAN}", ""],
        "tokenizer.ggml.scores": [0.5, -1.0, 2.0],
        "tokenizer.ggml.token_type": [3, 1, 1, 1],
        "some.flags": [True, False],
    }
    weights = RNG.standard_normal((3, 64), dtype=np.float32)
    tensors: dict[str, Any] = {
        "plain": weights,
        "half": weights.astype(np.float16),
        "cube": RNG.standard_normal((2, 3, 32), dtype=np.float32),
        "vector": weights[0],
    }
    for kind in ("q4_0", "q4_1", "q8_0", "bf16", "q5_0", "q5_1"):
        tensors[kind] = (weights, kind)
    gw.write_gguf(path, metadata, tensors)
    reader = gguf.GGUFReader(path)

    with open_checkpoint(path) as checkpoint:
        assert checkpoint.kind == "gguf"
        assert checkpoint.path == path
        ours = dict(checkpoint.metadata)
        theirs = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
        assert ours == theirs
        assert ours == metadata | {"llama.rope.freq_base": 10000.0}
        assert type(ours["some.flag"]) is bool
        assert list(checkpoint.tensors) == [t.name for t in reader.tensors]
        for known in reader.tensors:
            info = checkpoint.tensors[known.name]
            assert info.dtype == known.tensor_type.name.lower()
            assert info.shape == tuple(int(n) for n in reversed(known.shape))
            assert info.nbytes == known.n_bytes
            raw = checkpoint.raw(known.name)
            assert raw.shape == (info.nbytes,)
            assert raw.dtype == np.uint8
            assert raw.tobytes() == known.data.tobytes()
        assert checkpoint.tensors["q4_1"] == TensorInfo("q4_1", "q4_1", (3, 64), 3 * 2 * 20)
        np.testing.assert_array_equal(
            checkpoint.raw("plain").view("<f4").reshape(3, 64), tensors["plain"]
        )


def test_block_types_agree_with_the_gguf_package() -> None:
    # q8_1 holds activations at run time and is in no file; the package gives it another size. What
    # is no number of its own was added for tests.
    theirs = {
        int(kind): (kind.name.lower(), *size)
        for kind, size in gguf.GGML_QUANT_SIZES.items()
        if isinstance(kind, gguf.GGMLQuantizationType) and kind != gguf.GGMLQuantizationType.Q8_1
    }
    ours = {kind: tuple(block) for kind, block in BLOCK_TYPES.items()}
    both = theirs.keys() & ours.keys()
    assert both >= {0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 24, 26, 30}
    assert {kind: ours[kind] for kind in both} == {kind: theirs[kind] for kind in both}


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(1 << 31), (1 << 64) - 1),
    st.floats(width=32, allow_nan=False),
    st.text(min_size=1, max_size=40),  # the package drops keys with an empty string
    st.lists(st.text(max_size=10), min_size=1, max_size=20),
    st.lists(st.integers(-(1 << 31), (1 << 31) - 1), min_size=1, max_size=20),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20),
)
KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@given(
    metadata=st.dictionaries(KEYS, VALUES, max_size=8),
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), max_size=5),
    alignment=st.sampled_from([None, 8, 64, 4096]),
)
@settings(max_examples=60, deadline=None)
def test_reads_whatever_the_package_writes(
    metadata: dict[str, Any], shapes: list[list[int]], alignment: int | None
) -> None:
    metadata = {"general.architecture": "llama"} | metadata
    metadata.pop("general.alignment", None)
    tensors = {f"t{i}": np.full(shape, i, np.float32) for i, shape in enumerate(shapes)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.gguf")
        gw.write_gguf(path, metadata, tensors, alignment=alignment)
        with open_checkpoint(path) as checkpoint:
            found = dict(checkpoint.metadata)
            assert found.pop("general.alignment", None) == alignment
            assert found == metadata
            assert {n: t.shape for n, t in checkpoint.tensors.items()} == {
                n: t.shape for n, t in tensors.items()
            }
            for name, array in tensors.items():
                assert checkpoint.raw(name).tobytes() == array.tobytes()


@pytest.mark.parametrize("version", [2, 3])
def test_every_value_type_at_its_limits(path: Path, version: int) -> None:
    values: dict[int, list[float]] = {
        gw.U8: [0, 255],
        gw.I8: [-128, 127],
        gw.U16: [0, 65535],
        gw.I16: [-32768, 32767],
        gw.U32: [0, (1 << 32) - 1],
        gw.I32: [-(1 << 31), (1 << 31) - 1],
        gw.U64: [0, (1 << 64) - 1],
        gw.I64: [-(1 << 63), (1 << 63) - 1],
        gw.F32: [0.5, float("inf")],
        gw.F64: [1e-300, -0.1],
        gw.BOOL: [False, True],
    }
    keys = []
    for kind, pair in values.items():
        packed = [gw.number(kind, value) for value in pair]
        keys += [gw.key(b"%d.%d" % (kind, i), kind, p) for i, p in enumerate(packed)]
        keys.append(gw.key(b"%d.array" % kind, gw.ARRAY, gw.array(kind, packed)))
    path.write_bytes(gw.image(keys, version=version))
    with open_checkpoint(path) as checkpoint:
        for kind, pair in values.items():
            assert checkpoint.metadata[f"{kind}.array"] == pair
            assert [checkpoint.metadata[f"{kind}.{i}"] for i in range(2)] == pair
            expected = {gw.F32: float, gw.F64: float, gw.BOOL: bool}.get(kind, int)
            assert {type(v) for v in checkpoint.metadata[f"{kind}.array"]} == {expected}


def test_nested_and_empty_arrays(path: Path) -> None:
    numbers = gw.array(gw.U8, [b"\1", b"\2"])
    nested = gw.array(gw.ARRAY, [numbers, gw.array(gw.STRING, []), gw.array(gw.STRING, [])])
    empty = gw.array(gw.F32, [])
    path.write_bytes(gw.image([gw.key(b"n", gw.ARRAY, nested), gw.key(b"e", gw.ARRAY, empty)]))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.metadata == {"n": [[1, 2], [], []], "e": []}


def test_tokens_that_are_not_utf8_survive(path: Path) -> None:
    tokens = [b"ok", b"\xe2\x98", b"\xff\x00\x80", "\N{SNOWMAN}".encode(), b""]
    array = gw.array(gw.STRING, [gw.string(t) for t in tokens])
    path.write_bytes(gw.image([gw.key(b"tokenizer.ggml.tokens", gw.ARRAY, array)]))
    with open_checkpoint(path) as checkpoint:
        found = checkpoint.metadata["tokenizer.ggml.tokens"]
        assert [t.encode("utf-8", "surrogateescape") for t in found] == tokens
        assert found[3] == "\N{SNOWMAN}"


def test_scalar_tensor_and_vocabulary_without_tensors(path: Path) -> None:
    path.write_bytes(gw.image(tensors=[gw.tensor(b"t", [])], data=struct.pack("<f", 2.5)))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["t"] == TensorInfo("t", "f32", (), 4)
        assert checkpoint.raw("t").view("<f4")[0] == 2.5
    path.write_bytes(gw.image([gw.key(b"a", gw.BOOL, b"\1")], alignment=1))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.metadata == {"a": True}
        assert not checkpoint.tensors


def test_tensors_in_any_order_of_offsets(path: Path) -> None:
    infos = [gw.tensor(b"second", [8], offset=32), gw.tensor(b"first", [8], offset=0)]
    path.write_bytes(gw.image(tensors=infos, data=b"a" * 32 + b"b" * 32))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.raw("first").tobytes() == b"a" * 32
        assert checkpoint.raw("second").tobytes() == b"b" * 32
        assert list(checkpoint.tensors) == ["second", "first"]


# -- views, pages, closing -----------------------------------------------------------------------


def sound(path: Path, n: int = 8) -> Path:
    data = np.arange(n, dtype="<f4").tobytes()
    path.write_bytes(gw.image(tensors=[gw.tensor(b"t", [n])], data=data))
    return path


def test_raw_is_one_read_only_view(path: Path) -> None:
    with open_checkpoint(sound(path)) as checkpoint:
        a, b = checkpoint.raw("t"), checkpoint.raw("t")
        assert np.shares_memory(a, b)
        assert not a.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            a[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            a.flags.writeable = True


def test_unknown_tensor_and_metadata_are_closed_to_writers(path: Path) -> None:
    with open_checkpoint(sound(path)) as checkpoint:
        for call in (checkpoint.raw, checkpoint.release):
            with pytest.raises(CheckpointError, match="not among the 1 tensors") as caught:
                call("missing")
            assert caught.value.tensor == "missing"
        with pytest.raises(TypeError):
            checkpoint.metadata["a"] = 1  # type: ignore[index]
        with pytest.raises(TypeError):
            del checkpoint.tensors["t"]  # type: ignore[attr-defined]


def test_close_with_views_alive(path: Path) -> None:
    checkpoint = open_checkpoint(sound(path, 4096))
    view = checkpoint.raw("t")
    checkpoint.close()
    checkpoint.close()
    for call in (checkpoint.raw, checkpoint.release):
        with pytest.raises(ClosedError, match="closed"):
            call("t")
    assert float(view.view("<f4")[4095]) == 4095.0


def mapped(path: Path) -> bool:
    gc.collect()
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_nothing_stays_mapped(path: Path) -> None:
    checkpoint = open_checkpoint(sound(path))
    view = checkpoint.raw("t")
    assert mapped(path)
    checkpoint.close()
    assert mapped(path)
    del view
    assert not mapped(path)
    refusal(path, gw.image(tensors=[gw.tensor(b"t", [8])], data=b""))
    assert not mapped(path)


def resident_bytes(path: Path) -> int:
    """How much of the mapping of this file is in memory."""
    mapping = Path("/proc/self/smaps").read_text().split(str(path))[1]
    return int(mapping.split("Rss:")[1].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="madvise and /proc are of Linux")
def test_release_gives_pages_back(path: Path) -> None:
    n = 4 << 20
    with open_checkpoint(sound(path, n)) as checkpoint:
        view = checkpoint.raw("t").view("<f4")
        total = float(view.sum(dtype=np.float64))
        assert resident_bytes(path) > 2 * n
        checkpoint.release("t")
        assert resident_bytes(path) <= 2 * mmap.PAGESIZE  # those that it shares with neighbours
        assert float(view.sum(dtype=np.float64)) == total == n * (n - 1) / 2


def test_release_of_a_tensor_smaller_than_a_page(path: Path) -> None:
    with open_checkpoint(sound(path)) as checkpoint:
        checkpoint.release("t")
        assert checkpoint.raw("t").view("<f4").tolist() == list(range(8))


# -- files that are cut short or lie -------------------------------------------------------------

VALUE = gw.number(gw.U32, 1)
HUGE = (1 << 64) - 1


def array_key(kind: int, count: int, payload: bytes = b"") -> bytes:
    return gw.image([gw.key(b"a", gw.ARRAY, gw.array(kind, [payload], count=count))])


def unpadded_strings(count: int) -> bytes:
    strings = gw.array(gw.STRING, [gw.string(b"eight by")] * count)
    return gw.image([gw.key(b"a", gw.ARRAY, strings)], alignment=1)


def nested_key(depth: int) -> bytes:
    payload = gw.array(gw.U8, [b"\1"])
    for _ in range(depth):
        payload = gw.array(gw.ARRAY, [payload])
    return gw.image([gw.key(b"a", gw.ARRAY, payload)])


def one_tensor(ne: list[int], kind: int = 0, offset: int = 0, data: int = 64) -> bytes:
    return gw.image(tensors=[gw.tensor(b"t", ne, kind, offset)], data=bytes(data))


def aligned(kind: int, payload: bytes) -> bytes:
    return gw.image([gw.key(b"general.alignment", kind, payload)])


def two_tensors(first: int, second: int) -> bytes:
    infos = [gw.tensor(b"t", [16], offset=first), gw.tensor(b"u", [16], offset=second)]
    return gw.image(tensors=infos, data=bytes(256))


HOSTILE = {
    # name: (bytes of the file, words of the error, tensor it names)
    "empty": (b"", "empty", None),
    "only_magic": (b"GGUF", "ends inside its header", None),
    "not_gguf": (b"\x00" * 100, "expected a GGUF file", None),
    "html": (b"<!DOCTYPE html><html>", "HTML", None),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull", None),
    "ggml": (b"tjgg" + bytes(60), "before GGUF", None),
    "version_1": (gw.image(version=1), "version 1, expected 2 or 3", None),
    "version_4": (gw.image(version=4), "version 4, expected 2 or 3", None),
    "version_0": (gw.image(version=0), "version 0, expected 2 or 3", None),
    "big_endian": (gw.image(version=3 << 24), "big-endian", None),
    "keys_huge": (gw.image(n_keys=HUGE), f"claims {HUGE} keys", None),
    "keys_more": (gw.image([gw.key(b"a", gw.U32, VALUE)], n_keys=3), "bytes long, expected", None),
    "tensors_huge": (gw.image(n_tensors=1 << 62), f"claims {1 << 62} tensors", None),
    "tensors_cap": (gw.image(n_tensors=65537), "expected at most 65536", None),
    "key_long": (gw.image([gw.string(b"a", length=HUGE)]), "expected 1 to 1024", None),
    "key_empty": (gw.image([gw.key(b"", gw.U32, VALUE)]), "0 bytes long", None),
    "key_not_utf8": (gw.image([gw.key(b"\xff", gw.U32, VALUE)]), "not UTF-8", None),
    "key_twice": (gw.image([gw.key(b"a", gw.U32, VALUE)] * 2), "'a' occurs twice", None),
    "key_type": (gw.image([gw.key(b"a", 13, VALUE)]), "unknown value type 13", None),
    "bool_2": (gw.image([gw.key(b"a", gw.BOOL, b"\2")]), "bool with the value 2", None),
    "bool_in_array": (array_key(gw.BOOL, 1, b"\xff"), "bool with the value 255", None),
    "string_huge": (
        gw.image([gw.key(b"a", gw.STRING, gw.string(b"x", length=HUGE))]),
        f"expected {HUGE} bytes for 'a'",
        None,
    ),
    "array_type": (array_key(99, 1), "unknown element type 99", None),
    "array_huge": (array_key(gw.U8, HUGE), f"array 'a' of {HUGE}", None),
    "array_overflow": (array_key(gw.F64, 1 << 61), f"expected {1 << 64} bytes", None),
    "array_strings_huge": (array_key(gw.STRING, 1 << 60), "ends inside its header", None),
    "array_of_arrays_huge": (array_key(gw.ARRAY, 1 << 60), "ends inside its header", None),
    "array_string_long": (
        array_key(gw.STRING, 1, gw.string(b"x", length=1 << 63)),
        "an element of 'a'",
        None,
    ),
    "array_string_cut_in_text": (unpadded_strings(2)[:-1], "an element of 'a'", None),
    "array_string_cut_in_length": (
        unpadded_strings(2)[:-13],
        "the length of an element of 'a'",
        None,
    ),
    "nested": (nested_key(5), "nested more than 4 deep", None),
    "nested_deep": (nested_key(5000), "nested more than 4 deep", None),
    "alignment_0": (aligned(gw.U32, gw.number(gw.U32, 0)), "power of two", None),
    "alignment_12": (aligned(gw.U32, gw.number(gw.U32, 12)), "got 12", None),
    "alignment_4": (aligned(gw.U32, gw.number(gw.U32, 4)), "got 4", None),
    "alignment_large": (aligned(gw.U32, gw.number(gw.U32, 1 << 31)), f"got {1 << 31}", None),
    "alignment_negative": (aligned(gw.I64, gw.number(gw.I64, -32)), "got -32", None),
    "alignment_string": (aligned(gw.STRING, gw.string(b"32")), "got a str", None),
    "alignment_float": (aligned(gw.F32, gw.number(gw.F32, 32)), "got a float", None),
    "alignment_bool": (aligned(gw.BOOL, b"\1"), "got a bool", None),
    "alignment_array": (aligned(gw.ARRAY, gw.array(gw.U8, [b"\x20"])), "got a list", None),
    "split": (
        gw.image([gw.key(b"split.count", gw.U16, gw.number(gw.U16, 3))]),
        "split into 3 files",
        None,
    ),
    "split_many": (
        gw.image([gw.key(b"split.count", gw.U32, gw.number(gw.U32, 1 << 31))]),
        "expected at most 1000",
        None,
    ),
    "split_type": (
        gw.image([gw.key(b"split.count", gw.STRING, gw.string(b"3"))]),
        "expected an integer, got a str",
        None,
    ),
    "name_empty": (gw.image(tensors=[gw.tensor(b"", [8])], data=bytes(32)), "0 bytes long", None),
    "name_not_utf8": (gw.image(tensors=[gw.tensor(b"\x80", [8])]), "not UTF-8", None),
    "name_twice": (
        gw.image(tensors=[gw.tensor(b"t", [8]), gw.tensor(b"t", [8], offset=32)], data=bytes(64)),
        "'t' occurs twice",
        None,
    ),
    "dims_5": (one_tensor([1, 1, 1, 1, 1]), "has 5 dimensions, expected at most 4", None),
    "dims_huge": (
        gw.image(tensors=[gw.tensor(b"t", [8], n_dims=0xFFFFFFFF)]),
        "has 4294967295 dimensions",
        None,
    ),
    "dim_0": (one_tensor([8, 0]), "dimensions of at least 1", "t"),
    "dims_overflow_64": (one_tensor([1 << 32, 1 << 32]), "fits in 63 bits", "t"),
    "dims_overflow_wraps": (one_tensor([1 << 33, 1 << 31, 2, 1]), "fits in 63 bits", "t"),
    "dims_overflow_256": (one_tensor([HUGE, HUGE, HUGE, HUGE]), "fits in 63 bits", "t"),
    "dim_beyond_file": (one_tensor([1 << 40]), "truncated", "t"),
    "bytes_overflow": (one_tensor([1 << 62]), f"at least {(1 << 64) + 64} bytes", "t"),
    "type_unknown": (one_tensor([8], kind=99), "unknown type 99", "t"),
    "type_removed": (one_tensor([32], kind=4), "unknown type 4", "t"),
    "row_not_blocks": (one_tensor([33], kind=2), "multiple of 32 for type q4_0", "t"),
    "row_not_superblocks": (one_tensor([32, 8], kind=12), "multiple of 256", "t"),
    "offset_unaligned": (one_tensor([4], offset=4), "not a multiple of the alignment", "t"),
    "offset_beyond_file": (one_tensor([8], offset=1 << 20), "truncated", "t"),
    "offset_overflow": (one_tensor([8], offset=(1 << 64) - 32), "truncated", "t"),
    "overlap": (two_tensors(0, 32), "inside those of 't'", "u"),
    "overlap_same": (two_tensors(64, 64), "inside those of 't'", "u"),
    "overlap_backwards": (two_tensors(32, 0), "inside those of 'u'", "t"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file(path: Path, case: str) -> None:
    image, words, tensor = HOSTILE[case]
    tracemalloc.start()
    error = refusal(path, image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert words in error.message
    assert error.tensor == tensor
    assert peak < 4 << 20, f"a refusal took {peak} bytes"


def test_too_many_elements_in_all(path: Path) -> None:
    half = gw.array(gw.U8, [bytes(MAX_ELEMENTS // 2)], count=MAX_ELEMENTS // 2)
    keys = [gw.key(b"a", gw.ARRAY, half), gw.key(b"b", gw.ARRAY, half)]
    path.write_bytes(gw.image(keys))
    with open_checkpoint(path) as checkpoint:
        assert len(checkpoint.metadata["b"]) == MAX_ELEMENTS // 2
    one = gw.key(b"c", gw.ARRAY, gw.array(gw.U8, [b"\0"]))
    assert "up to 'c'" in refusal(path, gw.image([*keys, one])).message
    nested = gw.array(gw.ARRAY, [gw.array(gw.U8, [])] * (MAX_ELEMENTS // 64 + 1))
    assert "up to 'd'" in refusal(path, gw.image([gw.key(b"d", gw.ARRAY, nested)])).message


def test_every_truncation_is_noticed(path: Path) -> None:
    gw.write_gguf(
        path,
        {"general.architecture": "llama", "a": ["x", "yz"], "b": [1, 2, 3]},
        {"t": np.ones((2, 8), np.float32), "u": (np.ones((1, 32), np.float32), "q8_0")},
    )
    whole = path.read_bytes()
    with open_checkpoint(path) as checkpoint:
        last = checkpoint.tensors["u"].nbytes
    end = len(whole) - (-last % 32)  # the padding after the last tensor is not needed
    for size in range(end):
        error = refusal(path, whole[:size])
        assert "truncated" in error.message or size < len(b"GGUF")
    message = refusal(path, whole[: end - 1]).message
    assert f"expected a file of at least {end} bytes, found {end - 1}" in message
    path.write_bytes(whole[:end])
    open_checkpoint(path).close()


def test_errors_show_file_and_tensor_and_belong_to_slmq(path: Path) -> None:
    error = refusal(path, one_tensor([8], kind=99))
    assert isinstance(error, Error)
    assert str(error).startswith(f"{path}: tensor 't': unknown type 99")
