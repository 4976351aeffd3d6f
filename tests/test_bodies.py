"""Bodies of any size cost bounded memory and no thread; the examples for them."""

import hashlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from admin_client import serve_with_admin
from metrics import Metrics
from serving import APPLICATIONS, REPOSITORY, Server, Servers, wait_until
from wire import PATIENCE, all_closed, get, post, post_chunked

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MIB = 1 << 20
# The bar for a body of any size; the process itself makes some noise.
GROWTH_MAX = 8 * MIB
SIZE = 192 * MIB


class Growth:
    """The most resident memory of a server, beyond what it was before."""

    def __init__(self, server: Server) -> None:
        self.bytes = 0
        self._server = server
        self._before = server.resident_bytes()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Growth":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(0.01):
            self.bytes = max(self.bytes, self._server.resident_bytes() - self._before)


@contextmanager
def example(serve: Servers, name: str) -> Iterator[Server]:
    """A server of one of the examples."""
    server = serve(config_file=REPOSITORY / "examples" / name / "serve.toml")
    yield server


def open_deleted_files(server: Server) -> list[str]:
    """Return the unlinked files that the process has open."""
    links = Path(f"/proc/{server.process.pid}/fd").iterdir()
    found = []
    for link in links:
        try:
            name = str(link.readlink())
        except OSError:
            continue
        if name.endswith("(deleted)"):
            found.append(name)
    return found


@LINUX
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_a_large_upload_takes_no_memory(serve: Servers, coding: str) -> None:
    """The uploads example, with and without Content-Length."""
    with example(serve, "uploads") as server, server.connect(timeout=60) as connection:
        requests.put(server.url, data=bytes(2 * MIB), timeout=PATIENCE)
        block = bytes(range(256)) * 4096
        digest = hashlib.sha256(block * (SIZE // MIB)).hexdigest()
        with Growth(server) as growth:
            if coding == "length":
                connection.send(
                    f"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n".encode()
                )
                for _ in range(SIZE // MIB):
                    connection.send(block)
            else:
                connection.send(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
                for _ in range(SIZE // MIB):
                    connection.send(b"%x\r\n%s\r\n" % (MIB, block))
                connection.send(b"0\r\nX-End: reached\r\n\r\n")
            answer = connection.response().json()
        assert answer["bytes"] == SIZE
        assert answer["sha256"] == digest
        assert answer["trailers"] == ({} if coding == "length" else {"X-End": "reached"})
        assert growth.bytes <= GROWTH_MAX
        # The answer may arrive before the worker has let go of the request.
        wait_until(
            lambda: not open_deleted_files(server),
            PATIENCE,
            lambda: f"left: {open_deleted_files(server)}",
        )


@LINUX
def test_a_large_download_takes_no_memory(serve: Servers) -> None:
    """A generator of fresh pieces and a slow client: at most response_memory ahead of it."""
    files = {
        "app.py": "def app(environ, start_response):\n"
        f"    start_response('200 OK', [('Content-Length', '{SIZE}')])\n"
        f"    for number in range({SIZE // MIB}):\n"
        "        yield bytes([number % 256]) * (1 << 20)\n"
    }
    server = serve("app:app", files=files)
    with server.connect(receive_buffer=65536, timeout=60) as connection:
        with Growth(server) as growth:
            connection.send(get("/"))
            assert connection.head().value("content-length") == str(SIZE)
            for number in range(SIZE // MIB):
                piece = connection.take(MIB)
                assert piece[0] == piece[-1] == number % 256
        assert growth.bytes <= GROWTH_MAX


def test_responses_that_nobody_reads_are_bounded_together(serve: Servers) -> None:
    """Past buffer_memory little is made ahead of each client, and who reads gets all of it."""
    count, piece = 1600, 8192  # too small to be lent instead of copied
    files = {
        "app.py": "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        f"    for number in range({count}):\n"
        f"        yield bytes([number % 251]) * {piece}\n"
    }
    config = {"limits": {"buffer_memory": "1 MiB"}}
    server, admin = serve_with_admin(serve, "app:app", config, files=files)

    def held_bytes() -> float:
        fields = "Accept: application/openmetrics-text; version=1.0.0"
        text = admin.ask("/metrics", fields).body.decode()
        return Metrics(text).value("buffer_memory_bytes")

    with all_closed([server.connect(receive_buffer=4096) for _ in range(24)]) as clients:
        for client in clients:
            client.send(get("/"))
            assert client.head().status == 200
        wait_until(lambda: held_bytes() > MIB / 2, PATIENCE, lambda: f"{held_bytes()} held")
        time.sleep(0.5)  # for what the server might still make ahead of them
        assert held_bytes() < MIB + len(clients) * 100_000
        for number in range(count):
            assert clients[0].chunk() == bytes([number % 251]) * piece
        assert clients[0].chunk() == b""
    wait_until(lambda: held_bytes() == 0, PATIENCE, lambda: f"{held_bytes()} held")


def test_slow_uploads_hold_no_thread(serve: Servers) -> None:
    """Many clients in the middle of uploads past body_memory, one thread, and others are served."""
    config = {
        "concurrency": {"threads": 1},
        "limits": {"body_memory": "64 KiB"},
        "timeouts": {"body": 600.0},
    }
    server = serve("echo:app", config)
    with all_closed([server.connect() for _ in range(40)]) as connections:
        for connection in connections:
            connection.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
            connection.send(bytes(200_000))
        for _ in range(10):
            assert server.exchange(get("/")).status == 200


@LINUX
def test_an_upload_that_is_cut_leaves_no_file(serve: Servers) -> None:
    """The temporary file has no name, and its descriptor goes with the connection."""
    server = serve("echo:app", {"limits": {"body_memory": "64 KiB"}})
    connection = server.connect()
    connection.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
    connection.send(bytes(500_000))
    wait_until(lambda: open_deleted_files(server), PATIENCE, lambda: "no temporary file")
    connection.close()
    wait_until(
        lambda: not open_deleted_files(server),
        PATIENCE,
        lambda: f"left: {open_deleted_files(server)}",
    )


@LINUX
def test_announced_bodies_take_no_memory(serve: Servers) -> None:
    """A client that promises a megabyte and sends a byte costs what it sent."""
    server = serve("echo:app")
    server.exchange(post("/", bytes(MIB)))
    before = server.resident_bytes()
    with all_closed([server.connect() for _ in range(100)]) as connections:
        for connection in connections:
            connection.send(
                f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {MIB}\r\n\r\nx".encode()
            )
        for _ in range(3):
            assert server.exchange(get("/")).status == 200
        assert server.resident_bytes() - before < 3 * MIB


@LINUX
def test_memory_of_finished_bodies_is_given_back(serve: Servers) -> None:
    """Forty bodies of a megabyte at once, then none: most of the memory goes."""
    server = serve("echo:app", {"limits": {"body_memory": "1 MiB"}})
    server.exchange(post("/", bytes(MIB)))
    before = server.resident_bytes()
    with all_closed([server.connect() for _ in range(40)]) as connections:
        for connection in connections:
            connection.send(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {MIB}\r\n\r\n".encode())
            connection.send(bytes(MIB - 1))
        wait_until(
            lambda: server.resident_bytes() > before + 30 * MIB,
            PATIENCE,
            lambda: "bodies are not gathered",
        )
    wait_until(
        lambda: server.resident_bytes() < before + 10 * MIB,
        PATIENCE,
        lambda: f"{(server.resident_bytes() - before) / MIB:.0f} MiB more than before",
    )


def test_chat_example(serve: Servers) -> None:
    """More listeners than threads; a line reaches all, and those who leave are forgotten."""
    with example(serve, "chat") as server:
        assert "EventSource" in requests.get(server.url, timeout=PATIENCE).text
        with all_closed([server.connect() for _ in range(24)]) as listeners:
            for listener in listeners:
                listener.send(get("/events"))
                assert listener.head().value("content-type") == "text/event-stream; charset=utf-8"
                assert listener.chunk() == b": welcome\n\n"
            for line in ("one", "two words", "thré"):
                answer = requests.post(server.url + "/say", data={"line": line}, timeout=PATIENCE)
                assert answer.json() == {"listeners": 24}
                for listener in listeners:
                    assert listener.chunk() == f"data: {line}\n\n".encode()

        def nobody_listens() -> bool:
            answer = requests.post(server.url + "/say", data={"line": "?"}, timeout=PATIENCE)
            return bool(answer.json() == {"listeners": 0})

        wait_until(nobody_listens, PATIENCE, lambda: "listeners that left are still there")


def test_uploads_example_says_what_it_takes(serve: Servers) -> None:
    """Other methods are refused, chunked uploads and their trailers taken."""
    with example(serve, "uploads") as server:
        assert server.exchange(get("/")).status == 405
        answer = server.exchange(post_chunked("/", b"abc", trailer=b"X-Sum: 1\r\n"))
        assert answer.json() == {
            "bytes": 3,
            "sha256": hashlib.sha256(b"abc").hexdigest(),
            "trailers": {"X-Sum": "1"},
        }


def test_benchmark_of_bodies_runs(tmp_path: Path) -> None:
    """A short run of benchmarks/bodies.py gives figures."""
    script = REPOSITORY / "benchmarks" / "bodies.py"
    run = subprocess.run(
        [sys.executable, str(script), "--only", "upload", "--gib", "0.02"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert re.search(r"more memory: \d+\.\d MiB, [\d,]+ MB/s", run.stdout), run.stdout


BURSTS = f"""
import sys
sys.path.insert(0, {str(APPLICATIONS)!r})
import events

def app(environ, start_response):
    length = environ["QUERY_STRING"]
    start_response("200 OK", [("Content-Length", "13")] if length else [])
    for burst in range(3):
        for _ in range(4):
            yield b"x"
        events.wait_gate(str(burst))
    yield b"."
"""


# The kernel alone would send it after 0.2 s.
@pytest.mark.parametrize(
    "seconds_max", [PATIENCE, pytest.param(0.1, marks=pytest.mark.timing)], ids=["sent", "soon"]
)
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("target", ["/", "/?length"])
def test_the_end_of_a_burst_is_not_held_back(
    serve: Servers, count: int, target: str, seconds_max: float
) -> None:
    """Pieces may share a packet; the last before a pause is sent while the application pauses."""
    server = serve("app:app", {"concurrency": {"threads": count}}, {"app.py": BURSTS})
    with server.connect() as connection:
        connection.send(get(target))
        connection.head()
        began = time.monotonic()
        for burst in range(3):
            if target == "/":
                assert [connection.chunk() for _ in range(4)] == [b"x"] * 4
            else:
                assert connection.take(4) == b"xxxx"
            assert time.monotonic() - began < seconds_max
            began = time.monotonic()
            server.open_gate(str(burst))
        assert (connection.chunk() if target == "/" else connection.take(1)) == b"."
