"""Hub ids through the real ``huggingface_hub`` library, against a server that speaks its protocol.

The library reads its environment at import, so each scene runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from hub_cases import BODY, dead_url, environment
from hub_server import Page, Server

from slmq.errors import ModelNotFoundError
from slmq.hub.names import HubModel, parse_hub_id, select_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FOLDER = {
    "README.md": b"# hello",
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "model.safetensors": BODY,
    "pytorch_model.bin": b"x" * 100,
    "onnx/model.onnx": b"x",
}
WEIGHTS = ("tokenizer.json", "model.safetensors")
GGUFS = {"a-Q4_0.gguf": BODY, "a-Q8_0.gguf": BODY[::-1], "README.md": b""}

CHILD = """
import json, sys
from slmq import hub
from slmq.errors import Error
class Notes:
    def __init__(self): self.seen = []
    def message(self, text): self.seen.append(text)
    def update(self, label, done, total): self.seen.append([label, done, total])
for verb, arguments in json.loads(sys.argv[1]):
    notes = Notes()
    extra = {"progress": notes} if verb in ("resolve", "pull") else {}
    try:
        said = getattr(hub, verb)(**arguments, **extra)
    except Error as error:
        said = [type(error).__name__, str(error)]
    print(json.dumps([said, notes.seen], default=lambda found: str(getattr(found, "path", found))))
"""


def run(*calls: tuple[str, Mapping[str, object]]) -> list[tuple[object, list[object]]]:
    """Call functions of `slmq.hub` in a new process; return what each said and its notes."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(calls)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "%|" not in done.stderr, "a progress bar of the library got through"
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def pull(name: str, **arguments: object) -> tuple[str, Mapping[str, object]]:
    return "pull", {"name": name, **arguments}


def resolve(model: str, **arguments: object) -> tuple[str, Mapping[str, object]]:
    return "resolve", {"model": model, **arguments}


@pytest.fixture
def repository(server: Server) -> Server:
    server.add_repository("org/name", FOLDER, COMMIT)
    return server


# ---- names and files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("org/name", HubModel("org/name", None)),
        ("Qwen/Qwen2.5-0.5B-Instruct", HubModel("Qwen/Qwen2.5-0.5B-Instruct", None)),
        ("org/name:Q4_0", HubModel("org/name", "Q4_0")),
        ("org/name:*q8*.gguf", HubModel("org/name", "*q8*.gguf")),
        ("name", None),
        ("a/b/c", None),
        ("../up", None),
        ("org/..", None),
        ("org/file.gguf", None),
        ("org/name:", None),
        ("C:/model", None),
    ],
)
def test_hub_ids(text: str, model: HubModel | None) -> None:
    assert parse_hub_id(text) == model


@pytest.mark.parametrize(
    ("names", "pattern", "chosen"),
    [
        (
            [*FOLDER],
            None,
            ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"],
        ),
        (
            [
                "config.json",
                "consolidated.safetensors",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "other.gguf",
            ],
            None,
            [
                "config.json",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ],
        ),
        (["a-Q4_0.gguf", "a-Q8_0.gguf"], "q8_0", ["a-Q8_0.gguf"]),
        (["a-Q4_0.gguf", "a-Q8_0.gguf"], "*Q4_0.gguf", ["a-Q4_0.gguf"]),
        (["only.gguf", "config.json"], None, ["only.gguf"]),
        (
            ["config.json", "merges.txt", "model.safetensors", "spiece.model", "vocab.json"],
            None,
            ["config.json", "merges.txt", "spiece.model", "vocab.json", "model.safetensors"],
        ),
        (
            ["config.json", "merges.txt", "model.safetensors", "tokenizer.json", "vocab.json"],
            None,
            ["config.json", "tokenizer.json", "model.safetensors"],
        ),
        (["config.json", "model.safetensors", "x.gguf"], "x", ["x.gguf"]),
    ],
)
def test_which_files(names: list[str], pattern: str | None, chosen: list[str]) -> None:
    assert select_files(names, HubModel("org/name", pattern)) == chosen


@pytest.mark.parametrize(
    ("names", "pattern", "complaint"),
    [
        (["a-Q4_0.gguf", "a-Q8_0.gguf"], None, r"2 GGUF files match; choose one as org/name:PAT"),
        (["a-Q4_0.gguf"], "q5", "no GGUF file matches; choose one .* out of a-Q4_0.gguf"),
        (["config.json", "pytorch_model.bin"], None, "neither config.json with model.safetensors"),
    ],
)
def test_no_fitting_files(names: list[str], pattern: str | None, complaint: str) -> None:
    with pytest.raises(ModelNotFoundError, match=complaint):
        select_files(names, HubModel("org/name", pattern))


# ---- good days ----------------------------------------------------------------------------------


def test_a_folder_comes_once_and_is_found_again(repository: Server, tmp_path: Path) -> None:
    first, again, offline, listed = run(
        resolve("org/name"),
        resolve("org/name"),
        resolve("org/name", local_files_only=True, revision=COMMIT),
        ("list_models", {}),
    )
    folder = Path(str(first[0]))
    assert folder.is_relative_to(tmp_path / "hf")
    names = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "model.safetensors").read_bytes() == BODY
    # The two tokenizer files are alike, and are fetched once.
    total = sum(map(len, {FOLDER[name] for name in names}))
    assert ["org/name", total, total] in first[1]
    assert "org/name: downloading 4 files" in str(first[1][0])
    assert first[0] == again[0] == offline[0]
    assert again[1] == []
    assert listed[0] == [str(folder)]
    listings = [r for r in repository.requests if r.path == "/api/models/org/name"]
    assert len(listings) == 1


def test_one_gguf_by_pattern_and_away_with_it(server: Server) -> None:
    server.add_repository("org/gguf", GGUFS, COMMIT)
    q4, q8, several, freed, left, gone = run(
        pull("org/gguf:Q4_0"),
        pull("org/gguf:Q8_0"),
        pull("org/gguf"),
        ("remove", {"name": "org/gguf:Q8_0"}),
        ("list_models", {}),
        ("remove", {"name": "org/gguf:Q8_0"}),
    )
    assert Path(str(q4[0])).read_bytes() == BODY
    assert not Path(str(q8[0])).exists()
    assert several[0][0] == "ModelNotFoundError"  # type: ignore[index]
    assert freed[0] == len(BODY)
    assert left[0] == [q4[0]]
    assert gone[0][0] == "ModelNotFoundError"  # type: ignore[index]
    assert server.gets(f"/org/gguf/resolve/{COMMIT}/README.md") == []


def test_a_name_removes_all_of_its_files(server: Server, tmp_path: Path) -> None:
    server.add_repository("org/gguf", GGUFS, COMMIT)
    *_, freed, left = run(
        pull("org/gguf:Q4_0"),
        pull("org/gguf:Q8_0"),
        ("remove", {"name": "org/gguf"}),
        ("list_models", {}),
    )
    assert (freed[0], left[0]) == (2 * len(BODY), [])
    assert not [p for p in (tmp_path / "hf").rglob("*") if p.is_file() and p.stat().st_size > 1000]


def test_pull_brings_the_newest_and_resolve_does_not_ask(repository: Server) -> None:
    (first,) = run(pull("org/name"))
    newer = {**FOLDER, "config.json": b'{"model_type": "phi3"}'}
    repository.add_repository("org/name", newer, COMMIT[::-1])
    resolved, pulled, then = run(resolve("org/name"), pull("org/name"), resolve("org/name"))
    assert resolved[0] == first[0]
    assert (Path(str(pulled[0])) / "config.json").read_bytes() == newer["config.json"]
    assert then[0] == pulled[0] != first[0]


def test_a_catalogue_name_is_its_repository(server: Server, tmp_path: Path) -> None:
    server.add_repository("Qwen/Qwen2.5-0.5B-Instruct", FOLDER, COMMIT)
    absent, pulled, by_name, by_id, listed, freed, gone = run(
        resolve("qwen2.5-0.5b-instruct", local_files_only=True),
        pull("qwen2.5-0.5b-instruct"),
        resolve("qwen2.5-0.5b-instruct", revision=COMMIT),
        resolve("Qwen/Qwen2.5-0.5B-Instruct"),
        ("list_models", {}),
        ("remove", {"name": "qwen2.5-0.5b-instruct"}),
        ("list_models", {}),
    )
    assert "slmq pull qwen2.5-0.5b-instruct" in absent[0][1]  # type: ignore[index]
    assert (Path(str(by_name[0])).parent / COMMIT).name == COMMIT
    assert pulled[0] == by_name[0] == by_id[0] == listed[0][0]  # type: ignore[index]
    assert by_name[1] == by_id[1] == []
    # The two tokenizer files are alike, and lie in the cache once.
    assert freed[0] == sum(map(len, {FOLDER[name] for name in ("config.json", *WEIGHTS)}))
    assert gone[0] == []


def test_the_catalogue_describes_what_is_resolved_by_either_name(server: Server) -> None:
    server.add_repository("Qwen/Qwen2.5-0.5B-Instruct", FOLDER, COMMIT)
    child = (
        "from slmq import hub\n"
        "for name in ('qwen2.5-0.5b-instruct', 'Qwen/Qwen2.5-0.5B-Instruct'):\n"
        "    found = hub.resolve(name)\n"
        "    print(found.name, found.entry.licence, found.entry.sampling['top_k'])\n"
        "(cached,) = hub.list_models()\n"
        "print(cached.name, cached.licence, cached.source)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", child], env=environment(), capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines() == [
        "qwen2.5-0.5b-instruct Apache-2.0 20",
        "Qwen/Qwen2.5-0.5B-Instruct Apache-2.0 20",
        "qwen2.5-0.5b-instruct Apache-2.0 hub",
    ]


def test_one_gguf_of_a_catalogue_repository(server: Server) -> None:
    files = {"orca-2-7b.Q4_K_M.gguf": BODY, "orca-2-7b.Q8_0.gguf": BODY[::-1]}
    server.add_repository("TheBloke/Orca-2-7B-GGUF", files, COMMIT)
    pulled, again = run(pull("orca-2-7b"), resolve("orca-2-7b", local_files_only=True))
    assert Path(str(pulled[0])).name == "orca-2-7b.Q4_K_M.gguf"
    assert pulled[0] == again[0]


def test_a_file_whose_etag_is_the_same_is_not_fetched_again(repository: Server) -> None:
    (first,) = run(pull("org/name"))
    newer = {**FOLDER, "config.json": b'{"model_type": "qwen2"}'}
    newest = COMMIT[::-1]
    repository.add_repository("org/name", newer, newest)
    (second,) = run(pull("org/name"))
    assert Path(str(second[0])).name == newest
    assert first[0] != second[0]
    assert (Path(str(second[0])) / "model.safetensors").read_bytes() == BODY
    fetched = [r.path for r in repository.requests if r.method == "GET"]
    weights = f"/org/name/resolve/{COMMIT}/model.safetensors"
    assert fetched.count(weights) == 1
    assert not fetched.count(weights.replace(COMMIT, newest))
    for commit in (COMMIT, newest):
        assert fetched.count(f"/org/name/resolve/{commit}/config.json") == 1


def test_weights_that_changed_while_they_came_are_not_joined(repository: Server) -> None:
    """A part of the old file never gets the rest of the new one."""
    path = f"/org/name/resolve/{COMMIT}/model.safetensors"
    repository.pages[path].cuts = [200_000, *[0] * 20]  # however often we ask again
    (broken,) = run(resolve("org/name"))
    newer = {**FOLDER, "model.safetensors": BODY[::-1]}
    repository.add_repository("org/name", newer, COMMIT[::-1])
    (whole,) = run(resolve("org/name"))
    assert broken[0][0] == "DownloadError"  # type: ignore[index]
    assert (Path(str(whole[0])) / "model.safetensors").read_bytes() == BODY[::-1]


# ---- other programs ----------------------------------------------------------------------------


LIBRARY = """
import json, os, sys
import huggingface_hub as library
files = [library.hf_hub_download("org/name", name) for name in json.loads(sys.argv[1])]
(folder,) = {os.path.dirname(file) for file in files}
report = library.scan_cache_dir()
print(json.dumps([folder, [str(warning) for warning in report.warnings], report.size_on_disk]))
"""
LOADED = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]


def library_downloads() -> list[object]:
    """What the library finds or fetches, what it says about its cache, and the bytes in it."""
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY, json.dumps(LOADED)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(done.stdout))


def test_the_library_finds_what_we_fetched(
    repository: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((path, _),) = run(pull("org/name"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    total = sum(map(len, {FOLDER[name] for name in LOADED}))
    assert library_downloads() == [path, [], total]


def test_we_find_what_the_library_fetched(repository: Server) -> None:
    folder, *_ = library_downloads()
    before = len(repository.requests)
    ((path, notes),) = run(resolve("org/name"))
    assert (path, notes) == (folder, [])
    assert len(repository.requests) == before


# ---- bad days -----------------------------------------------------------------------------------


def test_what_the_hub_refuses(repository: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    gated = Page(status=403, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"})
    repository.pages["/api/models/org/gated"] = gated
    for path in ("/api/models/org/none", "/api/models/org/SmolLM2-135M-Instruct"):
        repository.pages[path] = Page(status=404, headers={"X-Error-Code": "RepoNotFound"})
    repository.pages["/api/models/org/name/revision/v9"] = Page(
        status=404, headers={"X-Error-Code": "RevisionNotFound"}
    )
    refused = run(
        resolve("org/gated"),
        resolve("org/none"),
        resolve("org/SmolLM2-135M-Instruct"),
        resolve("org/name", revision="v9"),
        resolve("org/name", local_files_only=True),
    )
    (gated_kind, gated_text), (none_kind, none_text), near, revision, local = (
        said
        for said, _ in refused  # type: ignore[misc]
    )
    assert gated_kind == "DownloadError"
    assert f"accept its conditions at {repository.url}/org/gated, then set HF_TOKEN" in gated_text
    assert none_kind == "ModelNotFoundError"
    assert f"{repository.url}/org/none does not exist or is private" in none_text
    assert "the catalogue has smollm2-135m-instruct" in near[1]
    assert revision[0] == "ModelNotFoundError"
    assert "has no revision 'v9'" in revision[1]
    assert "local_files_only forbids" in local[1]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ((kind, text),) = (said for said, _ in run(resolve("org/name")))  # type: ignore[misc]
    assert kind == "DownloadError"
    assert "HF_HUB_OFFLINE forbids" in text


def test_a_gated_repository_lists_its_files_and_keeps_them(
    repository: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the real hub does: everybody may see the listing, the files need a token."""
    repository.add_repository("google/gemma-2b-it", FOLDER, COMMIT)
    locked = Page(
        status=401, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "Access restricted"}
    )
    files = {
        path: page
        for path, page in repository.pages.items()
        if path.startswith("/google/gemma-2b-it/resolve/")
    }
    repository.pages |= dict.fromkeys(files, locked)
    ((said, _), listed) = run(resolve("gemma-2b-it"), ("list_models", {}))
    assert said[0] == "DownloadError"  # type: ignore[index]
    assert (
        f"google/gemma-2b-it is gated; accept its conditions at "
        f"{repository.url}/google/gemma-2b-it, then set HF_TOKEN" in said[1]  # type: ignore[index]
    )
    assert listed[0] == []
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    repository.pages |= files
    for page in files.values():
        page.authorization = "Bearer hf_accepted"
    ((path, _),) = run(resolve("gemma-2b-it"))
    assert (Path(str(path)) / "model.safetensors").read_bytes() == BODY


def test_the_token_reaches_the_hub(repository: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for page in repository.pages.values():
        page.authorization = "Bearer hf_secret"
    ((path, _),) = run(resolve("org/name"))
    assert (Path(str(path)) / "model.safetensors").read_bytes() == BODY


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", dead := dead_url())
    ((said, _),) = run(resolve("org/name"))
    kind, text = said  # type: ignore[misc]
    assert kind == "DownloadError"
    assert f"org/name: {dead} did not answer" in text


def test_a_hub_that_hangs(repository: Server) -> None:
    repository.pages["/api/models/org/name"].hang = threading.Event()
    ((said, _),) = run(resolve("org/name"))
    assert said[0] == "DownloadError"  # type: ignore[index]
    assert "did not answer" in said[1]  # type: ignore[index]


def test_a_cut_in_the_middle_is_continued_or_begun_again(repository: Server) -> None:
    repository.pages[f"/org/name/resolve/{COMMIT}/model.safetensors"].cuts = [200_000]
    repository.pages[f"/org/name/resolve/{COMMIT}/model.safetensors"].cuts = [200_000]
    *_, (path, _) = run(resolve("org/name"), resolve("org/name"))
    assert (Path(str(path)) / "model.safetensors").read_bytes() == BODY


def test_half_of_the_shards_is_no_model(server: Server, tmp_path: Path) -> None:
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index}
    server.add_repository(
        "org/big", {**files, **dict(zip(shards, (BODY, BODY[::-1]), strict=True))}, COMMIT
    )
    second = server.pages[f"/org/big/resolve/{COMMIT}/{shards[1]}"]
    second.status = 404
    broken, local = run(resolve("org/big"), resolve("org/big", local_files_only=True))
    assert broken[0][0] == "DownloadError"  # type: ignore[index]
    assert local[0][0] == "ModelNotFoundError"  # type: ignore[index]
    assert list((tmp_path / "hf").rglob(shards[0]))
    second.status = 200
    whole, local = run(resolve("org/big"), resolve("org/big", local_files_only=True))
    assert whole[0] == local[0]
    assert len(server.gets(f"/org/big/resolve/{COMMIT}/{shards[0]}")) == 1


def test_a_wrong_checksum_is_deleted(repository: Server, tmp_path: Path) -> None:
    path = f"/org/name/resolve/{COMMIT}/model.safetensors"
    repository.pages[path].body = BODY[:-1] + bytes([BODY[-1] ^ 1])
    ((said, _), listed, local) = run(
        resolve("org/name"), ("list_models", {}), resolve("org/name", local_files_only=True)
    )
    assert said[0] == "DownloadError"  # type: ignore[index]
    assert "wrong checksum of model.safetensors: expected sha256" in said[1]  # type: ignore[index]
    assert listed[0] == []
    assert local[0][0] == "ModelNotFoundError"  # type: ignore[index]
    assert not [p for p in (tmp_path / "hf").rglob("*") if p.is_file() and p.stat().st_size > 9999]


def test_a_hub_cache_that_cannot_be_written(
    repository: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file" / "hf"))
    ((said, _),) = run(resolve("org/name"))
    assert said[0] == "CacheError"  # type: ignore[index]
    assert "set HF_HOME to a folder" in said[1]  # type: ignore[index]


def test_a_model_larger_than_the_disk(repository: Server) -> None:
    listing = repository.pages["/api/models/org/name"]
    listing.body = listing.body.replace(b'"size": 600000', b'"size": 562949953421312')
    ((said, _),) = run(resolve("org/name"))
    assert said[0] == "CacheError"  # type: ignore[index]
    assert "are free; free some space, or set HF_HOME" in said[1]  # type: ignore[index]
    assert repository.gets(f"/org/name/resolve/{COMMIT}/model.safetensors") == []
