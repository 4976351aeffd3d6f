"""The smallest WSGI application: the one that serve.toml at the root of the repository serves."""

from collections.abc import Callable


def app(environ: dict[str, object], start_response: Callable[..., object]) -> list[bytes]:
    """Answer every request with the same 13 bytes."""
    body = b"Hello, World!"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
