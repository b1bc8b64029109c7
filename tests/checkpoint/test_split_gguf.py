"""GGUF models that are split into files."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_writer import write_gguf

from slmq.checkpoint import open_checkpoint
from slmq.errors import CheckpointError


def tensor(i: int) -> np.ndarray:
    return np.full((2, 32), i, np.float32)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Five tensors in three files, as the `gguf` package writes them."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    writer.add_string("general.name", "split")
    for i in range(5):
        writer.add_tensor(f"t{i}", tensor(i))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check_whole(path: Path, folder: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.path == folder / "m-00001-of-00003.gguf"
        assert list(checkpoint.tensors) == [f"t{i}" for i in range(5)]
        assert checkpoint.metadata["general.name"] == "split"
        assert len(checkpoint.files) == 3
        for i in range(5):
            assert (checkpoint.raw(f"t{i}").view(np.float32) == i).all()


def test_any_part_opens_all(split: Path) -> None:
    assert names(split) == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for name in names(split):
        check_whole(split / name, split)


def test_a_folder_of_parts_is_one_model(split: Path) -> None:
    check_whole(split, split)
    write_gguf(split / "other.gguf", {"general.architecture": "llama"}, {"t": tensor(0)})
    with pytest.raises(CheckpointError, match=r"2 GGUF files.*m-00001-of-00003.*other"):
        open_checkpoint(split)


def test_missing_parts_are_named(split: Path) -> None:
    (split / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(CheckpointError, match=r"1 of the 3 files.*missing: m-00002-of-00003\.gguf"):
        open_checkpoint(split)


def test_a_part_under_another_name(split: Path) -> None:
    shutil.copy(split / "m-00001-of-00003.gguf", split / "first.gguf")
    with pytest.raises(CheckpointError, match="give the parts their names back"):
        open_checkpoint(split / "first.gguf")


def test_parts_that_are_mixed_up(split: Path) -> None:
    shutil.copy(split / "m-00003-of-00003.gguf", split / "m-00002-of-00003.gguf")
    with pytest.raises(CheckpointError, match=r"its name says part 2 of 3, its header split\.no 2"):
        open_checkpoint(split)


def test_a_part_of_another_model(split: Path, tmp_path: Path) -> None:
    write_gguf(
        split / "m-00003-of-00003.gguf",
        {"general.architecture": "llama", "split.no": 2, "split.count": 3},
        {"t4": tensor(4), "t5": tensor(5)},
    )
    with pytest.raises(CheckpointError, match="expected 5 tensors in all parts, found 6"):
        open_checkpoint(tmp_path)


def test_a_tensor_in_two_parts(split: Path) -> None:
    write_gguf(
        split / "m-00003-of-00003.gguf",
        {"general.architecture": "llama", "split.no": 2, "split.count": 3},
        {"t0": tensor(4)},
    )
    with pytest.raises(CheckpointError, match="is in two parts"):
        open_checkpoint(split)


def test_a_split_model_answers_as_a_whole_one(split: Path, tmp_path: Path) -> None:
    """Converted: the packed folder knows all of its files."""
    from llama_files import logits_of, to_gguf

    whole = to_gguf("gqa_untied", tmp_path / "whole.gguf")
    reader = gguf.GGUFReader(whole)
    folder = tmp_path / "parts"
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=7)
    for field in reader.fields.values():
        if field.name.startswith("llama."):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for stored in reader.tensors:
        writer.add_tensor(stored.name, np.array(stored.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokens = [3, 4, 5, 6]
    assert np.array_equal(logits_of(folder, tokens), logits_of(whole, tokens))
