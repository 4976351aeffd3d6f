"""Files in both ways: public ones that the server answers alone, and others behind a check.

`/static/` is a [[static]] table of serve.toml: the application never hears of it. `/download/` is
the application's: it looks whether the visitor may have the file, and hands it over to the server
with `wsgi.file_wrapper` (PEP 3333), which sends it without holding a thread or the memory for it.
"""

import os
import secrets
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

PRIVATE = Path(__file__).resolve().parent / "private"
KEY = os.environ.get("DOWNLOAD_KEY") or secrets.token_hex(8)

PAGE = """<!doctype html>
<title>Downloads</title>
<link rel="stylesheet" href="static/style.css">
<h1>Downloads</h1>
<ul>
{items}
</ul>
"""


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Show the files, or send one of them."""
    path = environ["PATH_INFO"]
    if path == "/":
        return index(start_response)
    if path.startswith("/download/"):
        return download(environ, start_response, path.removeprefix("/download/"))
    return refuse(start_response, "404 Not Found")


def index(start_response: StartResponse) -> list[bytes]:
    """List the files, with the key that lets this visitor have them."""
    names = sorted(path.name for path in PRIVATE.iterdir())
    items = "\n".join(
        f'<li><a href="download/{escape(name)}?key={KEY}">{escape(name)}</a></li>' for name in names
    )
    page = PAGE.format(items=items).encode()
    start_response(
        "200 OK",
        [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(page)))],
    )
    return [page]


def download(environ: WSGIEnvironment, start_response: StartResponse, name: str) -> Iterable[bytes]:
    """Send a file of the private folder to whoever has the key."""
    (key,) = parse_qs(environ["QUERY_STRING"]).get("key", [""])[:1]
    if not secrets.compare_digest(key.encode(), KEY.encode()):
        return refuse(start_response, "403 Forbidden")
    # Only names that the folder has: nothing that a visitor sends becomes part of a path.
    files = {path.name: path for path in PRIVATE.iterdir()}
    if name not in files:
        return refuse(start_response, "404 Not Found")
    # No Content-Length: the server knows it.
    start_response(
        "200 OK",
        [
            ("Content-Type", "application/octet-stream"),
            ("Content-Disposition", f'attachment; filename="{name}"'),
        ],
    )
    # The server closes the file when it has been sent.
    wrapper: Any = environ["wsgi.file_wrapper"]
    file = open(files[name], "rb")  # noqa: SIM115
    return wrapper(file)  # type: ignore[no-any-return]


def refuse(start_response: StartResponse, status: str) -> list[bytes]:
    """Answer with no more than the status."""
    text = f"{status}\n".encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
    return [text]
