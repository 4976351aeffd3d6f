"""The server's reading of requests beside h11's and llhttp's: every difference has been decided.

What is decided stands in docs/CONFORMANCE.md, entry by entry, with the sentence of the RFC. A
difference that is not there is a failure here. DIFFERENTIAL_EXAMPLES=100000 looks for longer, each
time elsewhere; see scripts/differential.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from readers import OurReader, Reading, Request, Unavailable, read_with_h11, read_with_llhttp
from serving import REPOSITORY, Server, Servers
from streams import STREAMS
from wire import get

READERS: dict[str, Callable[[bytes], Reading]] = {
    "h11": read_with_h11,
    "llhttp": read_with_llhttp,
}
EXAMPLES = int(os.environ.get("DIFFERENTIAL_EXAMPLES", "0"))
CORPORA = REPOSITORY / "fuzz" / "corpus"
CHUNKED = "Transfer-Encoding: chunked"


@dataclass(frozen=True)
class Disagreement:
    """What one reader does and the server does not, at the first request where they part."""

    #: stricter: the server refuses what the reader takes; laxer: the other way round; differs: both
    #: take it, and one part of it is not the same; ends: one of them goes on after it.
    kind: str
    #: The server's reason, the reader's words, the part that differs, or who goes on.
    what: str
    ours: Request | None = None
    theirs: Request | None = None


def disagreement(ours: Reading, theirs: Reading) -> Disagreement | None:
    """Return where two readings part, None when they do not.

    Of two readers one may see sooner than the other that a message is wrong: to refuse and to wait
    for the rest of a head is no disagreement, since neither has let anything through.
    """
    for our, their in zip_longest(ours.requests, theirs.requests):
        if our is None or their is None:
            break
        for part in ("method", "target", "version", "fields", "body"):
            if getattr(our, part) != getattr(their, part):
                return Disagreement("differs", part, our, their)
    else:
        our = their = None
    our_state = state(ours, our)
    their_state = state(theirs, their)
    if our_state == their_state or {our_state, their_state} <= {"refused", "waiting"}:
        return None
    if their_state == "taken" and our_state == "refused":
        return Disagreement("stricter", ours.reason, our, their)
    if our_state == "taken" and their_state == "refused":
        return Disagreement("laxer", theirs.reason, our, their)
    return Disagreement("ends", f"{our_state}, {their_state}", our, their)


def part(reader: str, stream: bytes, ours: Reading) -> Disagreement | None:
    """Return where a reader and the server part at a stream."""
    theirs = READERS[reader](stream)
    if ours.end == "refused" and theirs.end == "in_body":
        # It may yet see what is wrong, and only wait for the end of a line.
        later = READERS[reader](stream + b"\r\n\r\n")
        theirs = later if later.end == "refused" else theirs
    return disagreement(ours, theirs)


def state(reading: Reading, request: Request | None) -> str:
    """Return how a reader stands at a request that another may have taken."""
    if request is not None or reading.end == "in_body":
        return "taken"
    return "waiting" if reading.end in ("idle", "in_head") else reading.end


@dataclass(frozen=True)
class Decided:
    """A disagreement that docs/CONFORMANCE.md decides, and a stream that shows it."""

    #: Where it stands in the document.
    entry: str
    reader: str
    kind: str
    #: A regular expression for `Disagreement.what`.
    what: str
    example: bytes
    #: What must be in the stream besides, so that nothing else hides behind the entry.
    because: str = ""

    def covers(self, reader: str, found: Disagreement, stream: bytes) -> bool:
        """Whether this is that disagreement."""
        explained = EXPLAINED.get(self.entry)
        return (
            (self.reader, self.kind) == (reader, found.kind)
            and re.fullmatch(self.what, found.what) is not None
            and re.search(self.because.encode("latin-1"), stream) is not None
            and (explained is None or explained(found))
        )


# As of llhttp 9: what it knows of RFC 9110 9.1's extensible registry.
LLHTTP_METHODS = frozenset(
    b"DELETE GET HEAD POST PUT CONNECT OPTIONS TRACE COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH"
    b" UNLOCK BIND REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE"
    b" UNSUBSCRIBE PATCH PURGE MKCALENDAR LINK UNLINK SOURCE QUERY".split()
)


def lower_codings(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return field lines with the values of Transfer-Encoding in lower case."""
    return [(n, v.lower() if n == b"transfer-encoding" else v) for n, v in fields]


def stripped(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return field lines without whitespace behind their values."""
    return [(name, value.rstrip(b" \t")) for name, value in fields]


def both(found: Disagreement) -> tuple[Request, Request]:
    """Return the two requests of a disagreement in which there are two."""
    assert found.ours is not None
    assert found.theirs is not None
    return found.ours, found.theirs


#: For some entries, what makes the two readings the same.
EXPLAINED: dict[str, Callable[[Disagreement], bool]] = {
    "coding-case": lambda found: lower_codings(both(found)[0].fields) == both(found)[1].fields,
    "trailing-whitespace": lambda found: (
        found.kind == "laxer" or both(found)[0].fields == stripped(both(found)[1].fields)
    ),
    "unknown-method": lambda found: found.ours is None or found.ours.method not in LLHTTP_METHODS,
}


def stricter(reason: str, **examples: bytes) -> list[Decided]:
    """Entries for what the server refuses for one reason and readers take."""
    return [
        Decided(reason.replace("_", "-"), reader, "stricter", reason, example)
        for reader, example in examples.items()
    ]


def coded(body: str, version: str = "1.1") -> bytes:
    """Return a request with a chunked body written by hand."""
    return get("/", CHUNKED, method="POST", version=version) + body.encode("latin-1")


def lines(*given: str, end: str = "\r\n") -> bytes:
    """Return a head of these lines."""
    return (end.join(given) + end + end).encode("latin-1")


DECIDED = [
    *stricter("bad_chunk_extension", h11=coded("0;\r\n\r\n"), llhttp=coded("0;=b\r\n\r\n")),
    *stricter("bad_chunk_size", h11=coded("5 \r\nhello\r\n0\r\n\r\n")),
    *stricter("bad_content_length", h11=get("/", "Content-Length: 5, 5") + b"hello"),
    *stricter("bad_host", h11=get("/", "Host: a,b"), llhttp=get("/", "Host: a b")),
    *stricter("bad_request_line", llhttp=lines("GET  / HTTP/1.1", "Host: a")),
    *stricter("bad_target", h11=get("a"), llhttp=get("/a#b")),
    *stricter(
        "bad_transfer_encoding",
        h11=coded("0\r\n\r\n", "1.0"),
        llhttp=coded("0\r\n\r\n", "1.0"),
    ),
    *stricter("bare_cr", h11=coded("0;a\rb\r\n\r\n"), llhttp=b"\r" + get()),
    *stricter("bare_lf", h11=lines("GET / HTTP/1.1", "Host: a", end="\n"), llhttp=b"\n" + get()),
    *stricter(
        "body_too_large",
        h11=get("/", "Content-Length: 99999999999"),
        llhttp=get("/", "Content-Length: 99999999999"),
    ),
    *stricter(
        "chunk_size_too_large",
        h11=coded("00000000000000005\r\nhello\r\n0\r\n\r\n"),
        llhttp=coded("00000000000000005\r\nhello\r\n0\r\n\r\n"),
    ),
    *stricter("conflicting_framing", h11=get("/", CHUNKED, "Content-Length: 5") + b"0\r\n\r\n"),
    *stricter("connect", h11=get("a:1", method="CONNECT"), llhttp=get("a:1", method="CONNECT")),
    *stricter("control_character", h11=get("/", "X-A: a\x7fb")),
    *stricter(
        "duplicate_content_length",
        h11=get("/", "Content-Length: 5", "Content-Length: 5") + b"hello",
    ),
    *stricter("duplicate_host", llhttp=get("/", "Host: a", "Host: b")),
    *stricter("expectation_failed", h11=get("/", "Expect: x"), llhttp=get("/", "Expect: x")),
    *stricter(
        "forbidden_trailer",
        h11=coded("0\r\nHost: b\r\n\r\n"),
        llhttp=coded("0\r\nHost: b\r\n\r\n"),
    ),
    *stricter("misdirected", h11=get("https://a/"), llhttp=get("https://a/")),
    *stricter("missing_host", h11=lines("GET / HTTP/1.2"), llhttp=lines("GET / HTTP/1.1")),
    *stricter("obsolete_folding", h11=get("/", "X-A: a\r\n b")),
    *stricter(
        "unsupported_transfer_coding",
        llhttp=get("/", "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    ),
    *stricter("unsupported_version", h11=get(version="2.0"), llhttp=get(version="2.0")),
    Decided(
        "empty-line",
        "h11",
        "laxer",
        "no request line received",
        b"\r\n" + get(),
        r"(^|\n|hello)\r\n",
    ),
    Decided("minor-version", "h11", "differs", "version", get(version="1.9"), r"HTTP/1\.[2-9]\r\n"),
    Decided(
        "minor-version",
        "llhttp",
        "laxer",
        "Invalid HTTP version",
        get(version="1.9"),
        r"HTTP/1\.[2-9]\r\n",
    ),
    Decided(
        "unknown-method",
        "llhttp",
        "laxer",
        "Invalid method encountered|Expected space after method",
        get(method="get"),
    ),
    Decided(
        "chunk-extension-space",
        "llhttp",
        "laxer",
        "Invalid character in chunk extensions",
        coded("0; a=b\r\n\r\n"),
        r";[ \t]+\S",
    ),
    Decided(
        "trailing-whitespace", "llhttp", "differs", "fields", get("/", "X-A: v "), r"[ \t]\r\n"
    ),
    Decided(
        "trailing-whitespace",
        "llhttp",
        "laxer",
        "Request has invalid `Transfer-Encoding`",
        get("/", CHUNKED + "\t") + b"0\r\n\r\n",
        r"[ \t]\r\n",
    ),
    Decided(
        "coding-case",
        "h11",
        "differs",
        "fields",
        get("/", "Transfer-Encoding: Chunked") + b"0\r\n\r\n",
        r"(?i)transfer-encoding:[ \t]*chunked",
    ),
    Decided(
        "long-content-length",
        "h11",
        "laxer",
        "bad Content-Length",
        get("/", "Content-Length: " + "0" * 20 + "5") + b"hello",
        r"(?i)content-length:[ \t]*0",
    ),
    Decided(
        "upgrade",
        "llhttp",
        "ends",
        "(waiting|taken|refused), closed",
        get("/", "Connection: upgrade", "Upgrade: h2c"),
        r"(?i)\nupgrade:",
    ),
    Decided(
        "close-wins",
        "llhttp",
        "ends",
        "closed, (waiting|taken|refused)",
        get("/", "Connection: keep-alive, close", version="1.0"),
        r"(?i)close",
    ),
]


@pytest.fixture(scope="module")
def our_reader() -> Iterator[OurReader]:
    """The program that reads as the server does."""
    try:
        reader = OurReader.start()
    except Unavailable as error:
        pytest.skip(str(error))
    yield reader
    reader.close()


def undecided(stream: bytes, ours: Reading) -> list[str]:
    """Return the disagreements about a stream that no entry decides."""
    found = []
    for name in READERS:
        where = part(name, stream, ours)
        if where and not any(one.covers(name, where, stream) for one in DECIDED):
            found.append(f"{name}: {where}")
    return found


@pytest.mark.parametrize("one", DECIDED, ids=lambda one: f"{one.entry}-{one.reader}-{one.kind}")
def test_a_decided_difference_is_one(our_reader: OurReader, one: Decided) -> None:
    """Each entry has a stream about which the two disagree, and so is not there in vain."""
    found = part(one.reader, one.example, our_reader.read(one.example))
    assert found is not None
    assert one.covers(one.reader, found, one.example), found


def test_the_document_has_every_entry() -> None:
    """docs/CONFORMANCE.md decides what is listed here, and nothing that is not."""
    text = (REPOSITORY / "docs" / "CONFORMANCE.md").read_text("utf-8")
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE))
    assert documented == {one.entry for one in DECIDED}


@settings(
    # Without a number the same streams each time, so that a failure is the change's.
    derandomize=not EXAMPLES,
    max_examples=EXAMPLES or 1000,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(stream=STREAMS)
def test_every_difference_is_decided(our_reader: OurReader, stream: bytes) -> None:
    """Generated and mutated requests are read alike, or the document says why not."""
    assert undecided(stream, our_reader.read(stream)) == []


def corpus_lines(name: str) -> list[bytes]:
    """Return the inputs of a fuzz target's corpus, without their two bytes of settings."""
    lines = (CORPORA / f"{name}.txt").read_text("ascii").splitlines()
    return [unescaped(line)[2:] for line in lines]


def unescaped(line: str) -> bytes:
    """Return the bytes of a line of a corpus."""
    # Its escapes are among Python's, and nothing else in it looks like one.
    return line.encode("ascii").decode("unicode_escape").encode("latin-1")


@pytest.mark.parametrize("name", ["request_head", "connection"])
def test_every_difference_about_a_corpus_is_decided(our_reader: OurReader, name: str) -> None:
    """What the fuzzers found interesting is, for other readers, too."""
    streams = corpus_lines(name)
    assert len(streams) > 100
    wrong = {stream: undecided(stream, our_reader.read(stream)) for stream in streams}
    assert {stream: lines for stream, lines in wrong.items() if lines} == {}


# The same through the process


@pytest.fixture(scope="module")
def server(serve_module: Servers) -> Server:
    """A server of the echo application."""
    return serve_module("echo:app")


def expect_process_agrees(server: Server, stream: bytes, reading: Reading) -> None:
    """The process answers what the program says that it reads."""
    with server.connect() as connection:
        connection.offer(stream)
        connection.finish()
        for request in reading.requests:
            response = connection.response(request.method.decode("latin-1"))
            assert response.status == 200, (stream, response)
            if request.method != b"HEAD":
                answer = response.json()
                assert answer["method"].encode("latin-1") == request.method, stream
                assert answer["environ"]["RAW_URI"].encode("latin-1") == request.target, stream
                assert answer["body"].encode("latin-1") == request.body, stream
        if reading.end == "refused":
            refusal = connection.head()
            assert refusal.status == reading.status, (stream, refusal)
            reason = connection.read_to_end(reset_counts=True)
            # Which method was refused the program does not say; a refused HEAD has no content.
            if reason or b"HEAD " not in stream:
                assert reason.endswith(b": %s\n" % reading.reason.encode()), (stream, refusal)
        connection.expect_cut()


@settings(
    derandomize=True,
    max_examples=300,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(stream=STREAMS)
def test_the_process_reads_as_the_program(
    our_reader: OurReader, server: Server, stream: bytes
) -> None:
    """What was compared above is what answers on the wire."""
    expect_process_agrees(server, stream, our_reader.read(stream))


def test_the_process_reads_the_corpus_as_the_program(our_reader: OurReader, server: Server) -> None:
    """The same for a part of what the fuzzers found."""
    for stream in corpus_lines("connection")[::5]:
        expect_process_agrees(server, stream, our_reader.read(stream))
