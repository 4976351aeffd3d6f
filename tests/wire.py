"""HTTP over a raw socket: bytes are sent as they are and responses are read strictly.

The reader takes nothing on trust: a response that is not framed exactly as RFC 9112 section 6
demands is an error of the test, and so is a byte beyond the last response. Each wait is bounded.
"""

import contextlib
import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Self

#: How long a test waits for what must happen: far longer than it takes, also beside a load that
#: keeps every core busy. What a test claims is that it happens; how soon is for tests with the
#: marker `timing`.
PATIENCE = 30.0

Framing = Literal["none", "content-length", "chunked", "close"]

STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-9][0-9]{2}) ([\t\x20-\x7e\x80-\xff]*)")
FIELD_LINE = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):"
    rb"[ \t]*((?:[\x21-\x7e\x80-\xff](?:[ \t]*[\x21-\x7e\x80-\xff])*)?)[ \t]*"
)
CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")


class WireError(AssertionError):
    """The server's bytes are not what HTTP/1.1 allows."""


class Truncated(WireError):
    """The connection ended before the message did."""


class Silence(WireError):
    """Nothing came in time."""


@dataclass
class Response:
    """One response as it stood on the wire; names and values are Latin-1 text."""

    status: int
    reason: str
    fields: list[tuple[str, str]]
    framing: Framing = "none"
    length: int = 0
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    interim: "list[Response]" = field(default_factory=list)

    def values(self, name: str) -> list[str]:
        """Return every value of the field called name, in order."""
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def value(self, name: str) -> str | None:
        """Return the value of a field that may stand only once, None without it."""
        values = self.values(name)
        if len(values) > 1:
            raise WireError(f"{name} stands {len(values)} times: {values}")
        return values[0] if values else None

    @property
    def closes(self) -> bool:
        """Whether the server said that this is the connection's last response."""
        options = ",".join(self.values("Connection")).lower().split(",")
        return "close" in [option.strip() for option in options]

    def json(self) -> Any:
        """Return the body read as JSON."""
        return json.loads(self.body)


class Connection:
    """One client connection; every read is bounded by `timeout` seconds altogether."""

    def __init__(
        self,
        family: int,
        address: Any,
        *,
        timeout: float = PATIENCE,
        receive_buffer: int = 0,
        source: str = "",
    ) -> None:
        self.timeout = timeout
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self._read = bytearray()
        self._ended = False
        try:
            if receive_buffer:
                # Before connect: the window is agreed on there.
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
                if family != getattr(socket, "AF_UNIX", None):
                    # Loopback's segments may be larger than such a window: its sender then waits
                    # for a timer before each (RFC 1122 section 4.2.3.4), 12 KB a second.
                    segment = min(1400, receive_buffer // 7)
                    self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
            self.socket.settimeout(timeout)
            if source:
                self.socket.bind((source, 0))
            self.socket.connect(address)
            if family != getattr(socket, "AF_UNIX", None):
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; once more does no harm."""
        self.socket.close()

    def reset(self) -> None:
        """End the connection with RST, as a client does that is killed."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def finish(self) -> None:
        """Say that nothing more will be sent, and go on reading."""
        self.socket.shutdown(socket.SHUT_WR)

    def send(self, data: bytes) -> None:
        """Send all of data."""
        self.socket.settimeout(self.timeout)
        self.socket.sendall(data)

    def offer(self, data: bytes) -> None:
        """Send data to a server that may have refused it and closed already."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send(data)

    def send_slowly(self, data: bytes, *, size: int = 1, pause: float = 0.0) -> None:
        """Send data in pieces of `size` bytes, a pause after each."""
        for start in range(0, len(data), size):
            self.send(data[start : start + size])
            if pause:
                time.sleep(pause)

    # Reading

    def response(self, method: str = "GET") -> Response:
        """Read one whole final response and the interim ones before it."""
        response = self.head(method)
        if response.framing == "content-length":
            response.body = self._take(response.length)
        elif response.framing == "chunked":
            while chunk := self.chunk():
                response.chunks.append(chunk)
            response.body = b"".join(response.chunks)
        elif response.framing == "close":
            response.body = self.read_to_end()
        return response

    def head(self, method: str = "GET") -> Response:
        """Read up to the end of a final response's head; the body is left unread."""
        interim: list[Response] = []
        while True:
            response = self._parse_head()
            if response.status >= 200 or response.status == 101:
                response.interim = interim
                _set_framing(response, method)
                return response
            if response.values("Content-Length") or response.values("Transfer-Encoding"):
                raise WireError(f"an interim response with a body: {response.fields}")
            interim.append(response)

    def interim_response(self) -> Response:
        """Read one interim (1xx) response."""
        response = self._parse_head()
        assert 100 <= response.status < 200, response
        return response

    def chunk(self) -> bytes:
        """Read one chunk of a chunked body; b"" for the last one and its trailer section."""
        size_line = self._line()
        if not CHUNK_SIZE.fullmatch(size_line):
            raise WireError(f"not a chunk size: {size_line!r}")
        size = int(size_line, 16)
        if size == 0:
            while line := self._line():
                if not FIELD_LINE.fullmatch(line):
                    raise WireError(f"not a trailer field: {line!r}")
            return b""
        data = self._take(size)
        if self._take(2) != b"\r\n":
            raise WireError(f"a chunk of {size} bytes is not followed by CRLF")
        return data

    def take(self, count: int) -> bytes:
        """Read exactly so many bytes, whatever they mean."""
        return self._take(count)

    def read_to_end(self, *, reset_counts: bool = False) -> bytes:
        """Read until the server ends the connection, and return what came."""
        deadline = time.monotonic() + self.timeout
        try:
            while self._fill(deadline):
                pass
        except ConnectionResetError:
            if not reset_counts:
                raise WireError("the connection was reset, not closed") from None
        data = bytes(self._read)
        self._read.clear()
        return data

    def expect_close(self) -> None:
        """The server ends the connection in time and says nothing more."""
        rest = self.read_to_end()
        if rest:
            raise WireError(f"bytes beyond the last response: {rest[:200]!r}")

    def expect_cut(self) -> None:
        """The server ends the connection, by a reset or not, and says nothing more."""
        rest = self.read_to_end(reset_counts=True)
        if rest:
            raise WireError(f"bytes beyond the last response: {rest[:200]!r}")

    def expect_silence(self, seconds: float = 0.2) -> None:
        """For so long nothing comes and the connection stays open."""
        try:
            more = self._fill(time.monotonic() + seconds)
        except Silence:
            more = None
        if self._read:
            raise WireError(f"bytes beyond the last response: {bytes(self._read[:200])!r}")
        if more is False:
            raise WireError("the connection was closed")

    def _parse_head(self) -> Response:
        status_line = self._line()
        match = STATUS_LINE.fullmatch(status_line)
        if match is None:
            raise WireError(f"not a status line: {status_line!r}")
        fields = []
        while line := self._line():
            found = FIELD_LINE.fullmatch(line)
            if found is None:
                raise WireError(f"not a field line: {line!r}")
            fields.append((found[1].decode("latin-1"), found[2].decode("latin-1")))
        return Response(int(match[1]), match[2].decode("latin-1"), fields)

    def _line(self) -> bytes:
        deadline = time.monotonic() + self.timeout
        while (end := self._read.find(b"\n")) < 0:
            self._need(deadline, "a line")
        line = bytes(self._read[: end + 1])
        del self._read[: end + 1]
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise WireError(f"a line does not end in CRLF alone: {line!r}")
        return line[:-2]

    def _take(self, count: int) -> bytes:
        deadline = time.monotonic() + self.timeout
        while len(self._read) < count:
            self._need(deadline, f"{count} bytes")
        data = bytes(self._read[:count])
        del self._read[:count]
        return data

    def _need(self, deadline: float, what: str) -> None:
        try:
            more = self._fill(deadline)
        except ConnectionResetError:
            raise Truncated(f"reset in the middle of {what}: {self._tail()}") from None
        if not more:
            raise Truncated(f"closed in the middle of {what}: {self._tail()}")

    def _fill(self, deadline: float) -> bool:
        """Read once; False at the end of the stream."""
        if self._ended:
            return False
        left = deadline - time.monotonic()
        if left <= 0:
            raise Silence(f"nothing in {self.timeout} s after {self._tail()}")
        self.socket.settimeout(left)
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            raise Silence(f"nothing in {self.timeout} s after {self._tail()}") from None
        self._read += data
        self._ended = not data
        return not self._ended

    def _tail(self) -> str:
        return repr(bytes(self._read[-120:]))


def _set_framing(response: Response, method: str) -> None:
    """Decide where the body ends as a client does, RFC 9112 section 6.3."""
    length = response.value("Content-Length")
    coding = response.value("Transfer-Encoding")
    if length is not None and coding is not None:
        raise WireError("Content-Length and Transfer-Encoding together")
    if length is not None and not re.fullmatch("[0-9]+", length):
        raise WireError(f"not a length: {length!r}")
    if coding is not None and coding.lower() != "chunked":
        raise WireError(f"a transfer coding that was not asked for: {coding!r}")
    if response.status == 204 and (length is not None or coding is not None):
        # RFC 9110 section 8.6 and RFC 9112 section 6.1 forbid both here.
        raise WireError(f"a 204 with framing: {response.fields}")
    if method == "HEAD" or response.status in (101, 204, 304):
        response.framing = "none"
    elif coding is not None:
        response.framing = "chunked"
    elif length is not None:
        response.framing = "content-length"
        response.length = int(length)
    else:
        response.framing = "close"


def requests_of(*heads: str) -> bytes:
    """Join request heads written as text, with Unix line ends, into the bytes of a pipeline."""
    return b"".join(head.replace("\n", "\r\n").encode("latin-1") for head in heads)


def get(target: str = "/", *fields: str, version: str = "1.1", method: str = "GET") -> bytes:
    """Return the bytes of a request without a body; fields are whole lines."""
    lines = [f"{method} {target} HTTP/{version}"]
    if not any(line.lower().startswith("host:") for line in fields):
        lines.append("Host: test.example")
    return ("\r\n".join([*lines, *fields]) + "\r\n\r\n").encode("latin-1")


def post(target: str, body: bytes, *fields: str, version: str = "1.1") -> bytes:
    """Return the bytes of a POST with a Content-Length."""
    return (
        get(target, f"Content-Length: {len(body)}", *fields, version=version, method="POST") + body
    )


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    """Return chunks in the chunked transfer coding, the last chunk included."""
    coded = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return coded + b"0\r\n" + trailer + b"\r\n"


def post_chunked(target: str, *chunks: bytes, trailer: bytes = b"") -> bytes:
    """Return the bytes of a POST in the chunked transfer coding."""
    head = get(target, "Transfer-Encoding: chunked", method="POST")
    return head + chunked(*chunks, trailer=trailer)


@contextlib.contextmanager
def may_be_given_up() -> Iterator[None]:
    """Let the server leave a half-closed client without an answer, but not at once.

    It cannot be told from one that has gone, which is waited for for a quarter of a second.
    """
    began = time.monotonic()
    try:
        yield
    except Truncated:
        if time.monotonic() - began < 0.25:
            raise


@contextlib.contextmanager
def all_closed(connections: list[Connection]) -> Iterator[list[Connection]]:
    """Close every connection in the list at the end, those added later too."""
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()
