"""From a name to a path: the catalogue, the cache, and away with a model again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hub_cases import (
    BODY,
    CATALOGUE,
    HUB_PATH,
    NAME,
)
from hub_server import Page, Server

from slmq import hub
from slmq.errors import ModelNotFoundError
from slmq.generation.sampling import SamplingParams
from slmq.hub.catalogue import FileEntry, RepositoryEntry, nearest, parse_catalogue
from slmq.hub.names import parse_hub_id
from slmq.hub.store import Store

NAMED = """
afm-4.5b all-minilm-l6-v2 all-mpnet-base-v2 apertus-8b-instruct bitnet-b1.58-2b-4t distilgpt2
exaone-4.0-1.2b gemma-2-2b-it gemma-2b-it gemma-3-1b-it gemma-3-270m-it gemma-3-4b-it gemma-4-e2b-it
gemma-4-e4b-it gemma-7b-it gpt-oss-20b granite-3.1-1b-a400m-instruct granite-3.1-3b-a800m-instruct
granite-3.3-2b-instruct granite-4.0-micro helium-1-preview-2b hunyuan-1.8b-instruct lfm2-1.2b
lfm2-350m lfm2-700m lfm2-8b-a1b ministral-3-3b-instruct mistral-7b-instruct-v0.3 nanochat-d32
olmo-2-1b-instruct olmo-3-7b-instruct olmoe-1b-7b-instruct orca-2-7b phi-3-mini-4k-instruct
phi-3.5-mini-instruct phi-4 phi-4-mini-instruct qwen2.5-0.5b-instruct qwen2.5-1.5b-instruct
qwen2.5-3b-instruct qwen3-0.6b qwen3-1.7b qwen3-30b-a3b qwen3-4b qwen3.5-0.8b qwen3.5-9b
rakutenai-2.0-mini-instruct smollm2-1.7b-instruct smollm2-135m-instruct smollm2-360m-instruct
smollm3-3b stablelm-2-1.6b-chat stablelm-2-zephyr-1.6b tinyllama-1.1b-chat tinyswallow-1.5b-instruct
""".split()  # noqa: SIM905 - easier to read and to add to


def test_shipped_catalogue_names_what_people_ask_for() -> None:
    entries = hub.catalogue()
    assert sorted(entries) == NAMED
    repositories = [e.repository for e in entries.values() if isinstance(e, RepositoryEntry)]
    assert len(set(repositories)) == len(repositories) == len(entries) - 3
    for entry in entries.values():
        SamplingParams.from_kwargs(entry.sampling)
        assert 256 <= entry.context <= 262144
        if isinstance(entry, RepositoryEntry):
            model = parse_hub_id(entry.repository)
            assert model is not None
            assert str(model) == entry.repository


def test_shipped_catalogue_pins_the_default_model() -> None:
    entry = hub.catalogue()["smollm2-135m-instruct"]
    assert isinstance(entry, FileEntry)
    assert entry.sha256.startswith("b179c952")
    assert (entry.licence, entry.context, entry.bytes) == ("Apache-2.0", 8192, 98_362_432)
    assert {type(source).__name__ for source in entry.sources} == {"HubFile", "WheelMember"}


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (f"[{NAME}]", "['../up']", "is not a model name"),
        ('licence = "MIT"\n', "", "licence"),
        ('licence = "MIT"', 'license = "MIT"', "license"),
        ('file = "tiny.gguf"\nbytes', 'file = "../tiny.gguf"\nbytes', "bare name"),
        ('sha256 = "', 'sha256 = "x', "sha256 of 64 digits"),
        ('version = "1.2"', "", "expected a source with"),
        ('sha256 = "', 'repository = "org/tiny"\nsha256 = "', "unexpected keyword argument"),
    ],
)
def test_catalogue_refuses(old: str, new: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_catalogue(CATALOGUE.replace(old, new, 1))


@pytest.mark.parametrize("repository", ["tiny", "org/tiny/x", "org/", "org/a:b/c", "../tiny"])
def test_catalogue_refuses_what_is_no_repository(repository: str) -> None:
    fields = 'title = "T"\nlicence = "MIT"\narchitecture = "llama"\ncontext = 8\nformat = "x"\n'
    with pytest.raises(ValueError, match="repository: expected org/name"):
        parse_catalogue(f'[t]\n{fields}repository = "{repository}"')


def test_nearest_names() -> None:
    names = ["smollm2-135m-instruct", "tinyllama-1.1b-chat"]
    assert nearest("smollm2", names) == ["smollm2-135m-instruct"]
    assert nearest("HuggingFaceTB/SmolLM2-135M-Instruct", names)[0] == "smollm2-135m-instruct"
    assert nearest("xyz", names) == []


def test_an_existing_path_is_itself(store: Store, tmp_path: Path, server: Server) -> None:
    file = tmp_path / "some.gguf"
    file.write_bytes(b"x")
    assert store.resolve(str(file)).path == file
    assert store.resolve(file).name == "some"
    assert store.resolve(tmp_path).name == tmp_path.name
    assert server.requests == []


@pytest.mark.parametrize(
    "name",
    ["tiny-modle", "./none.gguf", "a/b/c", "../up", "a/..", "", "x\0y", "y" * 5000, "~nobody"],
)
def test_unknown_names(store: Store, server: Server, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"not in the catalogue \({NAME}\)"):
        store.resolve(name)
    assert server.requests == []


def test_unknown_name_names_the_nearest(store: Store) -> None:
    with pytest.raises(ModelNotFoundError, match=f"did you mean {NAME}"):
        store.resolve("tiny-modle")


def test_local_files_only_asks_nobody(store: Store, server: Server) -> None:
    with pytest.raises(ModelNotFoundError, match="slmq pull tiny-model"):
        store.resolve(NAME, local_files_only=True)
    assert server.requests == []


def test_a_revision_does_not_apply_to_the_catalogue(store: Store) -> None:
    with pytest.raises(ValueError, match="revision applies to hub ids"):
        store.resolve(NAME, revision="main")


def test_list_and_remove(store: Store, server: Server) -> None:
    assert store.list_models() == []
    server.pages[HUB_PATH] = Page(BODY)
    path = store.resolve(NAME).path
    (listed,) = store.list_models()
    assert (listed.name, listed.path, listed.bytes) == (NAME, path, len(BODY))
    assert (listed.source, listed.licence) == ("catalogue", "MIT")
    assert store.remove(NAME) == len(BODY)
    assert not path.parent.exists()
    assert store.list_models() == []
    with pytest.raises(ModelNotFoundError, match="in the cache, which contains nothing"):
        store.remove(NAME)


def test_a_file_of_another_size_is_no_model(store: Store, server: Server) -> None:
    server.pages[HUB_PATH] = Page(BODY)
    path = store.resolve(NAME).path
    path.write_bytes(BODY[:1000])
    assert store.list_models() == []
    assert store.resolve(NAME).path.read_bytes() == BODY


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "/etc", "a/../../x", "models", "x\0"])
def test_remove_stays_in_the_cache(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "x").mkdir()
    (store.root / "models" / NAME).mkdir(parents=True)
    with pytest.raises(ModelNotFoundError):
        store.remove(name)
    assert (tmp_path / "x").is_dir()
    assert (store.root / "models" / NAME).is_dir()


def test_remove_does_not_follow_a_link(store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_bytes(b"x" * 100)
    (store.root / "models").mkdir(parents=True)
    try:
        (store.root / "models" / NAME).symlink_to(tmp_path / "mine", target_is_directory=True)
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error}")
    assert store.remove(NAME) == 0
    assert (tmp_path / "mine" / "precious").exists()


def test_the_functions_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert hub.cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("SLMQ_CACHE_DIR", "~/models")
    assert hub.cache_dir() == Path("~/models").expanduser()
    monkeypatch.delenv("SLMQ_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert str(hub.cache_dir()).startswith(str(tmp_path)) or sys.platform == "win32"
    assert hub.list_models() == []
    with pytest.raises(ModelNotFoundError):
        hub.remove("smollm2-135m-instruct")
    with pytest.raises(ModelNotFoundError):
        hub.resolve("smollm2-135m-instruct", local_files_only=True)
