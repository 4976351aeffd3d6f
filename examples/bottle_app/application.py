"""A small Bottle application: a form, an upload, a signed cookie, a stream and a download.

Nothing is written to disk. `SECRET_KEY` in the environment keeps cookies valid over restarts.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bottle

FOLDER = Path(__file__).resolve().parent
SECRET = os.environ.get("SECRET_KEY") or secrets.token_hex(32)

app = bottle.Bottle()
bottle.TEMPLATE_PATH.insert(0, str(FOLDER / "views"))


@app.get("/")
def index() -> Any:
    """Show the forms."""
    name = bottle.request.get_cookie("name", secret=SECRET)
    return bottle.template("index", name=name or "visitor")


@app.post("/form")
def form() -> dict[str, str]:
    """Greet the visitor and remember the name in a signed cookie."""
    name = bottle.request.forms.getunicode("name")
    if not name:
        raise bottle.HTTPError(400, "a name is missing")
    bottle.response.set_cookie("name", name, secret=SECRET, httponly=True)
    return {"greeting": f"Hello, {name}!"}


@app.post("/upload")
def upload() -> dict[str, Any]:
    """Describe an uploaded file, read piece by piece."""
    file = bottle.request.files.get("file")
    digest = hashlib.sha256()
    size = 0
    while piece := file.file.read(64 * 1024):
        digest.update(piece)
        size += len(piece)
    return {"name": file.raw_filename, "size": size, "sha256": digest.hexdigest()}


@app.get("/visits")
def visits() -> dict[str, int]:
    """Count the visits of this browser."""
    count = int(bottle.request.get_cookie("visits", secret=SECRET) or 0) + 1
    bottle.response.set_cookie("visits", str(count), secret=SECRET, httponly=True)
    return {"visits": count}


@app.get("/stream")
def stream() -> Iterator[str]:
    """Send so many lines, each as soon as it is made."""
    lines = min(int(bottle.request.query.get("lines", 10)), 1_000_000)
    bottle.response.content_type = "text/plain; charset=utf-8"
    for number in range(lines):
        yield f"{number}\n"


@app.get("/download")
def download() -> Any:
    """Send a file; the server's file wrapper reads it."""
    return bottle.static_file("planets.csv", root=str(FOLDER / "files"), download=True)
