"""[[static]]: files that the core answers by itself, and what it never answers."""

import gzip
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from serving import Server, Servers, wait_until
from wire import PATIENCE, Connection, Response, Truncated, all_closed, get, post

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30
SMALL_BUFFER = 16 * 1024
SECRET = b"the secret outside"
PAGE = b"<p>a page of its own</p>\n" * 20
SCRIPT = b"console.log('script');\n" * 50
PICTURE = bytes(range(251)) * 4000
MTIME = 1_700_000_000

linux = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")

FILES: dict[str, str | bytes] = {
    "secret.txt": SECRET,
    "www/page.html": PAGE,
    "www/app.js": SCRIPT,
    "www/app.js.br": b"brotli",
    "www/app.js.zst": b"zstandard",
    "www/app.js.gz": gzip.compress(SCRIPT, mtime=0),
    "www/picture.png": PICTURE,
    "www/empty.txt": b"",
    "www/a b/c+d.txt": b"odd names",
    "www/\N{LATIN SMALL LETTER E WITH ACUTE}.txt": b"beyond ASCII",
    "www/.hidden": SECRET,
    "www/.git/config": SECRET,
    "www/folder/index.html": b"the index",
    "www/folder/inner/file.txt": b"inner",
    "more/only.txt": b"more",
    "more/page.html": b"the other page",
}
TABLES: list[dict[str, Any]] = [
    {
        "route": "/s",
        "directory": "www",
        "cache_control": "public, max-age=60",
        "index": "index.html",
    },
    {"route": "/s/more", "directory": "more"},
    {"route": "/open/", "directory": "www", "fallthrough": True},
]


def start(serve: Servers, **config: Any) -> Server:
    """Start a server with the tables and files above."""
    tables = config.pop("static", TABLES)
    server = serve("echo:app", {**config, "static": tables}, FILES)
    for path in (server.folder / "www").rglob("*"):
        if path.is_file():
            os.utime(path, (MTIME, MTIME))
    return server


@pytest.fixture(scope="module")
def site(serve_module: Servers) -> Server:
    """A server with the tables and files above."""
    return start(serve_module)


@pytest.fixture
def connection(site: Server) -> Iterator[Connection]:
    """Return a connection to it that must last."""
    with site.connect() as opened:
        yield opened
        opened.send(get("/s/page.html"))
        assert opened.response().body == PAGE


def ask(connection: Connection, target: str, *fields: str, method: str = "GET") -> Response:
    """Return the answer on a connection that stays."""
    connection.send(get(target, *fields, method=method))
    response = connection.response(method)
    assert not response.closes
    return response


# What is answered


def test_file_with_all_its_fields(site: Server, connection: Connection) -> None:
    response = ask(connection, "/s/page.html")
    assert (response.status, response.reason, response.body) == (200, "OK", PAGE)
    fields = dict(response.fields)
    assert parsedate_to_datetime(fields.pop("Date"))
    assert fields.pop("X-Request-Id")
    assert re.fullmatch(r'"[0-9a-f]+-[0-9a-f]+"', fields.pop("ETag"))
    assert fields == {
        "Server": "serve-zig",
        "Content-Type": "text/html; charset=utf-8",
        "Content-Length": str(len(PAGE)),
        "Last-Modified": formatdate(MTIME, usegmt=True),
        "Vary": "Accept-Encoding",
        "Cache-Control": "public, max-age=60",
        "Accept-Ranges": "bytes",
    }
    assert site.events("called") == []


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/s/picture.png", PICTURE),
        ("/s/empty.txt", b""),
        ("/s/a%20b/c+d.txt", b"odd names"),
        ("/s/%61%20b/c%2Bd.txt", b"odd names"),
        ("/s/%C3%A9.txt", b"beyond ASCII"),
        ("/%73/folder/inner/file.txt", b"inner"),
        ("/s/page.html?version=2", PAGE),
        ("http://any.example/s/page.html", PAGE),
        ("/s/more/only.txt", b"more"),
        ("/s/more/page.html", b"the other page"),
        ("/s/folder/", b"the index"),
        ("/open/page.html", PAGE),
    ],
)
def test_files(connection: Connection, target: str, body: bytes) -> None:
    response = ask(connection, target)
    assert (response.status, response.body) == (200, body)
    assert response.framing == "content-length"
    head = ask(connection, target, method="HEAD")
    assert [one for one in head.fields if one[0] not in ("Date", "X-Request-Id")] == [
        one for one in response.fields if one[0] not in ("Date", "X-Request-Id")
    ]


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/s/folder", "./folder/"),
        ("/s/folder?a=/b&c", "./folder/?a=/b&c"),
        ("/s/%66older", "./%66older/"),
    ],
)
def test_directory_without_its_slash(connection: Connection, target: str, location: str) -> None:
    """Relative, so that it holds behind a proxy that takes a prefix off, and for no other host."""
    for method in ("GET", "HEAD"):
        response = ask(connection, target, method=method)
        assert (response.status, response.value("Location")) == (301, location)


@pytest.mark.parametrize(
    "target",
    [
        "/s/none",
        "/s",
        "/s/",
        "/s/page.html/",
        "/s/page.html/x",
        "/s/folder/inner",
        "/s/folder/inner/",
        "/s/more/",
        "/s/more/none",
        "/s/.hidden",
        "/s/%2ehidden",
        "/s/.git/config",
        "/s/../secret.txt",
        "/s/%2e%2e/secret.txt",
        "/s/%2E%2E/secret.txt",
        "/s/..%2fsecret.txt",
        "/s/..%2Fsecret.txt",
        "/s/.%2e/secret.txt",
        "/s/folder/../../secret.txt",
        "/s/folder/%2e%2e/%2e%2e/secret.txt",
        "/s/folder%2f..%2f..%2fsecret.txt",
        "/s/..%5csecret.txt",
        "/s/..\\secret.txt",
        "/s/..%c0%afsecret.txt",
        "/s/%252e%252e/secret.txt",
        "/s/page.html%00",
        "/s/page.html%00.png",
        "/s/%00",
        "/s//page.html",
        "/s/./page.html",
        "/s/folder//index.html",
        "/s/%2fetc/passwd",
        "/s//etc/passwd",
        "/s/" + "a" * 300,
        "/s/" + "a/" * 3000,
        "/s/" + "%61" * 2000,
    ],
)
def test_what_is_not_there_or_not_to_be_seen(connection: Connection, target: str) -> None:
    """A small answer of its own, and the connection lasts."""
    response = ask(connection, target)
    assert (response.status, response.body) == (404, b"404 Not Found\n")
    head = ask(connection, target, method="HEAD")
    assert (head.status, head.value("Content-Length")) == (404, "14")


@pytest.mark.parametrize("target", ["/", "/sx", "/s.txt", "/S/page.html", "/x/s/page.html", "//s/"])
def test_what_is_not_below_a_route_is_the_applications(site: Server, target: str) -> None:
    assert site.exchange(get(target)).value("X-Application") == "echo"


def test_asterisk_is_the_applications(site: Server) -> None:
    response = site.exchange(get("*", method="OPTIONS"), method="OPTIONS")
    assert response.value("X-Application") == "echo"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get"])
def test_other_methods(site: Server, connection: Connection, method: str) -> None:
    response = ask(connection, "/s/page.html", method=method)
    assert (response.status, response.value("Allow")) == (405, "GET, HEAD")
    connection.send(get("/open/page.html", method=method))
    assert connection.response().value("X-Application") == "echo"


def test_application_answers_where_there_is_no_file(site: Server, connection: Connection) -> None:
    for target in ("/open/none", "/open/", "/open", "/open/.hidden", "/open/%2e%2e/secret.txt"):
        response = ask(connection, target)
        assert response.value("X-Application") == "echo"
        assert response.json()["environ"]["RAW_URI"] == target
    connection.send(post("/open/none", b"a body"))
    assert connection.response().json()["body"] == "a body"
    assert ask(connection, "/open/page.html").body == PAGE


# What is no regular file, and links


def test_links_lead_nowhere_but_below_the_directory(site: Server, connection: Connection) -> None:
    www = site.folder / "www"
    links = {
        "out.txt": "../secret.txt",
        "up": "..",
        "absolute.txt": str(site.folder / "secret.txt"),
        "etc": "/etc",
        "loop": "loop",
        "root": "/proc/self/root",
    }
    for name, to in links.items():
        (www / name).symlink_to(to)
    for target in ("out.txt", "up/secret.txt", "up/www/page.html", "absolute.txt", "etc/passwd"):
        assert ask(connection, f"/s/{target}").status == 404
    for target in ("loop", "loop/x", f"root{site.folder}/secret.txt"):
        assert ask(connection, f"/s/{target}").status == 404


@linux
def test_links_inside_are_followed(site: Server, connection: Connection) -> None:
    (site.folder / "www" / "inside.html").symlink_to("folder/../page.html")
    (site.folder / "www" / "alias").symlink_to("folder")
    assert ask(connection, "/s/inside.html").body == PAGE
    assert ask(connection, "/s/alias/inner/file.txt").body == b"inner"


def test_fifo_socket_and_device_are_not_served(site: Server, connection: Connection) -> None:
    """And nobody waits for them."""
    www = site.folder / "www"
    os.mkfifo(www / "fifo.txt")
    os.mkfifo(www / "page.html.gz")
    os.mkfifo(www / "folder" / "inner" / "index.html")
    with socket.socket(socket.AF_UNIX) as listener:
        current = os.open(".", os.O_RDONLY)
        try:
            os.chdir(www)
            listener.bind("socket.txt")
        finally:
            os.chdir(current)
            os.close(current)
        for name in ("fifo.txt", "socket.txt", "folder/inner/"):
            assert ask(connection, f"/s/{name}").status == 404
    assert ask(connection, "/s/page.html", "Accept-Encoding: gzip").body == PAGE
    (www / "page.html.gz").unlink()


# Codings


@pytest.mark.parametrize(
    ("accept", "coding", "body"),
    [
        ("gzip", "gzip", gzip.compress(SCRIPT, mtime=0)),
        ("gzip, deflate, br, zstd", "br", b"brotli"),
        ("gzip, zstd", "zstd", b"zstandard"),
        ("br;q=0.5, gzip;q=0.8, zstd;q=0.1", "gzip", gzip.compress(SCRIPT, mtime=0)),
        ("br;q=0, *", "zstd", b"zstandard"),
        ("deflate", None, SCRIPT),
        ("", None, SCRIPT),
        ("gzip;q=0", None, SCRIPT),
        ("identity, gzip;q=0.5", None, SCRIPT),
        ("*;q=0", None, SCRIPT),
    ],
)
def test_compressed_siblings(
    connection: Connection, accept: str, coding: str | None, body: bytes
) -> None:
    response = ask(connection, "/s/app.js", f"Accept-Encoding: {accept}")
    assert response.value("Content-Encoding") == coding
    assert response.value("Vary") == "Accept-Encoding"
    assert response.value("Content-Type") == "text/javascript; charset=utf-8"
    # gzip's header has a time; what is in it counts.
    assert len(response.body) == len(body)
    if coding != "gzip":
        assert response.body == body


def test_each_coding_has_a_tag_and_ranges_of_its_own(connection: Connection) -> None:
    accepts = ["identity", "br", "zstd", "gzip"]
    tags = []
    for accept in accepts:
        field = f"Accept-Encoding: {accept}"
        tag = ask(connection, "/s/app.js", field).value("ETag")
        assert ask(connection, "/s/app.js", field, f"If-None-Match: {tag}").status == 304
        tags.append(tag)
    assert len(set(tags)) == 4
    response = ask(connection, "/s/app.js", "Accept-Encoding: br", f"If-None-Match: {tags[0]}")
    assert response.status == 200
    part = ask(connection, "/s/app.js", "Accept-Encoding: br", "Range: bytes=2-")
    assert (part.status, part.body) == (206, b"otli")
    assert part.value("Content-Range") == "bytes 2-5/6"
    assert part.value("Content-Encoding") == "br"


def test_without_siblings_and_for_what_is_compressed_itself(connection: Connection) -> None:
    response = ask(connection, "/s/page.html", "Accept-Encoding: gzip")
    assert (response.value("Content-Encoding"), response.body) == (None, PAGE)
    response = ask(connection, "/s/picture.png", "Accept-Encoding: gzip")
    assert response.value("Vary") is None
    response = ask(connection, "/s/app.js.gz", "Accept-Encoding: gzip")
    assert response.value("Content-Encoding") is None
    assert response.value("Content-Type") == "application/gzip"
    assert gzip.decompress(response.body) == SCRIPT


# Conditions


def test_conditions(connection: Connection) -> None:
    """RFC 9110 13.2.2; the core's own tests go through the table."""
    tag = ask(connection, "/s/page.html").value("ETag")
    same = formatdate(MTIME, usegmt=True)
    earlier = formatdate(MTIME - 1, usegmt=True)
    obsolete = time.strftime("%A, %d-%b-%y %H:%M:%S GMT", time.gmtime(MTIME))
    asctime = time.asctime(time.gmtime(MTIME))
    cases = [
        (304, f"If-None-Match: {tag}"),
        (304, f'If-None-Match: "x", W/{tag}'),
        (304, "If-None-Match: *"),
        (200, 'If-None-Match: "x"'),
        (304, f"If-Modified-Since: {same}"),
        (304, f"If-Modified-Since: {obsolete}"),
        (304, f"If-Modified-Since: {asctime}"),
        (200, f"If-Modified-Since: {earlier}"),
        (200, "If-Modified-Since: yesterday"),
        (200, f'If-None-Match: "x"\r\nIf-Modified-Since: {same}'),
        (200, f"If-Match: {tag}"),
        (200, "If-Match: *"),
        (412, 'If-Match: "x"'),
        (412, f"If-Match: W/{tag}"),
        (412, f"If-Unmodified-Since: {earlier}"),
        (200, f"If-Unmodified-Since: {same}"),
        (412, f'If-Match: "x"\r\nIf-None-Match: {tag}'),
        (304, f"If-Match: {tag}\r\nIf-None-Match: {tag}"),
    ]
    for status, fields in cases:
        for method in ("GET", "HEAD"):
            response = ask(connection, "/s/page.html", fields, method=method)
            assert response.status == status, fields
    response = ask(connection, "/s/page.html", f"If-None-Match: {tag}")
    assert sorted(name for name, _ in response.fields) == [
        "Cache-Control",
        "Date",
        "ETag",
        "Server",
        "Vary",
        "X-Request-Id",
    ]


def test_file_that_changes_has_another_tag(site: Server, connection: Connection) -> None:
    path = site.folder / "www" / "changing.txt"
    path.write_bytes(b"one")
    first = ask(connection, "/s/changing.txt")
    path.write_bytes(b"two")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    second = ask(connection, "/s/changing.txt", f"If-None-Match: {first.value('ETag')}")
    assert (second.status, second.body) == (200, b"two")


# Ranges


@pytest.mark.parametrize(
    ("value", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=1000-", 1000, len(PICTURE)),
        ("bytes=-10", len(PICTURE) - 10, len(PICTURE)),
        ("bytes=0-99999999", 0, len(PICTURE)),
        ("bytes=100-200000", 100, 200_001),
        ("bytes=5-9,7-12", 5, 13),
        ("bytes=0-1,99999999-", 0, 2),
    ],
)
def test_one_range(connection: Connection, value: str, start: int, end: int) -> None:
    response = ask(connection, "/s/picture.png", f"Range: {value}")
    assert (response.status, response.body) == (206, PICTURE[start:end])
    assert response.value("Content-Range") == f"bytes {start}-{end - 1}/{len(PICTURE)}"
    assert response.value("Content-Type") == "image/png"


def parts_of(response: Response) -> list[tuple[dict[str, str], bytes]]:
    """Read multipart/byteranges strictly (RFC 2046 5.1.1)."""
    kind = response.value("Content-Type") or ""
    found = re.fullmatch("multipart/byteranges; boundary=([0-9a-f]{32})", kind)
    assert found is not None, kind
    pieces = response.body.split(b"\r\n--" + found[1].encode())
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    parts = []
    for piece in pieces[1:-1]:
        head, _, body = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        lines = [line.partition(": ") for line in head.decode().split("\r\n")]
        parts.append(({name: value for name, _, value in lines}, body))
    return parts


@pytest.mark.parametrize(
    ("value", "ranges"),
    [
        ("bytes=0-1,10-19", [(0, 2), (10, 20)]),
        ("bytes=10-19, 0-1 ,-5", [(10, 20), (0, 2), (len(PICTURE) - 5, len(PICTURE))]),
        ("bytes=0-300000,400000-700000", [(0, 300_001), (400_000, 700_001)]),
        (
            "bytes=" + ",".join(f"{n}-{n}" for n in range(0, 64, 4)),
            [(n, n + 1) for n in range(0, 64, 4)],
        ),
    ],
)
def test_several_ranges(connection: Connection, value: str, ranges: list[tuple[int, int]]) -> None:
    response = ask(connection, "/s/picture.png", f"Range: {value}")
    assert response.status == 206
    assert response.value("Content-Range") is None
    assert parts_of(response) == [
        (
            {
                "Content-Type": "image/png",
                "Content-Range": f"bytes {start}-{end - 1}/{len(PICTURE)}",
            },
            PICTURE[start:end],
        )
        for start, end in ranges
    ]


@pytest.mark.parametrize(
    "value",
    [
        "bytes=1-0",
        "bytes=",
        "bytes=a-b",
        "lines=0-1",
        "bytes=0-1;2-3",
        "bytes=" + ",".join(f"{n}-{n}" for n in range(0, 68, 4)),
        "bytes=" + ",".join(["0-"] * 10 + ["1-"]),
        f"bytes=0-500000,500002-{len(PICTURE)},500001-500001",
    ],
)
def test_ranges_that_are_none_or_too_many_are_ignored(connection: Connection, value: str) -> None:
    """One that asks for everything in one part is a part all the same."""
    response = ask(connection, "/s/picture.png", f"Range: {value}")
    if response.status == 206:
        assert response.value("Content-Range") == f"bytes 0-{len(PICTURE) - 1}/{len(PICTURE)}"
    else:
        assert response.status == 200
    assert response.body == PICTURE


def test_range_that_cannot_be_satisfied(connection: Connection) -> None:
    for value in (f"bytes={len(PICTURE)}-", "bytes=-0", "bytes=99999999999999999999999-"):
        response = ask(connection, "/s/picture.png", f"Range: {value}")
        assert response.status == 416
        assert response.value("Content-Range") == f"bytes */{len(PICTURE)}"


def test_range_and_conditions(connection: Connection) -> None:
    first = ask(connection, "/s/picture.png")
    tag, modified = first.value("ETag"), first.value("Last-Modified")
    cases = [
        (206, f"If-Range: {tag}"),
        (206, f"If-Range: {modified}"),
        (200, 'If-Range: "x"'),
        (200, f"If-Range: W/{tag}"),
        (200, f"If-Range: {formatdate(MTIME + 1, usegmt=True)}"),
        (304, f"If-None-Match: {tag}"),
        (412, 'If-Match: "x"'),
    ]
    for status, field in cases:
        response = ask(connection, "/s/picture.png", "Range: bytes=0-1", field)
        assert response.status == status, field


def test_range_of_other_methods_is_ignored(connection: Connection) -> None:
    response = ask(connection, "/s/picture.png", "Range: bytes=0-1", method="HEAD")
    assert (response.status, response.value("Content-Length")) == (200, str(len(PICTURE)))


def test_beyond_four_gibibytes(site: Server, connection: Connection) -> None:
    """A hole of 5 GiB with a few bytes at its end."""
    size = 5 * GIBIBYTE
    path = site.folder / "www" / "huge.bin"
    with open(path, "wb") as file:
        file.truncate(size - 4)
        file.seek(size - 4)
        file.write(b"tail")
    head = ask(connection, "/s/huge.bin", method="HEAD")
    assert head.value("Content-Length") == str(size)
    part = ask(connection, "/s/huge.bin", "Range: bytes=-6")
    assert (part.status, part.body) == (206, b"\0\0tail")
    assert part.value("Content-Range") == f"bytes {size - 6}-{size - 1}/{size}"
    part = ask(
        connection, "/s/huge.bin", f"Range: bytes={4 * GIBIBYTE - 2}-{4 * GIBIBYTE + 199999}"
    )
    assert part.body == bytes(200_002)
    several = ask(
        connection, "/s/huge.bin", f"Range: bytes=0-1,{4 * GIBIBYTE + 5}-{4 * GIBIBYTE + 7},-4"
    )
    assert [body for _, body in parts_of(several)] == [b"\0\0", b"\0\0\0", b"tail"]
    path.unlink()


# The connection


def test_pipelined_with_the_application(site: Server) -> None:
    targets = ["/s/page.html", "/a", "/s/picture.png", "/s/none", "/open/b", "/s/empty.txt"] * 10
    with site.connect() as connection:
        connection.send(b"".join(map(get, targets)))
        for target in targets:
            response = connection.response()
            if target in ("/a", "/open/b"):
                assert response.json()["path"] == target
            else:
                expected = {"page.html": PAGE, "picture.png": PICTURE, "empty.txt": b""}
                body = expected.get(target.rpartition("/")[2], b"404 Not Found\n")
                assert response.body == body


def test_versions_and_persistence(site: Server) -> None:
    with site.connect() as connection:
        connection.send(get("/s/page.html", "Connection: keep-alive", version="1.0"))
        response = connection.response()
        assert response.value("Connection") == "keep-alive"
        connection.send(get("/s/page.html", version="1.0"))
        response = connection.response()
        assert response.closes
        assert response.body == PAGE
        connection.expect_close()
    with site.connect() as connection:
        connection.send(get("/s/picture.png", "Connection: close"))
        assert connection.response().body == PICTURE
        connection.expect_close()


def test_bodies_of_requests(site: Server) -> None:
    """One that came is dropped; one that waits to be asked for is not."""
    with site.connect() as connection:
        request = get("/s/page.html", "Content-Length: 100000") + b"x" * 100_000
        connection.send(request + get("/s/page.html"))
        assert connection.response().body == PAGE
        assert connection.response().body == PAGE
        connection.send(get("/s/page.html", "Content-Length: 5", "Expect: 100-continue"))
        response = connection.response()
        assert (response.status, response.interim, response.closes) == (200, [], True)
        connection.expect_close()


def test_requests_per_connection(serve: Servers) -> None:
    server = start(serve, limits={"requests_per_connection": 3})
    with server.connect() as connection:
        for target, closes in (("/s/page.html", False), ("/a", False), ("/s/none", True)):
            connection.send(get(target))
            assert connection.response().closes == closes
        connection.expect_close()


def test_unix_socket(serve: Servers) -> None:
    path = f"/tmp/serve-zig-static-{os.getpid()}.sock"
    server = start(serve, listen={"bind": f"unix:{path}"})
    with server.connect() as connection:
        for _ in range(2):
            assert ask(connection, "/s/picture.png").body == PICTURE
            assert ask(connection, "/s/page.html").body == PAGE


# Slow clients, and those that leave


def open_descriptors(server: Server) -> int:
    """Return how many descriptors the process has open."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def has_open(server: Server, name: str) -> bool:
    """Return whether the process has a file of this name open."""
    for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
        try:
            if os.path.basename(os.readlink(link)) == name:
                return True
        except FileNotFoundError:
            # Closed meanwhile.
            continue
    return False


def add_hole(server: Server, size: int) -> str:
    """Make a file of zeros and return its target."""
    with open(server.folder / "www" / "hole.bin", "wb") as file:
        file.truncate(size)
    return "/s/hole.bin"


@linux
def test_slow_clients_hold_no_thread_and_no_memory(serve: Servers) -> None:
    server = start(serve, concurrency={"threads": 1}, timeouts={"write": 600.0})
    size = 64 * MEBIBYTE
    target = add_hole(server, size)
    for warm in ("/a", "/s/picture.png"):
        server.exchange(get(warm))
    before, descriptors = server.resident_bytes(), open_descriptors(server)
    with all_closed([]) as connections:
        for _ in range(20):
            connection = server.connect(receive_buffer=SMALL_BUFFER)
            connections.append(connection)
            connection.send(
                get(target, "Range: bytes=0-9,20-") if len(connections) % 2 else get(target)
            )
            connection.take(1000)
        for _ in range(20):
            assert server.exchange(get("/a")).status == 200
            assert server.exchange(get("/s/picture.png")).body == PICTURE
        assert server.resident_bytes() - before < 4 * MEBIBYTE
        left = size - MEBIBYTE
        while left:
            left -= len(connections[1].take(min(left, MEBIBYTE)))
        assert server.resident_bytes() - before < 4 * MEBIBYTE
    wait_until(
        lambda: open_descriptors(server) <= descriptors,
        PATIENCE,
        lambda: f"{open_descriptors(server)} descriptors of {descriptors}",
    )


@linux
def test_large_file_costs_no_memory(serve: Servers) -> None:
    server = start(serve)
    size = 256 * MEBIBYTE
    target = add_hole(server, size)
    server.exchange(get("/s/picture.png"))
    before = server.resident_bytes()
    with server.connect() as connection:
        connection.send(get(target))
        assert connection.head().length == size
        left = size
        while left:
            left -= len(connection.take(min(left, 8 * MEBIBYTE)))
            assert server.resident_bytes() - before < 4 * MEBIBYTE
        assert ask(connection, "/s/page.html").body == PAGE


@linux
def test_client_that_takes_nothing_is_cut(serve: Servers) -> None:
    server = start(serve, timeouts={"write": 3.0})
    target = add_hole(server, 64 * MEBIBYTE)
    with server.connect(receive_buffer=SMALL_BUFFER) as connection:
        connection.send(get(target))
        connection.take(100)
        assert has_open(server, "hole.bin")
        wait_until(
            lambda: not has_open(server, "hole.bin"), PATIENCE, lambda: "the file is still open"
        )
        assert len(connection.read_to_end(reset_counts=True)) < 64 * MEBIBYTE


@linux
@pytest.mark.parametrize("leave", [Connection.close, Connection.reset])
def test_client_that_leaves_lets_go_of_the_file(site: Server, leave: Any) -> None:
    target = add_hole(site, 64 * MEBIBYTE)
    connection = site.connect(receive_buffer=SMALL_BUFFER)
    connection.send(get(target))
    connection.take(100)
    assert has_open(site, "hole.bin")
    leave(connection)
    wait_until(lambda: not has_open(site, "hole.bin"), PATIENCE, lambda: "the file is still open")


def test_file_that_becomes_shorter_ends_the_connection(site: Server) -> None:
    size = 64 * MEBIBYTE
    target = add_hole(site, size)
    with site.connect(receive_buffer=SMALL_BUFFER) as connection:
        connection.send(get(target))
        assert connection.head().length == size
        os.truncate(site.folder / "www" / "hole.bin", 1000)
        with pytest.raises(Truncated):
            connection.take(size)
    assert site.exchange(get("/s/page.html")).body == PAGE


def test_file_that_is_replaced_meanwhile_is_sent_as_it_was(site: Server) -> None:
    size = 32 * MEBIBYTE
    target = add_hole(site, size)
    with site.connect(receive_buffer=SMALL_BUFFER) as connection:
        connection.send(get(target))
        assert connection.head().length == size
        (site.folder / "www" / "next.bin").write_bytes(b"x" * 100)
        os.replace(site.folder / "www" / "next.bin", site.folder / "www" / "hole.bin")
        left = size
        while left:
            piece = connection.take(min(left, MEBIBYTE))
            assert not any(piece)
            left -= len(piece)
        assert ask(connection, target).body == b"x" * 100


# The server's life


def test_directory_that_another_one_replaces(serve: Servers) -> None:
    """A deployment that puts a new directory in the place of the old one is seen."""
    server = start(serve)
    folder = server.folder
    assert server.exchange(get("/s/page.html")).body == PAGE
    os.rename(folder / "www", folder / "old")
    (folder / "www").mkdir()
    (folder / "www" / "page.html").write_bytes(b"new")
    wait_until(
        lambda: server.exchange(get("/s/page.html")).body == b"new",
        PATIENCE,
        lambda: "the old directory is still served",
    )


def test_drain(serve: Servers) -> None:
    """What is being sent ends; what comes then is told that its connection closes."""
    server = start(serve)
    size = 16 * MEBIBYTE
    target = add_hole(server, size)
    with server.connect(receive_buffer=SMALL_BUFFER) as connection:
        connection.send(get(target) + get("/s/page.html"))
        assert not connection.head().closes
        server.send_signal(signal.SIGTERM)
        server.wait_log("draining")
        left = size
        while left:
            left -= len(connection.take(min(left, MEBIBYTE)))
        response = connection.response()
        assert (response.body, response.closes) == (PAGE, True)
        connection.expect_close()
    assert server.wait() == 0


def test_directory_that_is_not_there_is_a_config_error(serve: Servers) -> None:
    server = serve(
        "echo:app", {"static": [{"route": "/s", "directory": "none"}]}, FILES, wait=False
    )
    assert server.wait() == 2
    assert re.search(
        r"serve-zig: error: \S+serve\.toml:\d+: static\.0\.directory: \S+none does not exist; ",
        server.log(),
    )


def test_relative_to_the_config_file_not_to_the_current_folder(serve: Servers) -> None:
    config = {"static": [{"route": "/", "directory": "www", "fallthrough": True}]}
    server = serve("echo:app", config, FILES)
    assert Path.cwd() != server.folder
    assert server.exchange(get("/page.html")).body == PAGE
    assert server.exchange(get("/")).value("X-Application") == "echo"
