"""A small Falcon service: a form, an upload, a signed cookie, a stream and a download.

Nothing is written to disk. `SECRET_KEY` in the environment keeps cookies valid over restarts.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import falcon

FILES = Path(__file__).resolve().parent / "files"
SECRET = (os.environ.get("SECRET_KEY") or secrets.token_hex(32)).encode()

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Falcon on serve-zig</title>
<h1>Hello, visitor!</h1>
<form method="post" action="/form"><input name="name"> <button>Greet</button></form>
<form method="post" action="/upload" enctype="multipart/form-data">
  <input type="file" name="file"> <button>Upload</button>
</form>
<p>
  <a href="/visits">Visits</a>
  <a href="/stream?lines=20">Stream</a>
  <a href="/download">Download</a>
</p>
</html>
"""


def signed(value: str) -> str:
    """Return the value with a signature that only this service can make."""
    return f"{value}.{hmac.new(SECRET, value.encode(), 'sha256').hexdigest()}"


def verified(cookie: str) -> str | None:
    """Return the value of a signed cookie, None for a forged one."""
    value = cookie.rpartition(".")[0]
    return value if hmac.compare_digest(signed(value), cookie) else None


class Index:
    """The page with the forms."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Show it."""
        response.content_type = falcon.MEDIA_HTML
        response.text = PAGE


class Form:
    """A urlencoded form."""

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Greet the visitor."""
        name = request.get_media().get("name")
        if not name:
            raise falcon.HTTPMissingParam("name")
        response.media = {"greeting": f"Hello, {name}!"}


class Upload:
    """A multipart form with a file."""

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Describe the file, read piece by piece."""
        for part in request.get_media():
            if part.name == "file":
                digest = hashlib.sha256()
                size = 0
                while piece := part.stream.read(64 * 1024):
                    digest.update(piece)
                    size += len(piece)
                response.media = {
                    "name": part.filename,
                    "size": size,
                    "sha256": digest.hexdigest(),
                }
                return
        raise falcon.HTTPMissingParam("file")


class Visits:
    """A counter in a signed cookie."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Count the visits of this client."""
        count = int(verified(request.cookies.get("visits", "")) or 0) + 1
        response.set_cookie("visits", signed(str(count)), secure=False)
        response.media = {"visits": count}


class Stream:
    """A response that is made while it is sent."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Send so many lines."""
        lines = request.get_param_as_int("lines", default=10, max_value=1_000_000)

        def rows() -> Iterator[bytes]:
            for number in range(lines):
                yield b"%d\n" % number

        response.content_type = falcon.MEDIA_TEXT
        response.stream = rows()


class Download:
    """A file; the server's file wrapper reads it."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Send it."""
        path = FILES / "planets.csv"
        response.content_type = "text/csv"
        response.downloadable_as = path.name
        response.set_stream(path.open("rb"), path.stat().st_size)


def create_app() -> falcon.App:
    """Return the WSGI application."""
    app = falcon.App()
    app.add_route("/", Index())
    app.add_route("/form", Form())
    app.add_route("/upload", Upload())
    app.add_route("/visits", Visits())
    app.add_route("/stream", Stream())
    app.add_route("/download", Download())
    return app
