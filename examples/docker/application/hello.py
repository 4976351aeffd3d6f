"""A Flask application for the container: a page, and an upload that is counted."""

import os

from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def page() -> str:
    """Say which container answers."""
    return f"Hello from {os.environ.get('HOSTNAME', 'a container')}!\n"


@app.post("/upload")
def upload() -> str:
    """Count the bytes of an upload, without holding them in memory."""
    count = 0
    while piece := request.stream.read(65536):
        count += len(piece)
    return f"{count} bytes\n"
