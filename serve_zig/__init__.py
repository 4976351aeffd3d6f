"""serve-zig: a WSGI server with a Zig core, configured by one TOML file."""

__version__ = "0.1.0"
