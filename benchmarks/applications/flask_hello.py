"""The smallest Flask application."""

# mypy: disable-error-code="import-not-found"

from flask import Flask


def hello() -> str:
    return "Hello, World!"


app = Flask(__name__)
app.add_url_rule("/", view_func=hello)
