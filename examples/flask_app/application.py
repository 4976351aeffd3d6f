"""A small Flask application: a form, an upload, a session, a stream and a download.

Nothing is written to disk. `SECRET_KEY` in the environment keeps sessions valid over restarts.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from flask import Flask, Response, jsonify, render_template, request, send_file, session

FILES = Path(__file__).resolve().parent / "files"

app = Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY") or secrets.token_hex(32)


@app.get("/")
def index() -> str:
    """Show the forms."""
    return render_template("index.html", name=session.get("name"))


@app.post("/form")
def form() -> Response:
    """Greet the visitor and remember the name in the session."""
    name = request.form["name"]
    session["name"] = name
    return jsonify(greeting=f"Hello, {name}!")


@app.post("/upload")
def upload() -> Response:
    """Describe an uploaded file, read piece by piece."""
    file = request.files["file"]
    digest = hashlib.sha256()
    size = 0
    while piece := file.stream.read(64 * 1024):
        digest.update(piece)
        size += len(piece)
    return jsonify(name=file.filename, size=size, sha256=digest.hexdigest())


@app.get("/visits")
def visits() -> Response:
    """Count the visits of this session."""
    session["visits"] = session.get("visits", 0) + 1
    return jsonify(visits=session["visits"])


@app.get("/stream")
def stream() -> Response:
    """Send so many lines, each as soon as it is made."""
    lines = min(int(request.args.get("lines", 10)), 1_000_000)

    def rows() -> Iterator[str]:
        for number in range(lines):
            yield f"{number}\n"

    return Response(rows(), mimetype="text/plain")


@app.get("/download")
def download() -> Response:
    """Send a file; the server's file wrapper reads it."""
    return send_file(FILES / "planets.csv", as_attachment=True)
