"""serve-zig: a WSGI server with a Zig core, configured by one TOML file."""

from __future__ import annotations

from serve_zig.request_timeout import RequestTimeout

__all__ = ["RequestTimeout"]


def __getattr__(name: str) -> str:
    """Return ``__version__``: the extension's, since the two are built and shipped as one."""
    if name == "__version__":
        from serve_zig._core import build_info

        return build_info()["version"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
