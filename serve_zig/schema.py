"""Every key of serve.toml: its kind, default and meaning, in one table.

Validation, ``--check`` and docs/CONFIGURATION.md are read from this table, so that none of them
can disagree with another.
"""

from __future__ import annotations

from serve_zig.addresses import check_path_prefix, parse_address, parse_url
from serve_zig.kinds import (
    GIBIBYTE,
    KIBIBYTE,
    MEBIBYTE,
    TEBIBYTE,
    Addresses,
    Boolean,
    Choice,
    Hosts,
    Integer,
    Kind,
    Mode,
    Networks,
    OptionalText,
    Paths,
    Ratio,
    Seconds,
    Size,
    Text,
    Value,
)
from serve_zig.static_tables import check_cache_control, check_index, check_route
from serve_zig.target import parse_hook, parse_target

# Below a millisecond there is nothing left to time; 0 would read as "no limit" to some and as "at
# once" to others, so that a key whose meaning at 0 is not stated does not take it.
_SECONDS_LEAST = 0.001

_HOOK = 'a string such as "package.module:callable", or "" for none'


class Key:
    """One key: ``path`` is ``table.name``, also where there may be several of the table.

    A ``default`` of None means that the key must be given; ``default_toml`` is then empty.
    """

    __slots__ = ("default", "default_toml", "documentation", "kind", "path")

    def __init__(
        self,
        path: str,
        kind: Kind,
        default: Value | None,
        documentation: str,
    ) -> None:
        self.path = path
        self.kind = kind
        self.default = default
        self.documentation = documentation
        self.default_toml = "" if default is None else kind.to_toml(default)

    @property
    def table(self) -> str:
        """The table's name."""
        return self.path.partition(".")[0]

    @property
    def name(self) -> str:
        """The key's name within its table."""
        return self.path.partition(".")[2]


TABLES: dict[str, str] = {
    "app": "The application to serve.",
    "listen": "Where connections are accepted.",
    "concurrency": "How many application calls run, and how many requests wait for one.",
    "limits": "A limit on everything that a client or an application can make grow.",
    "timeouts": "How long each phase may take, in seconds.",
    "proxy": "Reverse proxies in front of the server.",
    "log": "What is written to stderr, and the access log.",
    "admin": "The listener for health, metrics and diagnosis.",
    "telemetry": "Traces for OpenTelemetry, exported over OTLP/HTTP.",
    "static": "Files that are answered without the application.",
}
"""Each table with one sentence, in the order of the documents."""

ARRAYS = frozenset({"static"})
"""Tables of which there may be several, or none: ``[[static]]``.

A key path counts them, from 0: ``static.0.route``.
"""

KEYS: tuple[Key, ...] = (
    Key(
        "app.target",
        Text(
            'a string such as "package.module:callable", or "package.module:create_app()" '
            "for a factory",
            parse_target,
        ),
        None,
        "The WSGI application: a module and an attribute of it (dotted where it is nested), with "
        "() behind it where it is a factory that returns the application.",
    ),
    Key(
        "app.directory",
        Text("a string that names a directory"),
        ".",
        "The directory that is put first on sys.path, relative to the config file.",
    ),
    Key(
        "app.startup",
        Text(_HOOK, parse_hook, empty=True),
        "",
        "A callable without arguments that runs once, on the main thread, after the import and "
        "before the first request; if it raises, the exit status is 3.",
    ),
    Key(
        "app.shutdown",
        Text(_HOOK, parse_hook, empty=True),
        "",
        "A callable without arguments that runs once, on the main thread, after the drain; if it "
        "raises, the exit status is 3.",
    ),
    Key(
        "app.startup_timeout",
        Seconds(0.0),
        0.0,
        "The server gives up with status 3 when import and startup take longer; 0: never. Under "
        "systemd the unit is given as much time (docs/OPERATIONS.md).",
    ),
    Key(
        "listen.bind",
        Addresses(),
        ["127.0.0.1:8000"],
        "Where to listen: one address or several (see Addresses).",
    ),
    Key(
        "listen.backlog",
        Integer(1, 65_535),
        2048,
        "Connections that the kernel holds until they are accepted; the system may cut it "
        "(net.core.somaxconn).",
    ),
    Key(
        "listen.unix_mode",
        Mode(),
        0o666,
        "The permission bits of a unix socket's file; whoever may write to the file may connect.",
    ),
    Key(
        "concurrency.threads",
        Integer(1, 4096),
        32,
        "The most application calls in progress at once.",
    ),
    Key(
        "concurrency.queue",
        Integer(1, 1_000_000),
        1024,
        "The most parsed requests that wait for a thread; past it the answer is 503 with "
        "Retry-After.",
    ),
    Key(
        "concurrency.queue_timeout",
        Seconds(_SECONDS_LEAST),
        10.0,
        "The longest wait of a request for a thread; past it the answer is 503.",
    ),
    Key(
        "concurrency.switch_interval",
        Seconds(0.0001, 1.0),
        0.005,
        "How long a thread may keep the GIL while another one wants it (sys.setswitchinterval).",
    ),
    Key(
        "limits.connections",
        Integer(1, 1_000_000),
        10_000,
        "The most connections at once; past it the longest-idle keep-alive connection is closed, "
        "with none idle the client that has taken nothing of its response for longest, and with "
        "none of these either, accepting pauses. Cut at start, with a warning, where the process "
        "may not open as many files.",
    ),
    Key(
        "limits.request_line",
        Size(16, MEBIBYTE),
        8 * KIBIBYTE,
        "The longest request line; past it the answer is 414.",
    ),
    Key(
        "limits.head",
        Size(64, 16 * MEBIBYTE),
        64 * KIBIBYTE,
        "The longest request head, which is the request line and the field lines together; past "
        "it the answer is 431. The trailer fields behind a chunked body are no part of it: they "
        "may have 8 KiB, whatever is set here, and past that the answer is 431 as well.",
    ),
    Key(
        "limits.fields",
        Integer(1, 10_000),
        100,
        "The most field lines of a request head; past it the answer is 431. There may be 32 "
        "trailer fields beside them, whatever is set here, and past that the answer is 431 as "
        "well.",
    ),
    Key(
        "limits.body",
        Size(1, 8 * TEBIBYTE),
        GIBIBYTE,
        "The longest request body; past it the answer is 413, before the body is read where "
        "Content-Length tells.",
    ),
    Key(
        "limits.body_memory",
        Size(1, GIBIBYTE),
        MEBIBYTE,
        "How much of one request body is held in memory; the rest is in a temporary file.",
    ),
    Key(
        "limits.requests_per_connection",
        Integer(0, 2**31 - 1),
        0,
        "After so many requests a connection is closed; 0: no limit.",
    ),
    Key(
        "limits.response_memory",
        Size(1, GIBIBYTE),
        MEBIBYTE,
        "How much of one response is held ahead of a slow client, so that its thread is free.",
    ),
    Key(
        "limits.buffer_memory",
        Size(MEBIBYTE, 8 * TEBIBYTE),
        256 * MEBIBYTE,
        "How much of all bodies and unsent responses together is held in memory; past it 64 KiB of "
        "each: the rest of a body is in a temporary file, and a response is made no further ahead "
        "of its client, and clients that take nothing of theirs are cut off, the longest stalled "
        "first. Past twice as much, bodies of more than 16 KiB are answered 503. Heads of "
        "more than 16 KiB have as much of their own; past it they are answered 503. A piece of a "
        "response that stays where the application has it does not count.",
    ),
    Key(
        "limits.requests",
        Integer(0, 2**53),
        0,
        "After so many requests, or a few more that are on their way, the server drains and exits "
        "0, for the orchestrator to replace it; 0: never.",
    ),
    Key(
        "limits.requests_jitter",
        Integer(0, 2**53),
        0,
        "The most requests, chosen at random at the start, that are added to limits.requests, so "
        "that replicas do not end together.",
    ),
    Key(
        "limits.memory",
        Size(0, 8 * TEBIBYTE),
        0,
        "The server drains and exits 0 when its resident memory passes it, which is looked at "
        "once a second; 0: never.",
    ),
    Key(
        "timeouts.head",
        Seconds(_SECONDS_LEAST),
        10.0,
        "For a whole request head, from its first byte; past it the answer is 408.",
    ),
    Key(
        "timeouts.body",
        Seconds(_SECONDS_LEAST),
        30.0,
        "Without progress on a request body; past it the answer is 408.",
    ),
    Key(
        "timeouts.keep_alive",
        Seconds(_SECONDS_LEAST),
        75.0,
        "Idle between two requests of a connection; past it the connection is closed.",
    ),
    Key(
        "timeouts.write",
        Seconds(_SECONDS_LEAST),
        3600.0,
        "Without progress on a response: nothing sent, and nothing acknowledged of what was; past "
        "it the connection is reset. A late bound for clients that pause, such as a proxy that "
        "has spooled enough: nginx keeps 1 GiB for a slow client and takes nothing more "
        "meanwhile, some 18 minutes at 1 MB/s and an hour at 300 kB/s. Where room is short, the "
        "longest stalled client goes before that (docs/PROXIES.md).",
    ),
    Key(
        "timeouts.drain_delay",
        Seconds(0.0),
        0.0,
        "After SIGTERM or SIGINT: for so long connections are still accepted and every response "
        "says that its connection closes, with /readyz at 503, until balancers have heard of it "
        "(Kubernetes: 5.0).",
    ),
    Key(
        "timeouts.drain",
        Seconds(_SECONDS_LEAST),
        30.0,
        "After SIGTERM or SIGINT: how long what is in flight may take; past it the exit status "
        "is 4.",
    ),
    Key(
        "timeouts.request",
        Seconds(0.0),
        0.0,
        "For one application call, and anew for each piece of a response that it gives; 0: no "
        "limit.",
    ),
    Key(
        "timeouts.request_action",
        Choice("log", "answer", "raise"),
        "log",
        'What happens past timeouts.request: "log" writes the thread\'s Python stack to the log, '
        'once; "answer" answers 504 as well; "raise" raises serve_zig.RequestTimeout inside the '
        "handler as well.",
    ),
    Key(
        "proxy.trusted",
        Networks(),
        [],
        'Addresses and CIDR ranges of proxies, or "unix" for whoever connects to a unix socket. '
        "Forwarded fields are believed only from these; those of any other peer are stripped, so "
        "that the application does not get them either (docs/PROXIES.md).",
    ),
    Key(
        "proxy.headers",
        Choice("x-forwarded", "forwarded"),
        "x-forwarded",
        "Which fields the trusted proxies set: X-Forwarded-For, -Proto, -Host, -Port and -Prefix, "
        "or Forwarded (RFC 7239). The other kind is stripped.",
    ),
    Key(
        "proxy.protocol",
        Boolean(),
        False,
        "Trusted peers begin each connection with a header of the PROXY protocol, version 1 or 2; "
        "one that does not is closed. Other peers may not send one.",
    ),
    Key(
        "log.level",
        Choice("error", "warning", "info"),
        "info",
        "The least important messages that are written to stderr.",
    ),
    Key(
        "log.format",
        Choice("text", "json"),
        "text",
        "How error and access lines are written, one record a line in JSON.",
    ),
    Key(
        "log.access",
        Text('"off", "stdout", "stderr" or a file path'),
        "off",
        'The access log, one line a request: "stdout" (or "-"), "stderr", or a file, which SIGHUP '
        "opens anew. Combined Log Format with the request id behind it, or JSON (see "
        "docs/LOGGING.md).",
    ),
    Key(
        "log.access_exclude",
        Paths(),
        [],
        'Paths, such as "/health", whose requests are not in the access log when they are answered '
        "below 400.",
    ),
    Key(
        "log.slow_request",
        Seconds(0.0),
        0.0,
        "Requests that take longer, from their first byte to the last of the answer, are logged "
        "as warnings with their phases; 0: none.",
    ),
    Key(
        "log.server_timing",
        Boolean(),
        False,
        "Whether answers have a Server-Timing field that says where the time went until then "
        "(head, body, queue, gil, app), for the browser's developer tools.",
    ),
    Key(
        "admin.bind",
        Text(
            'an address such as "127.0.0.1:9100" or "unix:/run/admin.sock", or "" for none',
            parse_address,
            empty=True,
        ),
        "",
        "The address of the admin listener, which answers /livez, /readyz, /metrics, /status, "
        "/threads and a page, also while the application is imported or holds the GIL; empty: "
        "none.",
    ),
    Key(
        "admin.hosts",
        Hosts(),
        [],
        "Further hosts for which the admin listener answers, such as the name of a service. It "
        "always answers for the address that it is bound to, for any address where that is every "
        "interface, and for localhost; other hosts are answered 421, so that no web page reaches "
        'it by a name of its own (DNS rebinding). "*": every host.',
    ),
    Key(
        "admin.unix_mode",
        Mode(),
        0o600,
        "The permission bits of the file, where the admin listener is a unix socket; whoever may "
        "write to the file may connect.",
    ),
    Key(
        "admin.livez_stall",
        Seconds(_SECONDS_LEAST),
        30.0,
        "/livez turns 503 when for so long no request has begun or ended and the GIL could not "
        "be taken while requests wait.",
    ),
    Key(
        "admin.in_band",
        Text('a path prefix such as "/-/", or "" for none', check_path_prefix, empty=True),
        "",
        "A path prefix under which the main listeners answer livez and readyz too, for platforms "
        "that allow one port; those two paths are then hidden from the application.",
    ),
    Key(
        "telemetry.otlp_endpoint",
        OptionalText(
            'a URL, such as "http://collector:4318"; or an empty string, for none', parse_url
        ),
        "",
        "The collector that gets a span for each sampled request; needs pip install "
        "'serve-zig[otel]'. Empty: none, and no cost.",
    ),
    Key(
        "telemetry.sample_ratio",
        Ratio(),
        1.0,
        "The share of traces begun here that are sampled; a request that belongs to a trace is "
        "sampled if that is. OTEL_TRACES_SAMPLER in the environment counts more.",
    ),
    Key(
        "telemetry.service_name",
        OptionalText("a string, or an empty one for the default"),
        "",
        "The name of the service; empty: OTEL_SERVICE_NAME, or else the module of app.target.",
    ),
    Key(
        "static.route",
        Text('a string that begins with a slash, such as "/static"', check_route),
        None,
        "The path, or the path prefix up to a slash, that is answered from the directory. The "
        "longest route that matches counts.",
    ),
    Key(
        "static.directory",
        Text("a string that names a directory"),
        None,
        "The directory of the files, relative to the config file.",
    ),
    Key(
        "static.cache_control",
        Text(
            'a string such as "public, max-age=3600"; empty: no field',
            check_cache_control,
            empty=True,
        ),
        "",
        "The Cache-Control field of the answers.",
    ),
    Key(
        "static.index",
        Text('the name of a file, such as "index.html"; empty: none', check_index, empty=True),
        "",
        "The file that answers for a directory.",
    ),
    Key(
        "static.fallthrough",
        Boolean(),
        False,
        "Whether the application answers where there is no file, and methods other than GET and "
        "HEAD; else the answer is 404, or 405.",
    ),
)
"""Every key that the contract names, table by table."""

KEYS_BY_PATH: dict[str, Key] = {key.path: key for key in KEYS}


def keys_of(table: str) -> list[Key]:
    """Return the keys of one table, in the order of the documents."""
    return [key for key in KEYS if key.table == table]
