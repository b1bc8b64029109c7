"""What a hub may send that no hub should, each on an otherwise good repository.

`CASES` has a name, a change of the server and the outcome: "whole" where the model arrives all the
same, else what the error says. `outside` is a folder of the user that no case may touch.
"""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hub_server import Page, Server

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 1200
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": WEIGHTS,
}
LISTING = "/api/models/org/name"
WHOLE = "whole"
OK = b"HTTP/1.1 200 OK\r\n"

Change = Callable[[Server, Path], None]


class Case(NamedTuple):
    change: Change
    outcome: str


CASES: dict[str, Case] = {}


def case(name: str, outcome: str, change: Change) -> None:
    assert name not in CASES
    CASES[name] = Case(change, outcome)


def file_pages(server: Server) -> list[Page]:
    return [page for path, page in server.pages.items() if "/resolve/" in path]


def weight_pages(server: Server) -> list[Page]:
    return [page for path, page in server.pages.items() if path.endswith("/model.safetensors")]


# ---- headers of files: the names that others give to files on the disk ---------------------------


def with_headers(outside: Callable[[Path], dict[str, str | None]]) -> Change:
    def change(server: Server, folder: Path) -> None:
        for page in file_pages(server):
            page.headers = {**page.headers, **outside(folder)}

    return change


def headers(**values: str | None) -> Change:
    return with_headers(lambda _: {name.replace("_", "-"): value for name, value in values.items()})


for header in ("ETag", "X-Linked-Etag", "X-Repo-Commit"):
    for what, value in {
        "absolute": "{outside}/victim",
        "absolute and new": "{outside}/new",
        "up and out": "../../../../outside/victim",
        "up once": "../x",
        "two dots": "..",
        "one dot": ".",
        "with a separator": "a/b",
        "with a backslash": "..\\\\..\\\\x",
        "of a drive": "C:\\\\x",
        "empty": "",
        "long": "e" * 5000,
        "with escapes": "\x1b[2J",
        "not ASCII": "é" * 300,
    }.items():
        case(
            f"{header}, {what}",
            WHOLE,
            with_headers(lambda at, h=header, v=value: {h: '"' + v.format(outside=at) + '"'}),
        )
case("ETag without quotes, absolute", WHOLE, with_headers(lambda at: {"ETag": f"{at}/victim"}))
case("ETag, weak and absolute", WHOLE, with_headers(lambda at: {"ETag": f'W/"{at}/victim"'}))
case("no ETag at all", WHOLE, headers(ETag=None))
case("X-Linked-Size, text", WHOLE, headers(X_Linked_Size="much"))
case("X-Linked-Size, negative", WHOLE, headers(X_Linked_Size="-5"))
case("Content-Disposition, up and out", WHOLE, headers(Content_Disposition='filename="../../x"'))
case("xet headers", WHOLE, headers(X_Xet_Hash="f" * 64, Link='<http://127.0.0.1:9/>; rel="x"'))
case("Last-Modified, no date", WHOLE, headers(ETag=None, Last_Modified="\t../../x"))
case(
    "Transfer-Encoding beside a length",
    "connection lost|chunk",
    headers(Transfer_Encoding="chunked"),
)


def cut_once(etag: str) -> Change:
    def change(server: Server, folder: Path) -> None:
        for page in weight_pages(server):
            page.etag = '"' + etag.format(outside=folder) + '"'
            page.cuts = [100_000]

    return change


case("a cut under an absolute ETag", WHOLE, cut_once("{outside}/victim"))
case("a cut under a long ETag", WHOLE, cut_once("e" * 5000))
case("a cut under an ETag that is not ASCII", WHOLE, cut_once("é"))


# ---- the listing ---------------------------------------------------------------------------------


def edited(edit: Callable[[dict[str, Any]], Any]) -> Change:
    """A change of the listing: a new value, or one that was changed in place."""

    def change(server: Server, folder: Path) -> None:
        listing = json.loads(server.pages[LISTING].body)
        changed = edit(listing)
        text = json.dumps(listing if changed is None else changed)
        server.pages[LISTING].body = text.replace("{outside}", str(folder)).encode()

    return change


def field(**values: Any) -> Change:
    return edited(lambda listing: listing.update(values))


def weights(**values: Any) -> Change:
    """A change of what the listing says about the weights."""
    return edited(lambda listing: listing["siblings"][2].update(values))


for what, commit in {
    "up and out": "../../../../outside/victim",
    "absolute": "{outside}/victim",
    "a number": 7,
    "missing": None,
    "short": COMMIT[:-1],
    "long": COMMIT * 50,
    "of capitals": COMMIT.upper(),
    "with a line": COMMIT + "\n",
    "a list": [COMMIT],
}.items():
    case(f"commit, {what}", "as its commit", field(sha=commit))

for what, siblings in {
    "missing": None,
    "a text": "config.json",
    "a number": 3,
    "an object": {"config.json": 1},
}.items():
    case(f"files, {what}", "no files, where", field(siblings=siblings))
for what, name in {
    "a number": 7,
    "nothing": None,
    "a list": ["config.json"],
    "an object": {},
}.items():
    case(f"name, {what}", "as the name of a file", weights(rfilename=name))
case("files, of numbers", "as the name of a file", field(siblings=[1, 2, 3]))
case(
    "files, twice",
    "sent it twice",
    edited(lambda listing: listing["siblings"].append(listing["siblings"][0])),
)
case(
    "files, 100,000",
    "100001 files, where",
    field(siblings=[{"rfilename": f"x{n}"} for n in range(100_001)]),
)
case(
    "files, 1,500 for one model",
    "files that make up one model",
    edited(
        lambda listing: listing["siblings"].extend(
            {**listing["siblings"][0], "rfilename": f"tokenizer{n}"} for n in range(1500)
        )
    ),
)


def only_gguf(name: Any) -> Change:
    """The repository has one file to load, under this name."""

    def edit(listing: dict[str, Any]) -> None:
        listing["siblings"] = [{**listing["siblings"][2], "rfilename": name}]

    return edited(edit)


for what, name in {
    "up and out": "../../../../outside/victim.gguf",
    "absolute": "{outside}/victim.gguf",
    "two dots inside": "a/../../../../../x.gguf",
    "one dot inside": "a/./x.gguf",
    "an empty part": "a//x.gguf",
    "hidden": ".x.gguf",
    "with backslashes": "..\\..\\x.gguf",
    "of a drive": "C:x.gguf",
    "a stream": "x:y.gguf",
    "with a zero": "x\0.gguf",
    "with a line": "x\n.gguf",
    "with escapes": "x\x1b[2J.gguf",
    "half a surrogate": "x\ud800.gguf",
    "5,000 characters": "x" * 5000 + ".gguf",
    "300 bytes in one part": "é" * 150 + ".gguf",
    "30 folders deep": "a/" * 30 + "x.gguf",
    "a device": "con.gguf",
    "ends with a blank": "a /x.gguf",
    "begins with a blank": " x.gguf",
    "right to left": "x\u202efugg.gguf",
}.items():
    case(f"name, {what}", "as the name of a file", only_gguf(name))

for what, size in {
    "text": "307200",
    "negative": -1,
    "a fraction": 307200.0,
    "truth": True,
    "missing": None,
    "a list": [307200],
    "endless": 10**30,
}.items():
    case(f"size, {what}", "as the size of model.safetensors", weights(size=size))
case(
    "size, a configuration of a gigabyte",
    "as the size of config.json",
    edited(lambda listing: listing["siblings"][0].update(size=10**9)),
)
case("size, other than that of the large file", "two sizes of", weights(size=5))
case(
    "size, one byte less",
    "expected a file of 307,199",
    weights(size=307199, lfs={"sha256": "0" * 64}),
)
for what, checksum in {
    "missing": None,
    "a number": 5,
    "short": "0" * 63,
    "absolute": "{outside}/victim",
    "up and out": "../../../../outside/victim",
    "long": "0" * 5000,
}.items():
    case(f"sha256, {what}", "as the checksum of model", weights(lfs={"sha256": checksum}))
    case(f"blobId, {what}", "as the checksum of model", weights(lfs=None, blobId=checksum))
case("lfs, a text", "two sizes of", weights(lfs="yes"))
case(
    "sha256, of another file",
    "wrong checksum of model.safetensors",
    weights(lfs={"sha256": "0" * 64}),
)
case(
    "blobId, of another file",
    "wrong checksum of config.json",
    edited(lambda listing: listing["siblings"][0].update(blobId="0" * 40)),
)


def listing_is(body: bytes, **page: Any) -> Change:
    return lambda server, _: server.pages.update({LISTING: Page(body, **page)})


for what, body in {
    "empty": b"",
    "a page for people": b"<html>Log in, please</html>",
    "not UTF-8": b'{"sha": "\xff"}',
    "nested 200,000 deep": b"[" * 200_000,
    "nested in objects": b'{"a":' * 200_000,
    "a number of 5,000 digits": b'{"sha": ' + b"9" * 5000 + b"}",
    "cut short": b'{"sha": "0123',
}.items():
    case(f"listing, {what}", "is not JSON", listing_is(body))
case("listing, a list", "a listing that is a list", listing_is(b"[]"))
case("listing, nothing", "a listing that is a NoneType", listing_is(b"null"))
case("listing, not a number", "as its commit", listing_is(b'{"sha": NaN}'))
case(
    "listing, packed",
    "is not JSON",
    listing_is(gzip.compress(b" " * 50_000_000), headers={"Content-Encoding": "gzip"}),
)
case("listing, 9 MB", "more than 8,388,608 bytes", listing_is(b" " * 9_000_000))
for status in (400, 418, 429, 500, 503, 599):
    case(f"listing, status {status}", f"refuses .HTTP {status}", listing_is(b"", status=status))
case(
    "listing, gated by words that move the cursor",
    r"refuses \(HTTP 403 \?\[2J",
    lambda server, _: server.pages.update({LISTING: raw([b"HTTP/1.1 403 \x1b[2J\r\n\r\n"])}),
)


# ---- the wire ------------------------------------------------------------------------------------


def raw(pieces: Iterable[bytes] | Callable[[], Iterable[bytes]]) -> Page:
    return Page(raw=pieces if callable(pieces) else lambda: pieces)


def endless(start: bytes, piece: bytes) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        yield start
        many = piece * (65536 // len(piece) + 1)
        while True:
            yield many

    return pieces


def dripping(start: bytes, piece: bytes = b" ") -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        yield start
        while True:
            yield piece
            time.sleep(0.05)

    return pieces


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
SIZED = OK + b"Content-Length: %d\r\n\r\n" % len(WEIGHTS)
FLOODS: dict[str, tuple[Iterable[bytes] | Callable[[], Iterable[bytes]], str, str]] = {
    # name: what is sent, outcome as a listing, outcome as the weights
    "chunks without end": (
        endless(CHUNKED, b"400\r\n" + b" " * 1024 + b"\r\n"), "more than", "more than",
    ),
    "a body without length or end": (endless(OK + b"\r\n", b" "), "more than", "more than"),
    "chunks of one byte with long words": (
        endless(CHUNKED, b"1;" + b"x" * 8000 + b"\r\n \r\n"), "without end", "without end",
    ),
    "a trailer without end": (
        endless(CHUNKED + b"0\r\n", b"a: b\r\n" * 999), "without end|did not answer", "without end",
    ),
    "a negative chunk": (
        endless(CHUNKED, b"-400\r\n" + b" " * 1024), "more than|cut", "more than|cut",
    ),
    "a chunk that is no number": ([CHUNKED + b"zz\r\n"], "cut|JSON", "lost after 0"),
    "headers without end": (endless(OK, b"a: b\r\n"), "cut|without end", "cut|without end"),
    "a header line without end": (endless(OK + b"a: ", b"x"), "cut|without end", "cut|without end"),
    "a status line without end": (
        endless(b"HTTP/1.1 ", b"x"), "cut|without end", "cut|without end",
    ),
    "'continue' without end": (
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "cut|without end", "cut|without end",
    ),
    "a drip after the headers": (dripping(SIZED), "did not answer", "less than 1024 bytes"),
    "a drip of headers": (dripping(OK, b"a: b\r\n"), "did not answer|cut", "less than 1024|cut"),
    "a drip of a status line": (
        dripping(b"HTTP/1.1 200", b" "), "did not answer", "less than 1024",
    ),
    "a drip of chunks": (dripping(CHUNKED, b"1\r\n \r\n"), "did not answer", "less than 1024"),
    "nothing": ([b""], "cut", "cut"),
    "no HTTP": ([b"SSH-2.0-OpenSSH_9.2\r\n"], "cut", "cut"),
    "HTTP 9.9": ([b"HTTP/9.9 200 OK\r\n\r\n"], "cut", "cut"),
    "a status of letters": ([b"HTTP/1.1 abc OK\r\n\r\n"], "cut", "cut"),
    "a status of 9 digits": ([b"HTTP/1.1 200000000 OK\r\n\r\n"], "cut", "cut"),
    "a status of 5,000 digits": ([b"HTTP/1.1 " + b"2" * 5000 + b"\r\n\r\n"], "cut", "cut"),
}  # fmt: skip
for what, (pieces, as_listing, as_weights) in FLOODS.items():
    case(
        f"listing: {what}",
        as_listing,
        lambda server, _, pieces=pieces: server.pages.update({LISTING: raw(pieces)}),
    )

    def flood(server: Server, _: Path, pieces: Any = pieces) -> None:
        server.pages.update(
            {path: raw(pieces) for path in server.pages if path.endswith(".safetensors")}
        )

    case(f"weights: {what}", as_weights, flood)


def page_of_weights(**values: Any) -> Change:
    def change(server: Server, folder: Path) -> None:
        for page in weight_pages(server):
            for name, value in values.items():
                setattr(page, name, value)

    return change


for what, length, outcome in (
    ("text", "many", WHOLE),
    ("negative", "-5", WHOLE),
    ("of 30 digits", "9" * 30, WHOLE),
    ("of 5,000 digits", "9" * 5000, WHOLE),
    ("one more", str(len(WEIGHTS) + 1), "expected a file of 307,200 bytes"),
    ("none", None, WHOLE),
):
    case(
        f"Content-Length, {what}",
        outcome,
        page_of_weights(headers={"Content-Length": length, "Connection": "close"}),
    )
case("weights: half of them", "lost after", page_of_weights(cuts=[100_000, *[0] * 9]))
case("weights: one byte longer", "307,201", page_of_weights(body=WEIGHTS + b"x"))
case("weights: other bytes", "wrong checksum", page_of_weights(body=WEIGHTS[::-1]))
case("weights: one byte at a time", "lost after", page_of_weights(cuts=[1] * 999))
case(
    "weights: packed",
    "encoded as gzip",
    page_of_weights(body=gzip.compress(WEIGHTS), headers={"Content-Encoding": "gzip"}),
)
case(
    "weights: a bomb",
    "encoded as deflate",
    page_of_weights(body=zlib.compress(bytes(30_000_000)), headers={"Content-Encoding": "deflate"}),
)
for what, value in {
    "text": "bytes all",
    "of another start": "bytes 5-99/307200",
    "of 5,000 digits": "bytes 100000-" + "9" * 5000 + "/307200",
    "missing": None,
    "negative": "bytes 100000--5/307200",
}.items():
    case(
        f"Content-Range, {what}",
        "different range",
        page_of_weights(cuts=[100_000] * 99, headers={"Content-Range": value}, status=206),
    )
for status, outcome in (
    *((204, "the server has 0"), (205, "the server has 0"), (206, "range"), (304, "304")),
    *((404, "404"), (416, "416"), (451, "451"), (500, "500"), (503, "503")),
):
    case(f"weights: status {status}", outcome, page_of_weights(status=status, body=b""))


# ---- redirects -----------------------------------------------------------------------------------

for where, path in {
    "listing": LISTING,
    "weights": f"/org/name/resolve/{COMMIT}/model.safetensors",
}.items():
    for what, (location, outcome) in {
        "to a file": ("file://{outside}/victim", "redirects from http to file"),
        "to ftp": ("ftp://127.0.0.1/x", "redirects from http to ftp"),
        "to data": ("data:text/plain,x", "redirects from http to data"),
        "to nothing": ("", "redirects to nowhere"),
        "to itself": ("{path}", "redirected 8 times"),
        "to a long address": ("/" + "x" * 9000, "redirects to nowhere"),
        "to no address": ("http://[::1", "redirects to no address"),
        "to a port of letters": ("http://127.0.0.1:port/", "did not answer|cut|no address|port"),
        "to a port that is none": ("http://127.0.0.1:99999/", "did not answer|cut|port|refused"),
        "to a name with blanks": ("http://a b/", "did not answer|cut|address|known"),
        "to escapes": ("/\x1b[2J", "InvalidURL"),
    }.items():  # fmt: skip

        def redirect(server: Server, at: Path, path: str = path, location: str = location) -> None:
            moved = location.format(outside=at, path=path)
            server.pages[path] = Page(b"x", status=302, headers={"Location": moved})

        case(f"{where}: a redirect {what}", outcome, redirect)

    def moving(server: Server, _: Path, path: str = path) -> None:
        start = b"HTTP/1.1 302 Moved\r\nLocation: /elsewhere\r\n\r\n"
        server.pages["/elsewhere"] = server.pages[path]
        server.pages[path] = raw(endless(start, b"x"))

    case(f"{where}: a redirect with a body without end", WHOLE, moving)
