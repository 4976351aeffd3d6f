"""Hypothesis strategies for the bytes that a client might send: sound, unusual and broken.

Whole lines are drawn, not their parts: an example then costs few draws, and most of a stream is
right, so that readers get as far as what is wrong.
"""

from collections.abc import Iterable

from hypothesis import strategies as st

METHODS = [b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"get", b"M-SEARCH", b"PURGE", b"G{T", b""]
TARGETS = [
    b"/a?b=c",
    b"/?a?b",
    b"//a//b",
    b"/%41%zz",
    b"*",
    b"http://other.example/p?q",
    b"http://other.example",
    b"HTTPS://o:80?x",
    b"http://user@o/",
    b"http://a,b/",
    b"ftp://o/",
    b"a",
    b"o:80",
    b"?q",
    b"/a#b",
    b"/a b",
    b"/\xe9",
    b"/a\tb",
    b"/a\x7f",
    b'/"<>\\^`{|}',
    b"",
]
VERSIONS = [
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"HTTP/1.9",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1",
    b"HTTP/1.10",
    b"http/1.1",
    b"HTTPS/1.1",
    b"HTTP/1.1 ",
    b"HTTP/11",
    b"",
]
HOSTS = [
    b"a:80",
    b"[::1]:80",
    b"a:",
    b"a b",
    b"a/b",
    b"a,b",
    b"u@a",
    b"",
    b"a:x",
    b"::1",
    b"a\xe9",
    b"a%41",
    b"a_b",
]
LENGTHS = [b"0", b"05", b"+5", b"-5", b"5,5", b"5, 5", b"0x5", b"5 5", b"", b"5;", b"9" * 25, b"6"]
CODINGS = [
    b"Chunked",
    b"chunked, identity",
    b"identity",
    b"gzip, chunked",
    b"chunked, chunked",
    b"chunked;q=1",
    b"xchunked",
    b"\x0bchunked",
    b"chunked,",
    b",chunked",
    b"",
    b'"chunked"',
]
CONNECTIONS = [b"close", b"keep-alive", b"Close, x", b"keep-alive, close", b"upgrade", b"x,,y", b""]
NAMES = [b"X_C", b"X.D~", b"X-A ", b"X A", b"", b"X\xe9", b"X(", b"\tX", b" X", b"X\x00", b"X\x0b"]
VALUES = [
    b"",
    b"a\tb",
    b"\xe9",
    b"a\x00b",
    b"a\x0bb",
    b"a\x7fb",
    b"a\rb",
    b"a\nb",
    b"a\r\n b",
    b'"q"',
]
SEPARATORS = [b":", b":\t ", b" : ", b" ", b":\x0b", b"=", b"::"]
ENDS = [b"\n", b"\r", b"\r\r\n", b"\n\r", b" \r\n", b"\t\r\n", b""]
SIZES = [
    b"005",
    b"0x5",
    b"+5",
    b"-5",
    b" 5",
    b"5 ",
    b"5\t",
    b"5_",
    b"6",
    b"4",
    b"",
    b"g",
    b"1" + b"0" * 15 + b"5",
    b"1" + b"0" * 16 + b"5",
    b"0" * 20 + b"5",
]
EXTENSIONS = [
    b";a",
    b";a=b",
    b"; a=b",
    b" ;a",
    b';a="b"',
    b';a="b\\"c;"',
    b';a="b',
    b";",
    b";a\nb",
    b";a\rb",
    b";\xe9",
    b";=b",
    b";a= b",
    b";a\x00",
]
TRAILERS = [
    b"X-T: 1\r\n",
    b"Content-Length: 5\r\n",
    b"Host: b\r\n",
    b"Vary: a\r\n",
    b"X-T : 1\r\n",
    b"X\n",
    b" X: 1\r\n",
]
BLANKS = [b"\r\n", b"\n", b"\r\n\r\n", b" ", b"\r", b"\x00"]
BYTES = b'\r\n\x00\t \x0b\x7f\x80\xff:;,/#%?+-_0159afxXG"\\'


def lines_of(name: bytes, usual: bytes, values: Iterable[bytes]) -> list[bytes]:
    """Field lines of one name: values, separators and ends, one of them unusual."""
    lines = [name + b": " + value + b"\r\n" for value in [usual, *values]]
    lines += [name + separator + usual + b"\r\n" for separator in SEPARATORS]
    lines += [name + b": " + usual + end for end in ENDS]
    return [*lines, name.upper() + b": " + usual + b"\r\n", name.lower() + b": " + usual + b"\r\n"]


def request_lines() -> list[bytes]:
    """Request lines of which one part is unusual."""
    lines = [method + b" / HTTP/1.1\r\n" for method in METHODS]
    lines += [
        method + b" " + target + b" HTTP/1.1\r\n"
        for target in TARGETS
        for method in (b"GET", b"OPTIONS")
    ]
    lines += [b"GET / " + version + b"\r\n" for version in VERSIONS]
    lines += [b"POST / HTTP/1.1" + end for end in ENDS]
    lines += [b"GET  / HTTP/1.1\r\n", b"GET /  HTTP/1.1\r\n", b"GET\t/ HTTP/1.1\r\n", b"GET /\r\n"]
    return lines


def chunked_bodies() -> list[bytes]:
    """The body in the chunked coding, of which one part is unusual."""
    whole = b"5\r\nhello\r\n0\r\n\r\n"
    bodies = [whole[:at] + end + whole[at + 2 :] for at in (1, 8, 11, 13) for end in ENDS]
    bodies += [size + b"\r\nhello\r\n0\r\n\r\n" for size in SIZES]
    bodies += [
        size + extension + b"\r\n" + rest
        for extension in EXTENSIONS
        for size, rest in (
            (b"5", b"hello\r\n0\r\n\r\n"),
            (b"0", b"\r\n"),
        )
    ]
    bodies += [b"5\r\nhello\r\n0\r\n" + trailer + b"\r\n" for trailer in TRAILERS]
    return [*bodies, b"0\r\n\r\n", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"]


def mostly(usual: bytes, others: list[bytes], weight: int) -> st.SearchStrategy[bytes]:
    """The usual value `weight` times as often as all the others together."""
    return st.sampled_from([usual] * (weight * len(others)) + others)


LENGTH_LINES = mostly(b"Content-Length: 5\r\n", lines_of(b"Content-Length", b"5", LENGTHS), 3)
CODING_LINES = mostly(
    b"Transfer-Encoding: chunked\r\n", lines_of(b"Transfer-Encoding", b"chunked", CODINGS), 3
)
CHUNKED = b"5\r\nhello\r\n0\r\n\r\n"

#: Field lines that announce a body, and bodies.
NO_BODY = st.sampled_from([b"", b"", b"", b"hello"])
LENGTH_BODIES = st.sampled_from([b"hello", b"hello", b"hello", b"hell", b"hello!"])
FRAMINGS = st.one_of(
    st.tuples(st.just(b""), st.just(b""), NO_BODY),
    st.tuples(LENGTH_LINES, st.just(b""), LENGTH_BODIES),
    st.tuples(CODING_LINES, st.just(b""), mostly(CHUNKED, chunked_bodies(), 1)),
    st.tuples(st.just(b""), st.just(b""), NO_BODY),
    st.tuples(LENGTH_LINES, st.just(b""), LENGTH_BODIES),
    st.tuples(CODING_LINES, st.just(b""), mostly(CHUNKED, chunked_bodies(), 1)),
    st.tuples(LENGTH_LINES, LENGTH_LINES, LENGTH_BODIES),
    st.tuples(CODING_LINES, LENGTH_LINES, st.just(CHUNKED)),
    st.tuples(LENGTH_LINES, CODING_LINES, st.just(b"0\r\n\r\n")),
)
OTHER_LINES = [
    *lines_of(b"X-A", b"v", VALUES),
    *lines_of(b"Connection", b"close", CONNECTIONS),
    *[name + b": v\r\n" for name in NAMES],
    b"Expect: 100-continue\r\n",
    b"Expect: x\r\n",
    b"Expect: , 100-continue,\r\n",
    b"Expect:\r\n",
    b"Host: b\r\n",
]

HEADS = st.tuples(
    mostly(b"", BLANKS, 40),
    mostly(b"POST / HTTP/1.1\r\n", request_lines(), 5),
    mostly(b"Host: a\r\n", lines_of(b"Host", b"a", HOSTS), 10),
    mostly(b"", OTHER_LINES, 4),
).map(b"".join)


def whole_request(head: bytes, framing: tuple[bytes, bytes, bytes], end: bytes) -> bytes:
    """One request of its parts."""
    first, second, body = framing
    return head + first + second + end + body


REQUESTS = st.builds(whole_request, HEADS, FRAMINGS, mostly(b"\r\n", ENDS, 40))


def mutated(stream: bytes, changes: Iterable[tuple[str, int, int]]) -> bytes:
    """The stream with bytes put in, taken out or changed."""
    data = bytearray(stream)
    for kind, place, byte in changes:
        at = place % (len(data) + 1)
        if kind == "insert":
            data.insert(at, byte)
        else:
            data[at : at + 1] = bytes([byte]) if kind == "change" else b""
    return bytes(data)


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["insert", "change", "delete"]),
        st.integers(0, 10_000),
        st.sampled_from(BYTES),
    ),
    min_size=1,
    max_size=2,
)


WHOLE = st.lists(REQUESTS, min_size=1, max_size=3).map(b"".join)

#: All that one client sends: a request or three, broken or not.
STREAMS = st.one_of(WHOLE, WHOLE, st.builds(mutated, WHOLE, CHANGES))
