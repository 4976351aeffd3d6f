"""What is said about a key or a table that serve.toml does not have.

Either where the function is that the name stands for elsewhere, since many names come from other
servers' configs, or the known name that is nearest.
"""

from __future__ import annotations

from serve_zig.nearest import nearest
from serve_zig.schema import KEYS, KEYS_BY_PATH, TABLES, keys_of

_TLS = (
    "serve-zig speaks plain HTTP, and TLS ends in the proxy in front of it: configure the "
    "certificate there, and name the proxy in proxy.trusted (docs/PROXIES.md)"
)
_PROCESSES = (
    "serve-zig has one process with threads: concurrency.threads limits the calls in progress (32 "
    "by default), and more cores are used by more replicas (docs/MIGRATING.md)"
)
_HTTP2 = "serve-zig speaks HTTP/1.1, and HTTP/2 ends in the proxy in front of it (docs/PROXIES.md)"
_WEBSOCKET = (
    "serve-zig serves WSGI applications, which have no WebSockets; let the proxy in front of it "
    "send those to a server that supports them"
)
_ASGI = (
    "serve-zig serves WSGI applications; wrap an ASGI one with a2wsgi.ASGIMiddleware and name the "
    "result in app.target"
)
_SUPERVISOR = (
    "this is up to whoever starts the process, such as systemd or the container's orchestrator "
    "(docs/OPERATIONS.md)"
)
_ADMIN = 'the listener for health, metrics and status is admin.bind, such as "127.0.0.1:9100"'

_ELSEWHERE = {
    **dict.fromkeys(
        (
            *("tls", "ssl", "https", "certificate", "certificates", "certfile", "keyfile"),
            *("ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_certificate", "ciphers"),
        ),
        _TLS,
    ),
    **dict.fromkeys(
        (
            *("workers", "worker", "worker_class", "worker_processes", "num_workers", "nworkers"),
            *("processes", "process", "instances", "preload", "preload_app", "cheaper"),
        ),
        _PROCESSES,
    ),
    **dict.fromkeys(("http2", "h2", "http3"), _HTTP2),
    **dict.fromkeys(("websocket", "websockets"), _WEBSOCKET),
    **dict.fromkeys(("asgi", "interface", "lifespan", "loop"), _ASGI),
    **dict.fromkeys(
        ("daemon", "daemonize", "pidfile", "pid", "user", "group", "uid", "gid", "umask"),
        _SUPERVISOR,
    ),
    **dict.fromkeys(("env", "raw_env", "environment"), f"environment variables: {_SUPERVISOR}"),
    **dict.fromkeys(("metrics", "prometheus", "health", "healthcheck", "stats"), _ADMIN),
    **dict.fromkeys(
        ("host", "port", "address", "socket", "http_socket"),
        'write listen.bind = "127.0.0.1:8000", host and port in one string, or '
        '"unix:/run/app.sock"',
    ),
    "reload": "start it as serve-zig --reload",
    "debug": "start it as serve-zig --reload, for development",
    "wsgi_app": 'write app.target = "package.module:callable"',
    "module": 'write app.target = "package.module:callable"',
    "application": 'write app.target = "package.module:callable"',
    "wsgi_file": 'write app.target = "package.module:callable"',
    "chdir": "write app.directory",
    "pythonpath": "write app.directory, or set PYTHONPATH in the environment",
    "timeout": "write timeouts.request, which limits one application call",
    "harakiri": 'write timeouts.request, with timeouts.request_action = "answer"',
    "graceful_timeout": "write timeouts.drain",
    "keepalive": "write timeouts.keep_alive",
    "max_requests": "write limits.requests",
    "max_requests_jitter": "write limits.requests_jitter",
    "worker_connections": "write limits.connections",
    "limit_request_line": "write limits.request_line",
    "limit_request_fields": "write limits.fields",
    "limit_request_field_size": "write limits.head, one limit on the whole head",
    "max_body_size": "write limits.body",
    "accesslog": "write log.access",
    "access_log": "write log.access",
    "access_log_format": 'write log.format = "text" or "json"',
    "loglevel": "write log.level",
    "errorlog": "the error log is stderr; redirect that",
    "error_log": "the error log is stderr; redirect that",
    "logfile": "the error log is stderr; redirect that. The access log is log.access",
    "forwarded_allow_ips": "write proxy.trusted",
    "proxy_allow_ips": "write proxy.trusted",
    "trusted_proxies": "write proxy.trusted",
    "proxy_protocol": "write proxy.protocol",
    "root_path": "the proxy sends X-Forwarded-Prefix (docs/PROXIES.md)",
    "static_map": "write a [[static]] table",
}


def elsewhere(name: str) -> str:
    """Return where the function is that a foreign name stands for; empty where it is unknown."""
    return _ELSEWHERE.get(name.lower().replace("-", "_"), "")


def refusal(table: str, name: str) -> str:
    """Return what is wrong with a key of a known table; empty where it is known."""
    return "" if f"{table}.{name}" in KEYS_BY_PATH else _unknown_key(table, name)


def _unknown_key(table: str, name: str) -> str:
    hint = elsewhere(name)
    if hint:
        return f"unknown key; {hint}"
    siblings = [key.name for key in keys_of(table)]
    sibling = nearest(name, siblings)
    guess = f"{table}.{sibling}" if sibling else _nearest_path(name)
    if guess is not None:
        return f'unknown key; did you mean "{guess}"?'
    return f"unknown key; the keys of [{table}] are {', '.join(siblings)}"


def unknown_table(table: str, content: object) -> str:
    """Return what is wrong with a table, or a key outside of any."""
    what = "table" if isinstance(content, dict | list) else "key"
    hint = elsewhere(table)
    if hint:
        return f"unknown {what}; {hint}"
    if isinstance(content, dict):
        guess = nearest(table, TABLES)
        if guess is not None:
            return f'unknown table; did you mean "[{guess}]"?'
        return f"unknown table; the tables are {', '.join(TABLES)}"
    guess = _nearest_path(table)
    if guess is not None:
        return f'unknown key; did you mean "{guess}"?'
    return f"unknown key; each key stands in one of the tables {', '.join(TABLES)}"


def _nearest_path(name: str) -> str | None:
    """Return the key of any table whose name, without the table, looks most like ``name``."""
    known = nearest(name, [key.name for key in KEYS])
    return next((key.path for key in KEYS if key.name == known), None)
