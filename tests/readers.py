"""Three readers of the bytes that one client sends: the server's own, h11 and llhttp (httptools).

Each returns a `Reading`: the requests that it found, one behind the other, and why it stopped.
"""

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, cast

import h11
import httptools

REPOSITORY = Path(__file__).resolve().parent.parent

#: Why a reader stopped: nothing left, the rest of a head or a body missing, the connection's last
#: request read, or a message refused.
End = Literal["idle", "in_head", "in_body", "closed", "refused"]


@dataclass
class Request:
    """One request; names in lower case, since no reader may tell them apart by case."""

    method: bytes = b""
    target: bytes = b""
    version: bytes = b""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""


@dataclass
class Reading:
    """What a reader found in the bytes of one connection."""

    requests: list[Request]
    end: End
    #: The reader's own words for a refusal.
    reason: str = ""
    #: The status that the reader would answer a refusal with; 0 when it has none.
    status: int = 0
    #: What was refused is a body: its head was accepted.
    in_body: bool = False


class Unavailable(Exception):
    """The program that reads as the server does cannot be built here."""


class OurReader:
    """The server's reading, from a program built of the same core (fuzz/verdict.zig)."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    @classmethod
    def start(cls) -> Self:
        """Start the program, built first unless SERVE_ZIG_VERDICT names it."""
        named = os.environ.get("SERVE_ZIG_VERDICT")
        return cls(Path(named) if named else build_verdict())

    def close(self) -> None:
        """End the program; it has nothing to say of its own accord."""
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()

    def read(self, stream: bytes) -> Reading:
        """Return what the server makes of a stream."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(len(stream).to_bytes(4, "little") + stream)
        process.stdin.flush()
        length = process.stdout.read(4)
        if len(length) != 4:
            raise AssertionError(f"the reader ended with {process.wait(10)} at {stream!r}")
        return _parse(process.stdout.read(int.from_bytes(length, "little")).decode("ascii"))


def build_verdict() -> Path:
    """Build the program with the Zig compiler of this Python, if it has one."""
    program = REPOSITORY / "zig-out" / "bin" / "verdict"
    if importlib.util.find_spec("ziglang") is not None:
        command = [sys.executable, "-m", "ziglang", "build", "verdict"]
        subprocess.run(command, cwd=REPOSITORY, check=True)
    elif not _is_fresh(program):
        raise Unavailable("ziglang is not installed (pip install -e '.[dev]')")
    return program


def _is_fresh(program: Path) -> bool:
    """Whether it was built from the sources as they are."""
    sources = [*(REPOSITORY / "src" / "core").rglob("*.zig"), *(REPOSITORY / "fuzz").glob("*.zig")]
    newest = max(path.stat().st_mtime for path in sources)
    return program.exists() and program.stat().st_mtime >= newest


def _parse(text: str) -> Reading:
    reading = Reading([], "idle")
    for line in text.splitlines():
        key, _, rest = line.partition(" ")
        if key == "request":
            request = Request()
            reading.requests.append(request)
        elif key == "method":
            request.method = bytes.fromhex(rest)
        elif key == "target":
            request.target = bytes.fromhex(rest)
        elif key == "version":
            request.version = b"1.0" if rest == "http_1_0" else b"1.1"
        elif key == "field":
            name, _, value = rest.partition(" ")
            request.fields.append((bytes.fromhex(name).lower(), bytes.fromhex(value)))
        elif key == "body":
            request.body = bytes.fromhex(rest)
        elif key == "end":
            why, _, what = rest.partition(" ")
            if why == "refused":
                status, reading.reason = what.split(" ")
                reading.status = int(status)
                reading.end = "refused"
            else:
                assert why in ("idle", "in_head", "in_body", "closed"), line
                reading.end = cast(End, why)
    return reading


def read_with_h11(stream: bytes) -> Reading:
    """Return what h11 makes of a stream, each request answered before the next is read."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    reading = Reading([], "idle")
    request: Request | None = None
    if stream:
        connection.receive_data(stream)
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            reading.end = "refused"
            reading.reason = str(error)
            reading.status = error.error_status_hint
            return reading
        if event is h11.NEED_DATA:
            if request is not None:
                reading.end = "in_body"
            elif connection.trailing_data[0]:
                reading.end = "in_head"
            return reading
        if isinstance(event, h11.Request):
            request = Request(
                bytes(event.method),
                bytes(event.target),
                bytes(event.http_version),
                [(bytes(name), bytes(value)) for name, value in event.headers],
            )
        elif isinstance(event, h11.Data):
            assert request is not None
            request.body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert request is not None
            reading.requests.append(request)
            # Not a success, which would open the tunnel that CONNECT asks for.
            connection.send(h11.Response(status_code=404, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                reading.end = "closed"
                return reading
            request = None
            connection.start_next_cycle()
        else:
            raise AssertionError(f"h11 says {event}")


class _Listener:
    """Gathers what llhttp calls back with."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.current: Request | None = None
        self.parser = httptools.HttpRequestParser(self)
        self.keeps = True

    def on_message_begin(self) -> None:
        self.current = Request()

    def on_url(self, url: bytes) -> None:
        assert self.current is not None
        self.current.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self.current is not None
        # Trailers come the same way, when the body has come.
        if not self.current.version:
            self.current.fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        assert self.current is not None
        self.current.method = self.parser.get_method()
        self.current.version = self.parser.get_http_version().encode("ascii")

    def on_body(self, body: bytes) -> None:
        assert self.current is not None
        self.current.body += body

    def on_message_complete(self) -> None:
        assert self.current is not None
        self.keeps = self.parser.should_keep_alive()
        self.requests.append(self.current)
        self.current = None


def read_with_llhttp(stream: bytes) -> Reading:
    """Return what llhttp makes of a stream."""
    listener = _Listener()
    reading = Reading(listener.requests, "idle")
    try:
        listener.parser.feed_data(stream)
    except httptools.HttpParserUpgrade:
        # What follows may be another protocol's, and is left alone.
        reading.end = "closed"
    except httptools.HttpParserError as error:
        reading.end = "refused"
        reading.reason = str(error)
        # The head was accepted: what is wrong is its body.
        reading.in_body = listener.current is not None and bool(listener.current.version)
    else:
        if listener.current is not None:
            reading.end = "in_body" if listener.current.version else "in_head"
        elif not listener.keeps:
            reading.end = "closed"
    if listener.requests and not listener.keeps:
        # What follows the last request is nobody's, whatever llhttp says of it.
        reading.end, reading.reason = "closed", ""
    return reading
