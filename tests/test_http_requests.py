"""Which requests are refused and which are accepted: RFC 9112 sections 2 to 7, one verdict each."""

import dataclasses
from typing import Any

import pytest

from serving import Server, Servers
from wire import Connection, chunked, get, post, post_chunked

HOST = b"Host: test.example\r\n"
AFTER = get("/smuggled")


@pytest.fixture(scope="module")
def server(serve_module: Servers) -> Server:
    """One server for the whole module: a refused request may harm only its own connection."""
    return serve_module("echo:app")


def fields(*lines: bytes, target: bytes = b"/bad", method: bytes = b"GET") -> bytes:
    """Return a request head with these field lines after a good Host."""
    return method + b" " + target + b" HTTP/1.1\r\n" + HOST + b"".join(lines) + b"\r\n"


def chunks(coded: bytes, *lines: bytes) -> bytes:
    """Return a request with a chunked body written by hand."""
    return fields(b"Transfer-Encoding: chunked\r\n", *lines, method=b"POST") + coded


def length(value: bytes, body: bytes = b"hello") -> bytes:
    """Return a request with this Content-Length."""
    return fields(b"Content-Length: " + value + b"\r\n", method=b"POST") + body


# The list that peers were measured with: each name stands in the comparison of servers.
# (request, statuses that are right)
MALFORMED: dict[str, tuple[bytes, set[int]]] = {
    # Framing, RFC 9112 section 6
    "cl_te": (
        fields(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", method=b"POST")
        + chunked(b"hello"),
        {400},
    ),
    "te_dup": (chunks(chunked(b"hello"), b"Transfer-Encoding: chunked\r\n"), {400, 501}),
    "te_chunked_identity": (
        fields(b"Transfer-Encoding: chunked, identity\r\n", method=b"POST") + chunked(b"hello"),
        {400, 501},
    ),
    "te_xchunked": (
        fields(b"Transfer-Encoding: xchunked\r\n", method=b"POST") + chunked(b"hello"),
        {501},
    ),
    "te_vtab": (
        fields(b"Transfer-Encoding: \x0bchunked\r\n", method=b"POST") + chunked(b"hello"),
        {400},
    ),
    "te_http10": (
        b"POST /bad HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"hello"),
        {400, 501},
    ),
    "cl_dup_diff": (
        fields(b"Content-Length: 5\r\n", b"Content-Length: 6\r\n", method=b"POST") + b"hello!",
        {400},
    ),
    "cl_list": (length(b"5, 5"), {400}),
    "cl_plus": (length(b"+5"), {400}),
    "cl_neg": (length(b"-5"), {400}),
    "cl_under": (length(b"0_5"), {400}),
    "cl_huge": (length(b"99999999999999999999999999"), {400, 413}),
    # Field lines, RFC 9112 section 5
    "space_colon": (fields(b"X-Field : value\r\n"), {400}),
    "space_colon_cl": (fields(b"Content-Length : 5\r\n", method=b"POST") + b"hello", {400}),
    "obs_fold": (fields(b"X-Field: one\r\n two\r\n"), {400}),
    "bare_lf": (b"GET /bad HTTP/1.1\nHost: test.example\n\n", {400}),
    "bare_lf_hdr": (fields(b"X-One: 1\nX-Two: 2\r\n"), {400}),
    "bare_cr_hdr": (fields(b"X-One: 1\rX-Two: 2\r\n"), {400}),
    "nul_hdr": (fields(b"X-Field: a\x00b\r\n"), {400}),
    "nul_path": (fields(target=b"/bad\x00path"), {400}),
    "bad_name": (fields(b"X(Field): value\r\n"), {400}),
    "ws_first_hdr": (b"GET /bad HTTP/1.1\r\n Host: test.example\r\n\r\n", {400}),
    "empty_name": (fields(b": value\r\n"), {400}),
    # Host, RFC 9112 section 3.2
    "no_host": (b"GET /bad HTTP/1.1\r\nX-Field: value\r\n\r\n", {400}),
    "dup_host": (fields(HOST), {400}),
    "bad_host": (b"GET /bad HTTP/1.1\r\nHost: test/ex ample\r\n\r\n", {400}),
    # The request line, RFC 9112 section 3
    "http20": (b"GET /bad HTTP/2.0\r\n" + HOST + b"\r\n", {505}),
    "bad_method": (fields(method=b"GE(T)"), {400}),
    "two_spaces": (b"GET  /bad HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
    "rel_path": (fields(target=b"bad/path"), {400}),
    "star_get": (fields(target=b"*"), {400}),
    # The chunked coding, RFC 9112 section 7.1
    "chunk_0x": (chunks(b"0x5\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk_plus": (chunks(b"+5\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk_neg": (chunks(b"-5\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk_ws": (chunks(b"5 \r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk_lf": (chunks(b"5\nhello\n0\n\n"), {400}),
    "chunk_ext_lf": (chunks(b"5;a\nb\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk_ext_cr": (chunks(b"5;a\rb\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk_noterm": (chunks(b"5\r\nhelloXX0\r\n\r\n"), {400}),
    "chunk_overflow": (chunks(b"10000000000000005\r\nhello\r\n0\r\n\r\n"), {400, 413}),
    "trailer_cl": (chunks(b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n"), {400}),
}

# More of the same kinds, beyond the list.
MALFORMED_TOO: dict[str, tuple[bytes, set[int]]] = {
    "cl_equal_repeat": (
        fields(b"Content-Length: 5\r\n", b"Content-Length: 5\r\n", method=b"POST") + b"hello",
        {400},
    ),
    "cl_empty": (length(b""), {400}),
    "cl_hex": (length(b"0x5"), {400}),
    "cl_space_inside": (length(b"5 5"), {400}),
    "cl_point": (length(b"5.0"), {400}),
    "cl_superscript": (length(b"\xb2"), {400}),
    "cl_wraps_64_bit": (length(b"18446744073709551621"), {400, 413}),
    "te_cl_order": (
        fields(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", method=b"POST")
        + chunked(b"hello"),
        {400},
    ),
    "te_cl_zero": (
        fields(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 0\r\n", method=b"POST")
        + chunked(b"hello"),
        {400},
    ),
    "te_gzip_chunked": (
        fields(b"Transfer-Encoding: gzip, chunked\r\n", method=b"POST") + chunked(b"hello"),
        {501},
    ),
    "te_gzip": (fields(b"Transfer-Encoding: gzip\r\n", method=b"POST") + b"hello", {400, 501}),
    "te_identity": (
        fields(b"Transfer-Encoding: identity\r\n", method=b"POST") + b"hello",
        {400, 501},
    ),
    "te_empty": (fields(b"Transfer-Encoding:\r\n", method=b"POST") + b"hello", {400, 501}),
    "te_parameter": (
        fields(b"Transfer-Encoding: chunked;q=1\r\n", method=b"POST") + chunked(b"hello"),
        {400, 501},
    ),
    "te_quoted": (
        fields(b'Transfer-Encoding: "chunked"\r\n', method=b"POST") + chunked(b"hello"),
        {400, 501},
    ),
    "te_two_fields": (
        fields(
            b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", method=b"POST"
        )
        + chunked(b"hello"),
        {400, 501},
    ),
    "tab_colon": (fields(b"X-Field\t: value\r\n"), {400}),
    "space_in_name": (fields(b"X Field: value\r\n"), {400}),
    "no_colon": (fields(b"X-Field\r\n"), {400}),
    "name_non_ascii": (fields(b"X-F\xe9: value\r\n"), {400}),
    "name_nul": (fields(b"X-\x00: value\r\n"), {400}),
    "obs_fold_tab": (fields(b"X-Field: one\r\n\ttwo\r\n"), {400}),
    "obs_fold_host": (b"GET /bad HTTP/1.1\r\nHost:\r\n test.example\r\n\r\n", {400}),
    "value_del": (fields(b"X-Field: a\x7fb\r\n"), {400}),
    "value_bell": (fields(b"X-Field: a\x07b\r\n"), {400}),
    "value_escape": (fields(b"X-Field: \x1b[2J\r\n"), {400}),
    "bare_lf_end": (b"GET /bad HTTP/1.1\r\n" + HOST + b"\n", {400}),
    "bare_lf_request_line": (b"GET /bad HTTP/1.1\n" + HOST + b"\r\n", {400}),
    "bare_cr_request_line": (b"GET /bad\rHTTP/1.1\r\n" + HOST + b"\r\n", {400}),
    "bare_cr_end": (b"GET /bad HTTP/1.1\r\n" + HOST + b"\r\r\n\r\n", {400}),
    "crcrlf": (b"GET /bad HTTP/1.1\r\r\n" + HOST + b"\r\n", {400}),
    "host_list": (b"GET /bad HTTP/1.1\r\nHost: a, b\r\n\r\n", {400}),
    "host_userinfo": (b"GET /bad HTTP/1.1\r\nHost: user@test.example\r\n\r\n", {400}),
    "host_port_letters": (b"GET /bad HTTP/1.1\r\nHost: test.example:http\r\n\r\n", {400}),
    "host_port_sign": (b"GET /bad HTTP/1.1\r\nHost: test.example:+80\r\n\r\n", {400}),
    "host_two_ports": (b"GET /bad HTTP/1.1\r\nHost: test.example:80:80\r\n\r\n", {400}),
    "host_bare_ipv6": (b"GET /bad HTTP/1.1\r\nHost: ::1\r\n\r\n", {400}),
    "host_open_bracket": (b"GET /bad HTTP/1.1\r\nHost: [::1\r\n\r\n", {400}),
    "host_after_bracket": (b"GET /bad HTTP/1.1\r\nHost: [::1]x\r\n\r\n", {400}),
    "host_space": (b"GET /bad HTTP/1.1\r\nHost: test example\r\n\r\n", {400}),
    "host_query": (b"GET /bad HTTP/1.1\r\nHost: test.example?x\r\n\r\n", {400}),
    "host_fragment": (b"GET /bad HTTP/1.1\r\nHost: test.example#x\r\n\r\n", {400}),
    "host_backslash": (b"GET /bad HTTP/1.1\r\nHost: test.example\\x\r\n\r\n", {400}),
    "host_non_ascii": (b"GET /bad HTTP/1.1\r\nHost: t\xe9st.example\r\n\r\n", {400}),
    "host_percent": (b"GET /bad HTTP/1.1\r\nHost: te%zzst\r\n\r\n", {400}),
    "host_scheme": (b"GET /bad HTTP/1.1\r\nHost: http://test.example\r\n\r\n", {400}),
    "host_dup_other_case": (fields(b"hOST: other.example\r\n"), {400}),
    "host_dup_http10": (b"GET /bad HTTP/1.0\r\n" + HOST + HOST + b"\r\n", {400}),
    "no_version": (b"GET /bad\r\n" + HOST + b"\r\n", {400, 505}),
    "version_only_major": (b"GET /bad HTTP/1\r\n" + HOST + b"\r\n", {400, 505}),
    "version_two_digits": (b"GET /bad HTTP/1.10\r\n" + HOST + b"\r\n", {400, 505}),
    "version_lower": (b"GET /bad http/1.1\r\n" + HOST + b"\r\n", {400, 505}),
    "version_other": (b"GET /bad HTTPS/1.1\r\n" + HOST + b"\r\n", {400, 505}),
    "version_0_9": (b"GET /bad HTTP/0.9\r\n" + HOST + b"\r\n", {400, 505}),
    "version_3_0": (b"GET /bad HTTP/3.0\r\n" + HOST + b"\r\n", {505}),
    "version_trailing_space": (b"GET /bad HTTP/1.1 \r\n" + HOST + b"\r\n", {400, 505}),
    "http2_preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
    "tls_client_hello": (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", {400}),
    "leading_space": (b" GET /bad HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
    "no_method": (b"/bad HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
    "method_non_ascii": (fields(method=b"G\xc9T"), {400}),
    "method_colon": (fields(method=b"GET:"), {400}),
    "tab_separator": (b"GET\t/bad\tHTTP/1.1\r\n" + HOST + b"\r\n", {400}),
    "space_in_target": (b"GET /bad path HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
    "target_non_ascii": (fields(target=b"/bad/caf\xc3\xa9"), {400}),
    "target_fragment": (fields(target=b"/bad#fragment"), {400}),
    "target_del": (fields(target=b"/bad\x7f"), {400}),
    "target_tab": (fields(target=b"/bad\tpath"), {400}),
    "target_empty": (b"GET  HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
    "target_query_only": (fields(target=b"?query"), {400}),
    "target_authority_get": (fields(target=b"test.example:80"), {400}),
    "target_userinfo": (fields(target=b"http://user:pass@test.example/bad"), {400}),
    "target_no_authority": (fields(target=b"http:///bad"), {400}),
    "target_bad_authority": (fields(target=b"http://te st/bad"), {400}),
    "target_ungrammatical_authority": (fields(target=b"http://test.example:x/bad"), {400}),
    "absolute_without_host": (b"GET http://test.example/bad HTTP/1.1\r\n\r\n", {400}),
    "star_post": (fields(target=b"*", method=b"POST"), {400}),
    "star_and_more": (fields(target=b"*/bad", method=b"OPTIONS"), {400}),
    "chunk_empty_size": (chunks(b"\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk_not_hex": (chunks(b"G\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk_space_before": (chunks(b" 5\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk_tab": (chunks(b"5\t\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk_underscore": (chunks(b"0_5\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk_nul": (chunks(b"5\x00\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk_ext_nul": (chunks(b"5;a=\x00\r\nhello\r\n0\r\n\r\n"), {400}),
    "chunk_too_long": (chunks(b"5\r\nhello!\r\n0\r\n\r\n"), {400}),
    "chunk_too_short": (chunks(b"5\r\nhell\r\n0\r\n\r\n"), {400}),
    "chunk_data_lf": (chunks(b"5\r\nhello\n0\r\n\r\n"), {400}),
    "chunk_many_digits": (chunks(b"0" * 100_000 + b"5\r\nhello\r\n0\r\n\r\n"), {400, 413, 431}),
    "chunk_long_extension": (
        chunks(b"5;" + b"a" * 300_000 + b"\r\nhello\r\n0\r\n\r\n"),
        {400, 413, 431},
    ),
    "trailer_te": (chunks(b"0\r\nTransfer-Encoding: chunked\r\n\r\n"), {400}),
    "trailer_space_colon": (chunks(b"0\r\nX-Field : 1\r\n\r\n"), {400}),
    "trailer_lf": (chunks(b"0\r\nX-Field: 1\n\r\n"), {400}),
    "trailer_fold": (chunks(b"0\r\nX-Field: 1\r\n 2\r\n\r\n"), {400}),
    "trailer_nul": (chunks(b"0\r\nX-Field: \x00\r\n\r\n"), {400}),
    "trailer_endless": (chunks(b"0\r\n" + b"X-Field: 1\r\n" * 20_000 + b"\r\n"), {400, 431}),
}


def refused(server: Server, request: bytes, statuses: set[int], *, sent: str = "whole") -> None:
    """The request is refused, its connection ends, and the application hears nothing of it."""
    called = len(server.events("called"))
    with server.connect() as connection:
        if sent == "bytewise":
            with_pauses(connection, request)
        else:
            connection.offer(request + AFTER)
        response = connection.response()
        assert response.status in statuses
        assert response.closes, response.fields
        assert response.framing == "content-length", response.fields
        assert response.length > 0
        assert response.value("X-Application") is None
        assert response.value("Date") is not None
        connection.expect_close()
    assert len(server.events("called")) == called
    assert server.exchange(get("/alive")).status == 200


def with_pauses(connection: Connection, request: bytes) -> None:
    """Send a request byte by byte; the server may have seen enough before its end."""
    for number in range(len(request)):
        connection.offer(request[number : number + 1])


def test_the_list_is_whole() -> None:
    """Row: malformed requests accepted or hung on, of 41."""
    assert len(MALFORMED) == 41


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_is_refused(server: Server, name: str) -> None:
    """Row: malformed requests accepted or hung on: none, nor what is behind it."""
    refused(server, *MALFORMED[name])


@pytest.mark.parametrize("name", MALFORMED_TOO)
def test_malformed_too_is_refused(server: Server, name: str) -> None:
    """What no list of peers has, and is refused for the same reasons."""
    refused(server, *MALFORMED_TOO[name])


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_is_refused_bytewise(server: Server, name: str) -> None:
    """A verdict does not depend on how the bytes arrive."""
    refused(server, *MALFORMED[name], sent="bytewise")


def test_error_answer_to_head_has_no_content(server: Server) -> None:
    """RFC 9110 section 9.3.2: not even an error answers HEAD with content."""
    with server.connect() as connection:
        connection.send(b"HEAD /bad HTTP/1.1\r\nX-Field: no host\r\n\r\n")
        response = connection.response("HEAD")
        assert response.status == 400
        assert response.closes
        connection.expect_close()


def test_connect_is_not_implemented(server: Server) -> None:
    """CONNECT asks for a tunnel, which an origin server has not got: 501, and the end."""
    with server.connect() as connection:
        connection.offer(b"CONNECT test.example:443 HTTP/1.1\r\nHost: test.example:443\r\n\r\n")
        response = connection.response()
        assert response.status == 501
        assert response.closes
        assert response.framing == "content-length"
        connection.expect_close()


def test_error_answers_explain(server: Server) -> None:
    """An error answer is text for people and does not repeat the request's bytes."""
    response = server.exchange(b"GET /<script>\x01 HTTP/1.1\r\n" + HOST + b"\r\n")
    assert response.status == 400
    assert response.reason == "Bad Request"
    assert str(response.value("Content-Type")).startswith("text/plain")
    assert b"<script>" not in response.body


# (request, what the application finds)
WELL_FORMED: dict[str, tuple[bytes, dict[str, Any]]] = {
    "origin_form": (get("/path?a=b"), {"path": "/path", "query": "a=b", "method": "GET"}),
    "root": (get("/"), {"path": "/", "query": ""}),
    "double_slash": (get("//double//slash"), {"path": "//double//slash"}),
    "empty_query": (get("/path?"), {"path": "/path", "query": ""}),
    "question_in_query": (get("/path?a?b"), {"query": "a?b"}),
    "sub_delims": (get("/!$&'()*+,;=:@-._~"), {"path": "/!$&'()*+,;=:@-._~"}),
    "absolute_form": (
        get("http://other.example/path?q"),
        {"path": "/path", "query": "q", "host": "other.example"},
    ),
    "absolute_form_port": (
        get("http://other.example:8080/path"),
        {"path": "/path", "host": "other.example:8080"},
    ),
    "absolute_form_upper": (
        get("HTTP://other.example/path"),
        {"path": "/path", "host": "other.example"},
    ),
    "absolute_form_ipv6": (get("http://[::1]:80/path"), {"path": "/path", "host": "[::1]:80"}),
    "absolute_form_no_path": (get("http://other.example"), {"path": "/", "query": ""}),
    "absolute_form_only_query": (get("http://other.example?q=1"), {"path": "/", "query": "q=1"}),
    "asterisk_form": (get("*", method="OPTIONS"), {"path": "*", "method": "OPTIONS"}),
    "options_path": (get("/path", method="OPTIONS"), {"path": "/path"}),
    "method_lower_case": (get("/", method="get"), {"method": "get"}),
    "method_any_token": (get("/", method="M-SEARCH"), {"method": "M-SEARCH"}),
    "method_all_tchar": (get("/", method="!#$%&'*+-.^_`|~09az"), {"method": "!#$%&'*+-.^_`|~09az"}),
    "method_long": (get("/", method="A" * 200), {"method": "A" * 200}),
    "delete_with_body": (
        get("/", "Content-Length: 3", method="DELETE") + b"abc",
        {"method": "DELETE", "body": "abc"},
    ),
    "get_with_body": (get("/", "Content-Length: 3") + b"abc", {"body": "abc"}),
    "http_1_2": (get("/path", version="1.2"), {"path": "/path"}),
    "http_1_0": (get("/path", version="1.0"), {"path": "/path", "protocol": "HTTP/1.0"}),
    "http_1_0_no_host": (b"GET /path HTTP/1.0\r\n\r\n", {"path": "/path", "host": None}),
    "leading_crlf": (b"\r\n" + get("/path"), {"path": "/path"}),
    "host_port": (get("/", "Host: test.example:8000"), {"host": "test.example:8000"}),
    "host_empty_port": (get("/", "Host: test.example:"), {"host": "test.example:"}),
    # RFC 3986 3.2.3: a port is digits, and 0 is one that nobody can have come to.
    "host_port_zero": (get("/", "Host: test.example:0"), {"host": "test.example:0"}),
    "host_ipv4": (get("/", "Host: 127.0.0.1:1"), {"host": "127.0.0.1:1"}),
    "host_ipv6": (get("/", "Host: [::1]:8000"), {"host": "[::1]:8000"}),
    "host_upper_case": (get("/", "Host: TEST.Example"), {"host": "TEST.Example"}),
    "host_underscore": (get("/", "Host: my_service_1"), {"host": "my_service_1"}),
    "host_percent": (get("/", "Host: a%20b"), {"host": "a%20b"}),
    "field_no_space": (get("/", "X-Field:value"), {"HTTP_X_FIELD": "value"}),
    "field_much_space": (get("/", "X-Field: \t  value \t "), {"HTTP_X_FIELD": "value"}),
    "field_space_inside": (get("/", "X-Field: a \t b"), {"HTTP_X_FIELD": "a \t b"}),
    "field_empty": (get("/", "X-Field:"), {"HTTP_X_FIELD": ""}),
    "field_only_space": (get("/", "X-Field:   "), {"HTTP_X_FIELD": ""}),
    "field_obs_text": (get("/", "X-Field: caf\xe9"), {"HTTP_X_FIELD": "caf\xe9"}),
    "field_colons": (get("/", "X-Field: a:b: c"), {"HTTP_X_FIELD": "a:b: c"}),
    "field_name_tchar": (get("/", "X!#$%&'*+.^`|~: yes"), {"HTTP_X!#$%&'*+.^`|~": "yes"}),
    "field_name_case": (get("/", "x-FiELd: value"), {"HTTP_X_FIELD": "value"}),
    "field_long": (get("/", "X-Field: " + "v" * 9000), {"HTTP_X_FIELD": "v" * 9000}),
    "content_length": (post("/", b"hello"), {"body": "hello"}),
    "content_length_zero": (post("/", b""), {"body": ""}),
    "content_length_leading_zeros": (
        get("/", "Content-Length: 0005", method="POST") + b"hello",
        {"body": "hello"},
    ),
    "content_length_space": (
        get("/", "Content-Length:   5 ", method="POST") + b"hello",
        {"body": "hello"},
    ),
    "post_without_body": (get("/", method="POST"), {"body": ""}),
    "chunked": (post_chunked("/", b"he", b"llo"), {"body": "hello"}),
    "chunked_empty": (post_chunked("/"), {"body": ""}),
    "chunked_other_case": (
        get("/", "Transfer-Encoding: CHUNKED", method="POST") + chunked(b"hello"),
        {"body": "hello"},
    ),
    "chunked_upper_hex": (
        chunks(b"A\r\n0123456789\r\n0\r\n\r\n"),
        {"body": "0123456789"},
    ),
    "chunked_leading_zeros": (chunks(b"005\r\nhello\r\n000\r\n\r\n"), {"body": "hello"}),
    "chunked_extension": (
        chunks(b'5;name=value;other="quoted value"\r\nhello\r\n0;last\r\n\r\n'),
        {"body": "hello"},
    ),
    "chunked_trailers": (
        post_chunked("/", b"hello", trailer=b"X-Checksum: 1\r\nX-Other: 2\r\n"),
        {"body": "hello", "HTTP_X_CHECKSUM": None},
    ),
    "upgrade_ignored": (
        get("/path", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMA"),
        {"path": "/path"},
    ),
}


def found(answer: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Return what the application found of the things that are expected."""
    environ = answer["environ"]
    return {key: environ.get(key) if key.startswith("HTTP_") else answer[key] for key in expected}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_well_formed_is_accepted(server: Server, name: str) -> None:
    """Strictness is no excuse: what the grammar allows reaches the application."""
    request, expected = WELL_FORMED[name]
    response = server.exchange(request)
    assert response.status == 200, response.body
    assert found(response.json(), expected) == expected


@pytest.mark.parametrize("name", WELL_FORMED)
def test_well_formed_is_accepted_bytewise(server: Server, name: str) -> None:
    """The parser resumes at any byte."""
    request, expected = WELL_FORMED[name]
    with server.connect() as connection:
        connection.send_slowly(request, size=1 if len(request) < 1000 else 97)
        response = connection.response()
        assert response.status == 200, response.body
        assert found(response.json(), expected) == expected


@pytest.mark.parametrize("name", ["content_length", "chunked_trailers", "chunked_extension"])
def test_two_pieces_split_anywhere(server: Server, name: str) -> None:
    """A request cut in two at each of its bytes, and the next one behind it, come out whole."""
    request, expected = WELL_FORMED[name]
    with server.connect() as connection:
        for cut in range(1, len(request)):
            connection.send(request[:cut])
            connection.send(request[cut:] + get(f"/next/{cut}"))
            first, second = connection.response(), connection.response()
            assert found(first.json(), expected) == expected
            assert second.json()["path"] == f"/next/{cut}"


def test_one_leading_crlf_only(server: Server) -> None:
    """RFC 9112 section 2.2 asks for one empty line before the request line to be ignored."""
    with server.connect() as connection:
        connection.send(get("/one") + b"\r\n" + get("/two"))
        assert connection.response().json()["path"] == "/one"
        assert connection.response().json()["path"] == "/two"


def test_absolute_form_wins_over_host(server: Server) -> None:
    """RFC 9112 section 3.2.2: the target's authority takes the place of Host."""
    response = server.exchange(get("http://target.example/path", "Host: field.example"))
    assert response.json()["host"] == "target.example"


def test_responses_differ_by_request_only(server: Server) -> None:
    """The same request twice gets the same answer, but for its date and its id."""
    first, second = (server.exchange(get("/same")) for _ in range(2))
    without_date = [
        dataclasses.replace(
            response,
            fields=[pair for pair in response.fields if pair[0] not in ("Date", "X-Request-Id")],
            body=b"",
        )
        for response in (first, second)
    ]
    assert without_date[0] == without_date[1]
